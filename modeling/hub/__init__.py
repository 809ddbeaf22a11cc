"""Publishing: writes a complete Hub repository into a folder, checks it, and pushes it in one commit."""

from rednet.hub.access import check_collection_token, check_token
from rednet.hub.cards import add_results, imagenet_card, known_checkpoints, make_card
from rednet.hub.folder import check_hub_folder, check_replaceable, check_writable, replacing, save_hub_folder
from rednet.hub.push import push_collection, push_hub_folder, push_space, pushed_url


__all__ = [
    "add_results",
    "check_collection_token",
    "check_hub_folder",
    "check_replaceable",
    "check_token",
    "check_writable",
    "imagenet_card",
    "known_checkpoints",
    "make_card",
    "push_collection",
    "push_hub_folder",
    "push_space",
    "pushed_url",
    "replacing",
    "save_hub_folder",
]
