"""A complete Hub repository: written into a folder, checked, and pushed in one commit."""

from .folder import (
    check_hub_folder,
    check_replaceable,
    check_token,
    push_hub_folder,
    replacing,
    save_hub_folder,
)


__all__ = [
    "check_hub_folder",
    "check_replaceable",
    "check_token",
    "push_hub_folder",
    "replacing",
    "save_hub_folder",
]
