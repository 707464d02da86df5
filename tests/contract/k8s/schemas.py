"""Strict validation: of Kubernetes' kinds by its own schemas, of other kinds by the files beside this one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import referencing
from jsonschema import Draft202012Validator
from kubernetes_validate import SchemaNotFoundError, utils

VERSIONS: Final = ("1.33", "1.37")
"""Oldest and newest Kubernetes of docs/operations/install.md."""
HERE: Final = Path(__file__).parent / "schemas"


def faults(one: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each thing about an object that its schema does not know or want."""
    where = f"{one['kind']}/{one['metadata']['name']}"
    for version, validator in validators(one["apiVersion"], one["kind"]).items():
        for error in validator.iter_errors(one):
            place = ".".join(map(str, error.absolute_path)) or "the object"
            yield f"{where}, {version}: {place}: {error.message[:300]}"
    for job in one.get("spec", {}).get("template", {}).get("spec", {}).get("replicatedJobs", ()):
        yield from faults({"apiVersion": "batch/v1", "kind": "Job", **job["template"]} | {"metadata": {"name": where}})


@cache
def validators(api_version: str, kind: str) -> dict[str, Draft202012Validator]:
    """Validators of a kind by the version of what defines it.

    Raises:
        SchemaNotFoundError: when nobody defines it.
    """
    own = custom().get((api_version, kind))
    if own is not None:
        return {"its CRD": own}
    return {version: _of_kubernetes(version, api_version, kind) for version in VERSIONS}


@cache
def custom() -> dict[tuple[str, str], Draft202012Validator]:
    """Validators of the kinds that Kubernetes does not define, by apiVersion and kind."""
    return {
        (text["apiVersion"], kind): Draft202012Validator(object_schema(text, kind))
        for text in _files()
        for kind in text["kinds"]
    }


@cache
def cluster_scoped() -> frozenset[str]:
    """Kinds of other APIs that belong to no namespace."""
    return frozenset(kind for text in _files() for kind, what in text["kinds"].items() if what["scope"] == "Cluster")


def object_schema(text: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The schema of a whole object: what all objects have, and what the kind adds."""
    what = text["kinds"][kind]
    head = {"apiVersion": {"const": text["apiVersion"]}, "kind": {"const": kind}, "metadata": METADATA}
    return {
        "$defs": text.get("$defs", {}),
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", *what["required"]],
        "properties": head | what["properties"],
    }


METADATA: Final = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def _files() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(HERE.glob("*.json"))]


def _of_kubernetes(version: str, api_version: str, kind: str) -> Draft202012Validator:
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    group, _, name = api_version.rpartition("/")
    file = f"{kind.lower()}-{group.split('.')[0]}-{name}.json" if group else f"{kind.lower()}-{name}.json"
    try:
        schema = utils.schema_contents(f"{folder}/{file}", version)
    except FileNotFoundError as error:
        raise SchemaNotFoundError(kind, version, api_version) from error
    registry = definitions(folder, version) @ referencing.Registry()
    return Draft202012Validator(schema, registry=registry)


@cache
def definitions(folder: str, version: str) -> referencing.Resource[Any]:
    return referencing.Resource.from_contents(utils.schema_contents(f"{folder}/_definitions.json", version))
