"""Several models that are pushed together, and their Collection."""

import pytest

from hub_client import PUSH


COLLECT = """
import sys
from rednet.hub import push_collection
private, *names = sys.argv[1:]
print(push_collection("user", "RedNet: five depths", "Five models.", names, private == "True").url)
"""
NAMES = [f"user/rednet-{depth}" for depth in (26, 38, 50, 101, 152)]


@pytest.mark.parametrize("private", [False, True])
def test_a_collection_of_five_models_after_a_failure(hub, client, write_folder, tmp_path, private):
    hub.collections.clear()
    folder = write_folder(tmp_path / "folder")
    for name in NAMES:
        hub.repos.pop(name, None)
    for name in NAMES[:3]:
        client.output(PUSH, folder, name)
    failed = client.run(COLLECT, private, *NAMES)  # the fourth does not exist
    assert failed.status == 1 and "404" in failed.output
    for name in NAMES:
        client.output(PUSH, folder, name)
    url = client.output(COLLECT, private, *NAMES)
    [(slug, collection)] = hub.collections.items()
    assert url == f"{hub.url}/collections/{slug}\n" and collection["private"] == private
    assert [item["id"] for item in collection["items"]] == NAMES and collection["description"] == "Five models."

    # What somebody edited stays.
    collection["items"].reverse()
    collection["description"] = "My own words."
    assert client.output(COLLECT, private, *NAMES) == url and len(hub.collections) == 1
    assert [item["id"] for item in collection["items"]] == NAMES[::-1]
    assert collection["description"] == "My own words."


def test_a_collection_of_others_is_refused(hub, client):
    hub.tokens["hf_read"] = "read"
    hub.collections.clear()
    assert "403" in client.run(COLLECT, False, token="hf_read").output and not hub.collections
