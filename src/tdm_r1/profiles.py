"""What a cluster gives to each stage: frozen, unknown keys refused, documented under the field.

A profile is a function that returns a complete `Profile`, as a preset is for `RunConfig`. It never enters `run.json`.
A file of your own starts from a profile that is named here:

    extends = "1xA100"
    [pools.scoring]
    cpu = "16"
    price_per_hour = 0.68
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from tdm_r1.config import Count, NonNegative, Positive, Section
from tdm_r1.errors import ConfigError
from tdm_r1.quantities import Bytes, Cores, Name, bytes_of

PoolName = Literal["rollout", "update", "scoring", "control"]

POOL_OF: Final[Mapping[str, PoolName]] = MappingProxyType(
    {
        "encode_prompts": "rollout",
        "distill_base": "update",
        "rollout": "rollout",
        "reward_scoring": "scoring",
        "surrogate_update": "update",
        "generator_update": "update",
        "evaluation": "rollout",
    }
)
"""Where each stage runs. Judging a committed evaluation again needs no accelerator: that is on `scoring`."""


class Toleration(Section):
    key: str
    """Taint that is tolerated."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether any value of the taint will do."""
    value: str | None = None
    """Value of the taint when it has to be equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """Effect of the taint."""

    @model_validator(mode="after")
    def _value_is_asked_for(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError(f"operator={self.operator} and value={self.value!r}; Equal needs a value, Exists has none")
        return self


class Pool(Section):
    """One class of machine, and what a pod takes of it."""

    cpu: Cores
    """Request and limit alike, so that a stage always has the threads it was told to use."""
    memory: Bytes
    """Request and limit alike: a stage over its memory is killed, not its neighbour."""
    accelerators: Count = 0
    """Whole devices per pod. One process uses one of them."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Of a training stage in one pod (`tdm-r1 launch`), each with a device of its own; only in `update`."""
    accelerator: str = "nvidia.com/gpu"
    """Resource name of a device."""
    shared_memory: Bytes | None = None
    """Size of /dev/shm, counted against `memory`; none leaves the runtime's 64 MiB."""
    scratch: Bytes = "20Gi"
    """Limit of /tmp, where records are unpacked and packed: the largest record of a stage, twice."""
    node_labels: dict[str, str] = Field(default={})
    """Labels that a node must have; none runs anywhere."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that a pod accepts."""
    queue: Name | None = None
    """Kueue LocalQueue that admits the pods; none leaves Kueue out."""
    priority: Name | None = None
    """PriorityClass on Argo, and Kueue's WorkloadPriorityClass of the same name. KFP 2.17 can set only the latter."""
    timeout_seconds: Positive = 7200
    """After this long a pod is stopped. What it had not committed is done again by the next attempt."""
    spot: bool = False
    """Whether the provider may take the machine back; the planner then counts on it."""
    price_per_hour: NonNegative | None = None
    """Price of one pod's share of a machine, in any currency; none leaves costs out."""

    @model_validator(mode="after")
    def _amounts_agree(self) -> Pool:
        if 0 < self.accelerators < self.processes:
            raise ValueError(f"processes={self.processes} share accelerators={self.accelerators}; each needs its own")
        if self.shared_memory and bytes_of(self.shared_memory) >= bytes_of(self.memory):
            raise ValueError(
                f"shared_memory={self.shared_memory} is counted against memory={self.memory}, and fills it"
            )
        return self


class Pools(Section):
    rollout: Pool
    """Sampling: prompts, rollouts, evaluations."""
    update: Pool
    """Training: distillation, surrogate, generator."""
    scoring: Pool
    """Black-box rewards, on CPUs."""
    control: Pool = Pool(cpu="500m", memory="1Gi", scratch="1Gi", timeout_seconds=900)
    """What only looks at the run directory and decides."""

    @model_validator(mode="after")
    def _only_training_is_shared(self) -> Pools:
        for name in ("rollout", "scoring", "control"):
            if (found := getattr(self, name).processes) > 1:
                raise ValueError(f"{name} has processes={found}, but only the stages of `update` train in several")
        return self


class Secret(Section):
    name: Name
    """Kubernetes Secret in the namespace of the run."""
    access_key: str = "AWS_ACCESS_KEY_ID"
    """Its key that holds the access key."""
    secret_key: str = "AWS_SECRET_ACCESS_KEY"
    """Its key that holds the secret key."""


class Storage(Section):
    secret: Secret | None = None
    """Credentials; none when the service account has a role of its own (IRSA, workload identity)."""
    endpoint: str | None = None
    """URL of an S3 server of your own; none is AWS."""
    region: str | None = None
    """Region; none is the client's default."""


class Security(Section):
    """Every pod keeps Pod Security `restricted`; only who it runs as can be chosen."""

    user: Annotated[int, Field(ge=1)] = 65532
    """User id, never root."""
    group: Annotated[int, Field(ge=1)] = 65532
    """Group id, also of volumes."""


class Profile(Section):
    name: str
    """Name of the profile, or of the file without its ending."""
    namespace: Name = "tdm-r1"
    """Where the pods run."""
    service_account: Name = "tdm-r1-stage"
    """Whom the pods are; needs no right in the cluster beyond what the orchestrator asks for."""
    pools: Pools
    """Machines by what they are for."""
    timeouts: dict[str, Positive] = Field(default={})
    """Seconds by stage, where the pool's limit does not fit."""
    shards_at_once: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Shards in flight; the planner says how many keep scoring from being the bottleneck."""
    storage: Storage = Storage(secret=Secret(name="tdm-r1-s3"))
    """Where the run directory lies, and who may open it."""
    pushgateway: str | None = None
    """URL of a Prometheus Pushgateway that every stage tells what it did; none pushes nothing."""
    security: Security = Security()
    """Who the processes are."""

    @model_validator(mode="after")
    def _timeouts_are_of_stages(self) -> Profile:
        if unknown := sorted(set(self.timeouts) - set(POOL_OF)):
            raise ValueError(f"timeouts has {unknown[0]!r}, but the stages are {', '.join(POOL_OF)}")
        return self

    def pool_of(self, stage: str) -> Pool:
        """The pool on which a stage runs; what is no stage is `control`."""
        return self.pool(POOL_OF.get(stage, "control"))

    def pool(self, name: PoolName) -> Pool:
        of = self.pools
        return {"rollout": of.rollout, "update": of.update, "scoring": of.scoring, "control": of.control}[name]

    def timeout_of(self, stage: str) -> int:
        """Seconds after which a pod of a stage is stopped."""
        return self.timeouts.get(stage, self.pool_of(stage).timeout_seconds)


_GPU_TAINT: Final = Toleration(key="nvidia.com/gpu")
_SPOT_TAINT: Final = Toleration(key="tdm-r1/spot", operator="Equal", value="true")
_POOL, _DAY = "tdm-r1/pool", 86_400


def _accelerated(**values: Any) -> Pool:
    """A pool of labelled nodes with devices, whose pods tolerate the devices' own taint."""
    usual = {"node_labels": {_POOL: "gpu"}, "tolerations": (_GPU_TAINT,), "queue": "tdm-r1-gpu"}
    return Pool(**{**usual, "accelerators": 1, "priority": "tdm-r1-train", **values})


def _scoring(**values: Any) -> Pool:
    usual = {"node_labels": {_POOL: "cpu"}, "queue": "tdm-r1-cpu", "priority": "tdm-r1-score"}
    return Pool(**{**usual, "cpu": "4", "memory": "16Gi", **values})


def smoke() -> Profile:
    """The embedded world on any node, without a device or a queue: kind, minikube, CI."""
    plain = Pool(cpu="1", memory="4Gi", scratch="2Gi", timeout_seconds=1800)
    scoring = Pool(cpu="1", memory="2Gi", scratch="2Gi", timeout_seconds=1800)
    return Profile(name="smoke", pools=Pools(rollout=plain, update=plain, scoring=scoring), shards_at_once=2)


def one_a100() -> Profile:
    """One device of 80 GB per pod; scoring on CPU nodes beside it."""
    gpu = _accelerated(cpu="8", memory="96Gi", shared_memory="16Gi", scratch="100Gi", timeout_seconds=4 * 3600)
    return Profile(
        name="1xA100",
        pools=Pools(rollout=gpu, update=gpu, scoring=_scoring()),
        timeouts={"distill_base": 3 * _DAY},
        shards_at_once=4,
    )


def eight_h100() -> Profile:
    """A node of eight devices: eight shards roll out at once, one device each; an update has all, one per process."""
    share = {"cpu": "20", "memory": "200Gi", "shared_memory": "32Gi", "scratch": "200Gi"}
    node = {"cpu": "160", "memory": "1600Gi", "shared_memory": "256Gi", "scratch": "1600Gi"}
    rollout = _accelerated(**share, timeout_seconds=2 * 3600)
    update = _accelerated(**node, timeout_seconds=2 * 3600, accelerators=8, processes=8)
    return Profile(
        name="8xH100",
        pools=Pools(rollout=rollout, update=update, scoring=_scoring(cpu="16", memory="64Gi")),
        timeouts={"distill_base": 2 * _DAY},
        shards_at_once=8,
    )


def spot() -> Profile:
    """Rollouts and scoring on machines that may be taken back; updates, whose loss costs more, on others."""
    on_demand = one_a100()
    gpu, scoring = on_demand.pools.update, on_demand.pools.scoring
    taken = {"spot": True, "timeout_seconds": 3600}
    pools = Pools(
        rollout=gpu.model_copy(
            update={**taken, "node_labels": {_POOL: "gpu-spot"}, "tolerations": (_GPU_TAINT, _SPOT_TAINT)}
        ),
        update=gpu,
        scoring=scoring.model_copy(update={**taken, "node_labels": {_POOL: "cpu-spot"}, "tolerations": (_SPOT_TAINT,)}),
    )
    return on_demand.model_copy(update={"name": "spot", "pools": pools, "shards_at_once": 8})


PROFILES: Final[Mapping[str, Callable[[], Profile]]] = MappingProxyType(
    {function().name: function for function in (smoke, one_a100, eight_h100, spot)}
)
DEFAULT_PROFILE: Final = "1xA100"


def open_profile(name: str) -> Profile:
    """A profile by its name, or from a TOML file that extends one.

    Raises:
        ConfigError: for an unknown name, a file that cannot be read, or a value that is refused.
    """
    if not name.endswith(".toml"):
        if name not in PROFILES:
            raise ConfigError(
                f"there is no profile `{name}`", hint=f"the profiles are {', '.join(PROFILES)}, or give a .toml file"
            )
        return PROFILES[name]()
    try:
        changes = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the profile `{name}` cannot be read: {error}", hint="give the path of a TOML file"
        ) from error
    base = open_profile(str(changes.pop("extends", DEFAULT_PROFILE)))
    tree = _merged(base.model_dump(), {"name": Path(name).stem, **changes})
    try:
        return Profile.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the profile"
        raise ConfigError(
            f"`{place}` in `{name}` is refused: {first['msg']}",
            hint="every key is documented in src/tdm_r1/profiles.py",
        ) from error


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` over it, table by table; replaced whole are values, node labels, timeouts and storage.

    TOML knows no null, so a `[storage]` without `secret` is how a file says that the service account has a role.
    """
    whole = {"node_labels", "timeouts", "storage"}
    return {**base} | {
        key: _merged(base[key], value)
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and key not in whole
        else value
        for key, value in changes.items()
    }
