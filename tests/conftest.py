"""Fixtures of all tests. One CPU thread everywhere: another count gives other last bits."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded, here and in every process that a test starts

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.faults.preloaded import Starter, preloaded
from tests.order import dealt
from tests.s3 import Server, seaweedfs
from tests.support import once, plane_run, tdm_r1
from tests.team import install

pytest_plugins = ["tests.fault_report"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that all workers end together."""
    items[:] = dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this session see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def pipeline(shared: Path) -> Path:
    """A stock Stable Diffusion 3 pipeline folder of the world `shapes`, with random weights."""

    def build(folder: Path) -> None:
        from tdm_r1.pretrain.autoencoder import new_autoencoder, standardise
        from tdm_r1.pretrain.scenes import SHAPES
        from tdm_r1.pretrain.teacher import new_teacher, save_pipeline

        teacher = new_teacher(SHAPES, folder, seed=0)
        save_pipeline(teacher, standardise(SHAPES, new_autoencoder().eval(), seed=0, count=12), folder)

    return once(shared / "pipeline", build)


@pytest.fixture(scope="session")
def finished(shared: Path) -> Path:
    """A tiny finished run in the plane. Do not change it: copy it."""

    def build(root: Path) -> None:
        assert tdm_r1(*plane_run(root)) == 0

    return once(shared / "finished", build)


@pytest.fixture(scope="session")
def team_package(shared: Path) -> Path:
    """A folder into which pip installed a package with scorers of another team."""
    return once(shared / "team", install)


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Starts `tdm-r1` in process groups of its own."""
    with preloaded(tmp_path_factory.mktemp("programs"), os.environ) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real S3 server of this worker's own."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_root(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root with nothing in it, reachable through the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.fresh_root()
