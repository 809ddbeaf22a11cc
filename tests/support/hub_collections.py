"""Collections of the Hub: lists of repositories under a title that is unique in its namespace."""

import re

from hub_api import Answer, Hub, Refusal, Request, route, to_json


def collection(hub: Hub, slug: str) -> dict:
    if slug not in hub.collections:
        raise Refusal(404, "Collection not found")
    return hub.collections[slug]


def check_namespace(hub: Hub, request: Request, namespace: str) -> None:
    if not hub.may_write(request, namespace, "collection.write"):
        raise Refusal(403, f'You don\'t have the rights to write collections of "{namespace}"')


@route("POST", "/api/collections")
def create(hub: Hub, request: Request) -> Answer:
    asked = request.json()
    check_namespace(hub, request, asked["namespace"])
    if len(asked.get("description", "")) > 150:
        raise Refusal(400, '"description" must be at most 150 characters')
    name = re.sub("[^a-z0-9]+", "-", asked["title"].lower())
    slug = f"{asked['namespace']}/{name}-{len(hub.collections):024x}"
    for existing in hub.collections.values():
        if (existing["owner"]["name"], existing["title"]) == (asked["namespace"], asked["title"]):
            # A client that accepts an existing collection takes its slug from the refusal.
            raise Refusal(409, "You already have a collection with this title", slug=existing["slug"])
    hub.collections[slug] = {
        "slug": slug,
        "title": asked["title"],
        "description": asked.get("description"),
        "owner": {"name": asked["namespace"]},
        "items": [],
        "lastUpdated": "2026-01-01T00:00:00.000Z",
        "position": 0,
        "private": asked["private"],
        "theme": "blue",
        "upvotes": 0,
    }
    return to_json(hub.collections[slug])


@route("GET", "/api/collections/{slug}")
def show(hub: Hub, request: Request, slug: str) -> Answer:
    return to_json(collection(hub, slug))


@route("POST", "/api/collections/{slug}/items")
def add_item(hub: Hub, request: Request, slug: str) -> Answer:
    found, asked = collection(hub, slug), request.json()["item"]
    check_namespace(hub, request, found["owner"]["name"])
    if asked["type"] != "model" or asked["id"] not in hub.repos:
        raise Refusal(404, f"There is no {asked['type']} {asked['id']}")
    if asked["id"] in [item["id"] for item in found["items"]]:
        raise Refusal(409, "This item is already in the collection")
    position = len(found["items"])
    found["items"].append({"_id": f"{position:024x}", "id": asked["id"], "type": "model", "position": position})
    return to_json(found)
