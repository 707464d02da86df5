"""The servers of k8s/ start from their manifests, under podman, as nobody, read-only and without a capability.

Their images are stand-ins of the same names: SeaweedFS of the extra `dev`, and Debian's Pushgateway.
Everything happens in a network of its own. Podman 4.3 knows no Job; probes need systemd, so the test asks instead.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.contract.k8s.rendered import Object, Overlay, of_kind
from tests.images.containers import PODMAN, locked
from tests.s3 import KEY, SECRET, weed_command

pytestmark = [pytest.mark.release, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS: Final = """[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
NETWORK: Final = "tdm-r1-pods"
KEYS: Final = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment of podman, beside a network namespace that goes with all that podman put into it."""
    settings = tmp_path_factory.mktemp("podman") / "containers.conf"
    settings.write_text(SETTINGS)
    with locked():
        subprocess.run(["ip", "netns", "add", NETWORK], check=True)
        try:
            command(["ip", "link", "set", "lo", "up"])
            yield os.environ | {"CONTAINERS_CONF": str(settings)}
        finally:
            subprocess.run(["ip", "netns", "del", NETWORK], check=True)


def command(words: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """What a command says that runs in the network of the test."""
    inside = ["nsenter", f"--net=/run/netns/{NETWORK}", *words]
    done = subprocess.run(inside, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


def stand_in(image: str, program: str, folder: Path, env: Mapping[str, str]) -> None:
    """An image of one program and the libraries that it loads, under the name that the manifest has."""
    path = Path(shutil.which(program) or program)
    loaded = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    files = [path, *(Path(word) for word in loaded.split() if word.startswith("/"))]
    lines = ["FROM scratch"]
    for number, file in enumerate(files):
        shutil.copy(file, folder / str(number))
        lines.append(f"COPY {number} {'/usr/bin/' + path.name if number == 0 else file}")
    (folder / "Containerfile").write_text("\n".join([*lines, f'ENTRYPOINT ["/usr/bin/{path.name}"]']))
    words = ["build", "--quiet", "--isolation", "chroot", "--pull=never", "--tag", image, str(folder)]
    subprocess.run([*PODMAN, *words], check=True, env=env, stdout=subprocess.DEVNULL)


@contextmanager
def playing(objects: Sequence[Object], folder: Path, env: Mapping[str, str]) -> Iterator[int]:
    """Run a Deployment as it is rendered; yields the process of its container."""
    (deployment,) = of_kind(objects, "Deployment")
    file = folder / "pod.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    name = f"{deployment['metadata']['name']}-pod-0"
    container = deployment["spec"]["template"]["spec"]["containers"][0]["name"]
    command([*PODMAN, "play", "kube", str(file)], env)
    try:
        yield int(command([*PODMAN, "inspect", f"{name}-{container}", "--format", "{{.State.Pid}}"], env))
    finally:
        command([*PODMAN, "pod", "rm", "--force", "--time", "0", name], env)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def asked(pid: int, url: str, seconds: float = 60) -> str:
    """The body of a page, from inside the network of a pod."""
    end = time.monotonic() + seconds
    while True:
        page = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=5).read().decode())"
        words = ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", page]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        assert time.monotonic() < end, done.stderr[-1000:]
        time.sleep(0.2)


def restricted(pid: int) -> None:
    """As Pod Security `restricted` wants it, and with the user of the profile."""
    found = status(pid)
    assert set(found["Uid"].split()) == {"65532"}
    assert int(found["CapEff"], 16) == 0
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    mounts = Path(f"/proc/{pid}/mounts").read_text().splitlines()
    (root,) = [line.split()[3] for line in mounts if line.split()[1] == "/"]
    assert "ro" in root.split(",")


def rendered(overlay: str, name: str, kinds: Sequence[str]) -> list[Object]:
    team = Overlay(overlay).team
    return [one for kind in kinds for one in of_kind(team, kind) if one["metadata"]["name"] == name]


def test_the_store_takes_a_run_and_keeps_it_when_its_pod_is_replaced(network: Any, tmp_path: Path) -> None:
    program = weed_command()
    assert program is not None
    objects = rendered("kind-cpu", "tdm-r1-store", ("PersistentVolumeClaim", "Deployment"))
    (image,) = (c["image"] for c in objects[1]["spec"]["template"]["spec"]["containers"])
    build = tmp_path / "image"
    build.mkdir()
    stand_in(image, program, build, network)
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({name: base64.b64encode(value.encode()).decode() for name, value in KEYS.items()}))
    command([*PODMAN, "secret", "create", "tdm-r1-s3", str(secret)], network)
    try:
        with playing(objects, tmp_path, network) as pid:
            asked(pid, "http://127.0.0.1:8333/healthz")
            restricted(pid)
            assert tdm_r1_inside(pid, "init", "--root", "s3://runs/demo", "--preset", "shapes_smoke") == 0
            assert tdm_r1_inside(pid, "inspect", "--root", "s3://runs/demo", AWS_SECRET_ACCESS_KEY="wrong") == 2
        with playing(objects[1:], tmp_path, network) as pid:
            asked(pid, "http://127.0.0.1:8333/healthz")
            assert tdm_r1_inside(pid, "inspect", "--root", "s3://runs/demo") == 0
    finally:
        command([*PODMAN, "volume", "rm", "--force", "tdm-r1-store"], network)
        command([*PODMAN, "secret", "rm", "tdm-r1-s3"], network)


def tdm_r1_inside(pid: int, *words: str, **changed: str) -> int:
    """Exit code of our command in the network of a pod."""
    own = {"AWS_ENDPOINT_URL": "http://127.0.0.1:8333", "AWS_EC2_METADATA_DISABLED": "true"}
    line = ["nsenter", "-t", str(pid), "-n", sys.executable, "-m", "tdm_r1", *words]
    return subprocess.run(line, check=False, env=os.environ | own | KEYS | changed).returncode


def test_the_pushgateway_takes_what_is_pushed_and_is_ready_where_its_probes_look(network: Any, tmp_path: Path) -> None:
    objects = rendered("gke", "tdm-r1-pushgateway", ("Deployment",))
    (container,) = objects[0]["spec"]["template"]["spec"]["containers"]
    build = tmp_path / "image"
    build.mkdir()
    stand_in(container["image"], "prometheus-pushgateway", build, network)
    with playing(objects, tmp_path, network) as pid:
        base = "http://127.0.0.1:9091"
        for probe in ("readinessProbe", "livenessProbe"):
            asked(pid, base + container[probe]["httpGet"]["path"])
        restricted(pid)
        push = f"u.urlopen(u.Request('{base}/metrics/job/a', b'tdm_r1_x 3\\n', method='PUT'))"
        words = ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", f"import urllib.request as u; {push}"]
        subprocess.run(words, check=True)
        assert 'tdm_r1_x{instance="",job="a"} 3' in asked(pid, f"{base}/metrics")
