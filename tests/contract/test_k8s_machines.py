"""Queues, secrets, services and TrainJobs of k8s/ fit what a profile asks of machines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from pipelines.pools import PRIORITY_LABEL, QUEUE_LABEL
from tdm_r1.profiles import Pool
from tdm_r1.quantities import bytes_of, cores_of
from tests.contract.k8s.rendered import OVERLAYS, Object, Overlay, containers, of_kind, pod_specs
from tests.support import tdm_r1, tree

EVERY = [Overlay(name) for name in OVERLAYS]
BY_NAME = pytest.mark.parametrize("overlay", EVERY, ids=OVERLAYS)
QUEUED = pytest.mark.parametrize("overlay", [o for o in EVERY if o.names("LocalQueue")], ids=str)


def pools(overlay: Overlay) -> list[tuple[Pool, int]]:
    """Each pool with the pods that it may have at once."""
    named, count = overlay.profile.pools, overlay.profile.shards_at_once
    return [(named.rollout, count + 1), (named.update, 1), (named.scoring, count), (named.control, 1)]


def test_overlays_with_queues_are_those_whose_profile_names_some() -> None:
    for overlay in EVERY:
        assert bool(overlay.names("LocalQueue")) == any(pool.queue for pool, _ in pools(overlay))


def test_priorities_of_kueue_are_those_of_kubernetes() -> None:
    for overlay in EVERY:
        found = {
            kind: {one["metadata"]["name"]: one["value"] for one in of_kind(overlay.cluster, kind)}
            for kind in ("PriorityClass", "WorkloadPriorityClass")
        }
        assert found["PriorityClass"] == (found["WorkloadPriorityClass"] or found["PriorityClass"])


@QUEUED
def test_every_pod_of_a_queue_finds_a_machine_that_its_pool_describes(overlay: Overlay) -> None:
    for pool, pods in pools(overlay):
        if pool.queue is None:
            continue
        quota = flavor_for(overlay, pool.queue, pool)
        assert cores_of(quota["cpu"]) >= cores_of(pool.cpu) * pods
        assert bytes_of(quota["memory"]) >= bytes_of(pool.memory) * pods
        assert int(quota.get(pool.accelerator, 0)) >= pool.accelerators * pods


def flavor_for(overlay: Overlay, queue: str, pool: Pool) -> dict[str, str]:
    """Amounts of the one flavor whose nodes the pool's pods select and whose taints they tolerate."""
    cluster_queue = overlay.one("ClusterQueue", overlay.one("LocalQueue", queue)["spec"]["clusterQueue"])
    admitted = cluster_queue["spec"]["namespaceSelector"]["matchLabels"]
    assert admitted == {"kubernetes.io/metadata.name": overlay.profile.namespace}
    (group,) = cluster_queue["spec"]["resourceGroups"]
    tolerated = {(taint.key, taint.value) for taint in pool.tolerations}
    fitting = []
    for flavor in group["flavors"]:
        assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
        spec = overlay.one("ResourceFlavor", flavor["name"])["spec"]
        taints = [(taint["key"], taint["value"]) for taint in spec.get("nodeTaints", ())]
        if spec["nodeLabels"] == pool.node_labels:
            assert all(taint in tolerated or (taint[0], None) in tolerated for taint in taints), flavor["name"]
            fitting.append({resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]})
    assert len(fitting) == 1, f"{queue} has {len(fitting)} flavors for {pool.node_labels}"
    return fitting[0]


@BY_NAME
def test_a_secret_from_outside_has_the_keys_that_the_profile_reads(overlay: Overlay) -> None:
    secret, external = overlay.profile.storage.secret, of_kind(overlay.team, "ExternalSecret")
    if not external:
        # made by hand on kind; on EKS the accounts have a role
        roles = [one["metadata"].get("annotations", {}) for one in of_kind(overlay.team, "ServiceAccount")]
        assert overlay.name == "kind-cpu" or (secret is None and all("eks.amazonaws.com/role-arn" in r for r in roles))
        return
    assert secret is not None
    (spec,) = (one["spec"] for one in external)
    assert spec["target"]["name"] == secret.name
    assert {row["secretKey"] for row in spec["data"]} == {secret.access_key, secret.secret_key}
    assert spec["secretStoreRef"]["name"] in overlay.names(spec["secretStoreRef"]["kind"])


@BY_NAME
def test_the_launcher_of_kfp_opens_the_store_of_the_profile(overlay: Overlay) -> None:
    if "kfp-launcher" not in overlay.names("ConfigMap"):
        assert "argo-server" in overlay.settings()["KFP_ENDPOINT"]
        return
    data, storage = overlay.one("ConfigMap", "kfp-launcher")["data"], overlay.profile.storage
    default = yaml.safe_load(data["providers"])["s3"]["default"]
    address = urlsplit(storage.endpoint or f"https://s3.{storage.region}.amazonaws.com")
    assert (default["endpoint"], default["disableSSL"]) == (address.netloc, address.scheme == "http")
    keys = default["credentials"]
    if storage.secret is None:
        assert keys == {"fromEnv": True}
    else:
        named = [storage.secret.name, storage.secret.access_key, storage.secret.secret_key]
        assert list(keys["secretRef"].values()) == named
    bucket = urlsplit(overlay.settings()["TDM_R1_ROOT"]).netloc
    assert data["defaultPipelineRoot"] == f"s3://{bucket}/kfp"


@BY_NAME
def test_services_and_monitors_lead_to_a_port_of_a_pod(overlay: Overlay) -> None:
    templates = [template for _, template in pod_specs(of_kind(overlay.team, "Deployment"))]
    services = of_kind(overlay.team, "Service")
    for service in services:
        (template,) = [t for t in templates if matching(service["spec"]["selector"], t)]
        ports = {p["name"]: p["containerPort"] for c in containers(template) for p in c.get("ports", ())}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for monitor in of_kind(overlay.team, "ServiceMonitor"):
        (service,) = [s for s in services if matching(monitor["spec"]["selector"]["matchLabels"], s)]
        names = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= names


def matching(labels: Object, one: Object) -> bool:
    return bool(labels.items() <= one["metadata"]["labels"].items())


@pytest.fixture
def onprem() -> Overlay:
    return Overlay("onprem-h100")


def test_a_trainjob_runs_both_updates_as_the_command_line_takes_them(
    onprem: Overlay, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a finished run each finds its record and writes nothing; on another iteration it is refused."""
    before = tree(finished)
    assert {one["metadata"]["labels"]["tdm-r1/stage"] for one in onprem.update} == {
        *("surrogate_update", "generator_update")
    }
    for job in onprem.update:
        trainer = job["spec"]["trainer"]
        assert trainer["command"] == ["torchrun"]
        module, *line = trainer["args"][1:]
        assert (trainer["args"][0], module, line[:2]) == (
            "-m",
            "tdm_r1",
            ["stage", job["metadata"]["labels"]["tdm-r1/stage"]],
        )
        given = {variable["name"]: variable["value"] for variable in trainer["env"]}
        assert given["AWS_ENDPOINT_URL"] == onprem.profile.storage.endpoint
        for iteration, code in (("2", 0), ("9", 2)):
            values = given | {"TDM_R1_ROOT": str(finished), "TDM_R1_ITERATION": iteration}
            words = [word.replace("$(", "{").replace(")", "}").format(**values) for word in line]
            assert tdm_r1(*words) == code, capsys.readouterr().err
    assert tree(finished) == before


def test_all_nodes_of_a_trainjob_fit_into_its_queue_and_are_machines_of_the_update_pool(onprem: Overlay) -> None:
    pool = onprem.profile.pools.update
    runtime = onprem.one("TrainingRuntime")
    ((_, template),) = pod_specs([runtime])
    spec = template["spec"]
    assert (spec["nodeSelector"], spec["priorityClassName"]) == (pool.node_labels, pool.priority)
    assert spec["tolerations"] == [taint.model_dump(exclude_none=True) for taint in pool.tolerations]
    assert spec["serviceAccountName"] == onprem.profile.service_account
    limits: dict[str, Any] = spec["containers"][0]["resources"]["limits"]
    quota = flavor_for(onprem, str(pool.queue), pool)
    for job in onprem.update:
        assert job["metadata"]["labels"][QUEUE_LABEL] == pool.queue
        assert job["metadata"]["labels"][PRIORITY_LABEL] == pool.priority
        trainer, ref = job["spec"]["trainer"], job["spec"]["runtimeRef"]
        assert (ref["kind"], ref["name"]) == ("TrainingRuntime", runtime["metadata"]["name"])
        assert trainer["numProcPerNode"] == pool.processes
        assert int(limits[pool.accelerator]) == pool.accelerators
        assert cores_of(limits["cpu"]) == cores_of(pool.cpu)
        assert bytes_of(limits["memory"]) == bytes_of(pool.memory)
        assert int(quota[pool.accelerator]) >= int(limits[pool.accelerator]) * trainer["numNodes"]
        assert cores_of(quota["cpu"]) >= cores_of(limits["cpu"]) * trainer["numNodes"]
        assert bytes_of(quota["memory"]) >= bytes_of(limits["memory"]) * trainer["numNodes"]


def test_every_schema_of_a_foreign_kind_says_whose_and_which_it_is_and_is_used() -> None:
    files = sorted(Path(__file__).with_name("k8s").glob("schemas/*.json"))
    used = {(one["apiVersion"], one["kind"]) for overlay in EVERY for one in overlay.objects}
    for path in files:
        text = json.loads(path.read_text(encoding="utf-8"))
        assert re.search(r"_types\.go.* \d\.\d", text["$comment"]), path.name
        assert {(text["apiVersion"], kind) for kind in text["kinds"]} <= used, path.name
