"""What the fault tests ask of a run on S3, by a client that is not the one under test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tdm_r1.artifacts.repository import read_manifest
from tdm_r1.artifacts.store import open_store
from tests.s3 import BUCKET, Server
from tests.support import TINY, settings


def start_at(root: str, **overrides: Any) -> list[str]:
    """Arguments of the tiny run at an s3:// root."""
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    return ["run", "--root", root, "--preset", "plane", *settings({**TINY, **changed})]


def prefix_of(root: str) -> str:
    return root.removeprefix(f"s3://{BUCKET}/") + "/"


def objects(server: Server, root: str) -> Iterator[str]:
    """Every object below a root, hidden ones too."""
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix_of(root))
    return (item["Key"].removeprefix(prefix_of(root)) for page in pages for item in page.get("Contents", []))


def uploads(server: Server, root: str) -> list[str]:
    """Every unfinished upload below a root."""
    found = server.client().list_multipart_uploads(Bucket=BUCKET, Prefix=prefix_of(root)).get("Uploads", [])
    return [item["Key"].removeprefix(prefix_of(root)) for item in found]


def same_as(local: Path, root: str) -> bool:
    """Whether the run at `root` holds the records and pages of the local run, byte for byte where no provenance is."""
    here, there = open_store(str(local)), open_store(root)
    if here.list("") != there.list(""):
        return False
    return all(
        digest(local_key, there) == digest(local_key, here)
        if local_key.endswith("/manifest.json")
        else there.read_bytes(local_key) == here.read_bytes(local_key)
        for local_key in here.list("")
    )


def digest(key: str, store: Any) -> str:
    manifest = read_manifest(store, key.removesuffix("/manifest.json"))
    assert manifest is not None
    return manifest.digest


def environment(server: Server, **more: str) -> Mapping[str, str]:
    """What the program needs to reach a server."""
    return {**server.environment, **more}
