"""k8s/ is valid, and says what the code says: names, ports, rights, words of the command line."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from images.build import IMAGES
from tdm_r1.profiles import Pool
from tdm_r1.quantities import bytes_of, cores_of
from tests.contract.k8s.network import Peer, connections
from tests.contract.k8s.rendered import OVERLAYS, ROOT, Overlay, containers, of_kind, pod_specs
from tests.contract.k8s.schemas import VERSIONS, cluster_scoped, faults

EVERY = [Overlay(name) for name in OVERLAYS]
BY_NAME = pytest.mark.parametrize("overlay", EVERY, ids=OVERLAYS)
CLUSTER_SCOPED = {"Namespace", "PriorityClass"} | cluster_scoped()


def test_there_is_an_overlay_for_each_place_of_the_guide() -> None:
    assert OVERLAYS == ("eks", "gke", "kind-cpu", "onprem-h100")


def test_the_guide_names_what_exists() -> None:
    guide = (ROOT / "docs/operations/install.md").read_text(encoding="utf-8")
    assert [
        path for path in set(re.findall(r"k8s/[\w/.-]*\w", guide)) if not (ROOT / path.replace("NAME", "gke")).exists()
    ] == []
    named = re.findall(r"make ([a-z0-9-]+)", guide)
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(named) <= set(targets)
    assert set(re.findall(r"^\| `([\w-]+)` \| (?:KFP|Argo) ", guide, re.MULTILINE)) == set(OVERLAYS)
    assert f"| {VERSIONS[0]} to {VERSIONS[-1]} | **schema only**" in guide
    components = {path.parent.name for path in (ROOT / "k8s/components").glob("*/*/kustomization.yaml")}
    components |= {path.parent.name for path in (ROOT / "k8s/components").glob("*/kustomization.yaml")}
    assert {name for name in components - {"driver"} if f"`{name}`" not in guide} == set()


def test_every_object_is_strictly_valid_and_its_kind_is_known() -> None:
    every = {json.dumps(one, sort_keys=True): one for overlay in EVERY for one in overlay.objects}
    assert len(every) > 60
    assert [fault for one in every.values() for fault in faults(one)] == []


@pytest.mark.parametrize(
    ("kind", "change", "complaint"),
    [
        ("Deployment", {"replica": 2}, "'replica' was unexpected"),
        ("NetworkPolicy", {"podSelectors": {}}, "'podSelectors' was unexpected"),
        ("Job", {"backoffLimit": "many"}, "'many' is not"),
    ],
)
def test_a_mistake_in_an_object_is_found(kind: str, change: dict[str, Any], complaint: str) -> None:
    broken = copy.deepcopy(dict(next(one for overlay in EVERY for one in of_kind(overlay.objects, kind))))
    broken["spec"].update(change)
    assert any(complaint in fault for fault in faults(broken))


@BY_NAME
def test_what_belongs_to_no_namespace_is_applied_apart_and_the_rest_is_in_that_of_the_profile(overlay: Overlay) -> None:
    for one in overlay.cluster:
        assert one["kind"] in CLUSTER_SCOPED
        assert "namespace" not in one["metadata"]
    for one in overlay.team + overlay.driver:
        assert one["kind"] not in CLUSTER_SCOPED
        assert one["metadata"]["namespace"] == overlay.profile.namespace
    assert overlay.profile.namespace in overlay.names("Namespace")
    assert {one["metadata"]["labels"]["app.kubernetes.io/part-of"] for one in overlay.objects} == {"tdm-r1"}
    keys = [(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in overlay.objects]
    assert len(keys) == len(set(keys))


@BY_NAME
def test_every_name_that_the_profile_uses_exists(overlay: Overlay) -> None:
    profile = overlay.profile
    pools = [profile.pool(name) for name in ("rollout", "update", "scoring", "control")]
    assert profile.service_account in overlay.names("ServiceAccount")
    assert {pool.queue for pool in pools if pool.queue} <= overlay.names("LocalQueue")
    assert {pool.priority for pool in pools if pool.priority} <= overlay.names("PriorityClass")
    for account in of_kind(overlay.team, "RoleBinding"):
        assert {subject["name"] for subject in account["subjects"]} <= overlay.names("ServiceAccount")
        assert account["roleRef"]["name"] in overlay.names("Role")
    for where, template in pod_specs(overlay.objects):
        account = template["spec"].get("serviceAccountName")
        assert account in {None, *overlay.names("ServiceAccount")}, where


@BY_NAME
def test_the_keys_of_the_store_come_from_one_secret_that_all_pods_name_alike(overlay: Overlay) -> None:
    secret = overlay.profile.storage.secret
    named = {
        (source["name"], key)
        for _, template in pod_specs(overlay.objects)
        for container in containers(template)
        for variable in container.get("env", ())
        for source in [variable.get("valueFrom", {}).get("secretKeyRef")]
        if source and (key := variable["name"]).startswith("AWS_") and key == source["key"]
    }
    whole = {
        source["secretRef"]["name"]
        for _, template in pod_specs(overlay.objects)
        for container in containers(template)
        for source in container.get("envFrom", ())
        if "secretRef" in source
    }
    assert secret is None or (secret.access_key, secret.secret_key) == ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert {name for name, _ in named} | whole <= {secret.name if secret else "tdm-r1-s3"}


@BY_NAME
def test_driver_and_stages_open_the_same_store(overlay: Overlay) -> None:
    settings, storage = overlay.settings(), overlay.profile.storage
    assert settings.get("AWS_ENDPOINT_URL") == storage.endpoint
    assert settings.get("AWS_REGION") == storage.region
    assert re.fullmatch(r"s3://[-a-z0-9.]+/\S+", settings["TDM_R1_ROOT"])
    if (storage.endpoint or "").startswith("http://tdm-r1-store:"):
        service = overlay.one("Service", "tdm-r1-store")["spec"]
        (container,) = overlay.one("Deployment", "tdm-r1-store")["spec"]["template"]["spec"]["containers"]
        assert storage.endpoint == f"http://tdm-r1-store:{service['ports'][0]['port']}"
        assert service["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
        bucket = settings["TDM_R1_ROOT"].split("/")[2]
        assert f"-bucket={bucket}" in container["args"]


@BY_NAME
def test_every_pod_is_restricted_and_has_limits(overlay: Overlay) -> None:
    found = dict(pod_specs(overlay.objects))
    assert found
    for where, template in found.items():
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"], where
        assert security["runAsUser"] == security["fsGroup"] == overlay.profile.security.user, where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for container in containers(template):
            inner = container["securityContext"]
            assert inner["capabilities"] == {"drop": ["ALL"]}, where
            assert (inner["allowPrivilegeEscalation"], inner["readOnlyRootFilesystem"]) == (False, True), where
            assert set(container["resources"]["limits"]) >= {"cpu", "memory"}, where
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, where


@BY_NAME
def test_images_of_ours_are_built_here_in_this_version(overlay: Overlay) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {c["image"] for _, template in pod_specs(overlay.objects) for c in containers(template)}
    ours = {image for image in images if "tdm-r1" in image}
    assert ours
    assert ours <= {f"ghcr.io/tdm-r1/{name}:{version}" for name in IMAGES}
    assert all(re.search(r":v?\d", image) for image in images), "a tag that does not move"


def peak(pool: Pool, pods: int) -> tuple[Decimal, int]:
    return cores_of(pool.cpu) * pods, bytes_of(pool.memory) * pods


@BY_NAME
def test_the_quota_takes_what_the_profile_runs_at_once(overlay: Overlay) -> None:
    """All shards and the evaluation of the base, with the pods that orchestrator and overlay add."""
    pools, count = overlay.profile.pools, overlay.profile.shards_at_once
    rows = [(pool.cpu, pool.memory, count) for pool in (pools.rollout, pools.scoring)]
    rows.append((pools.update.cpu, pools.update.memory, 1))
    beside = overlay.one("LimitRange")["spec"]["limits"][0]["default"]
    others = [(beside["cpu"], beside["memory"], count + 1), (pools.rollout.cpu, pools.rollout.memory, 1)]
    servers = [one for one in overlay.team + overlay.driver if one["kind"] in ("Deployment", "Job")]
    for _, template in pod_specs(servers):
        limits = [container["resources"]["limits"] for container in template["spec"]["containers"]]
        others += [(limit["cpu"], limit["memory"], 1) for limit in limits]
    hard = overlay.one("ResourceQuota")["spec"]["hard"]
    assert cores_of(hard["limits.cpu"]) >= max(map(cores, rows)) + sum(map(cores, others))
    assert bytes_of(hard["limits.memory"]) >= max(map(memory, rows)) + sum(map(memory, others))
    assert int(hard["pods"]) >= 3 * count + len(others)
    devices = pools.rollout.accelerators + max(pools.rollout.accelerators * count, pools.update.accelerators)
    assert int(hard.get("requests.nvidia.com/gpu", 0)) >= min(devices, 16)


def cores(row: tuple[str, str, int]) -> Decimal:
    return cores_of(row[0]) * row[2]


def memory(row: tuple[str, str, int]) -> int:
    return bytes_of(row[1]) * row[2]


STAGE, DRIVE = {"workflows.argoproj.io/workflow": "a"}, {"app.kubernetes.io/name": "tdm-r1-drive"}
UPDATE = {"app.kubernetes.io/name": "tdm-r1-update"}


def tcp(*ports: int) -> tuple[tuple[str, int], ...]:
    return tuple(("TCP", port) for port in ports)


PEERS = [
    Peer("stage", "tdm-r1", STAGE, listens=tcp(22, 29500)),
    Peer("drive", "tdm-r1", DRIVE, listens=tcp(22)),
    Peer("store", "tdm-r1", {"app.kubernetes.io/name": "tdm-r1-store"}, listens=tcp(8333, 9333, 8888)),
    Peer("pushgateway", "tdm-r1", {"app.kubernetes.io/name": "tdm-r1-pushgateway"}, listens=tcp(9091)),
    Peer("update 0", "tdm-r1", UPDATE, listens=tcp(22, 29400, 45678)),
    Peer("update 1", "tdm-r1", UPDATE, listens=tcp(22, 29400, 45678)),
    Peer("stranger", "tdm-r1", {"app": "x"}, listens=tcp(80, 8333, 9091, 29400)),
    Peer("neighbour", "other", {"app": "x"} | STAGE | DRIVE, listens=tcp(80)),
    Peer("prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}, listens=tcp(9090)),
    Peer("grafana", "monitoring", {"app.kubernetes.io/name": "grafana"}, listens=tcp(3000)),
    Peer("cache of names", address="169.254.20.10", listens=(("UDP", 53),)),
    Peer("dns", "kube-system", {"k8s-app": "kube-dns"}, listens=(("UDP", 53), ("TCP", 53))),
    Peer("argo-server", "argo", {"app": "argo-server"}, listens=tcp(2746)),
    Peer("ml-pipeline", "kubeflow", {"app": "ml-pipeline"}, listens=tcp(8887, 8888)),
    Peer("metadata", "kubeflow", {"component": "metadata-grpc-server"}, listens=tcp(8080)),
    Peer("kubernetes", address="10.96.0.1", listens=tcp(443, 6443, 10250)),
    Peer("outside", address="203.0.113.7", listens=tcp(80, 443, 8333)),
    Peer("node's metadata", address="169.254.169.254", listens=tcp(80, 443)),
]
"""What is near a namespace, with the ports it listens on; a driver or a stage of another namespace is a stranger."""


def used(overlay: Overlay, pods: set[str]) -> Iterator[tuple[str, str, int]]:
    """Each connection that the code makes in this overlay, from what its settings name."""
    yield from ((pod, "dns", 53) for pod in pods)
    if overlay.name == "gke":
        yield from ((pod, "cache of names", 53) for pod in pods)
    for pod in ("stage", "drive"):
        yield from ((pod, "kubernetes", port) for port in (443, 6443))
        yield pod, "outside", 443
    settings = overlay.settings()
    named = {"argo-server.argo:2746": "argo-server", "ml-pipeline.kubeflow:8888": "ml-pipeline"}
    scheduler = settings["KFP_ENDPOINT"].removeprefix("http://")
    yield "drive", named[scheduler], int(scheduler.rpartition(":")[2])
    if named[scheduler] == "ml-pipeline":
        yield from (("stage", "ml-pipeline", 8887), ("stage", "metadata", 8080))
    if settings.get("AWS_ENDPOINT_URL") == "http://tdm-r1-store:8333":
        yield from ((pod, "store", 8333) for pod in ("stage", "drive"))
    assert settings.get("TDM_R1_PUSHGATEWAY") == overlay.profile.pushgateway, "driver and stages push to one place"
    if overlay.profile.pushgateway:
        assert overlay.profile.pushgateway == "http://tdm-r1-pushgateway:9091"
        yield from ((pod, "pushgateway", 9091) for pod in ("stage", "drive", "prometheus"))
    if "TrainingRuntime" in {one["kind"] for one in overlay.team}:
        pair = ("update 0", "update 1")
        yield from ((a, b, port) for a in pair for b in pair if a != b for port in (29400, 45678))
        yield from ((pod, where, 443) for pod in pair for where in ("kubernetes", "outside"))


@BY_NAME
def test_network_policies_let_through_what_is_used_and_nothing_else(overlay: Overlay) -> None:
    policies, home = of_kind(overlay.team, "NetworkPolicy"), overlay.profile.namespace
    pods = {peer.name for peer in PEERS if peer.namespace == home}
    assert connections(policies, PEERS, home) == set(used(overlay, pods))


def test_without_a_policy_everything_is_let_through() -> None:
    assert ("neighbour", "store", 9333) in connections([], PEERS, "tdm-r1")
    assert ("stage", "node's metadata", 80) in connections([], PEERS, "tdm-r1")
