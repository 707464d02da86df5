"""The loop for clusters without KFP: a WorkflowTemplate, and a CronWorkflow that starts it again and again.

The same commands as in the KFP pipelines, without artifacts: what comes next is read from the run directory. A step
that exits with 75 is started again; any other code ends the workflow, and the next one resumes from what is committed.
"""

from typing import Any, Final

from hera.workflows import Container, CronWorkflow, Parameter, Step, Steps, WorkflowTemplate
from hera.workflows import models as m

from components.common import SCORER_IMAGE, TRAIN_IMAGE
from pipelines.pools import PRIORITY_LABEL, PROFILE, QUEUE_LABEL, launched, plain_environment
from tdm_r1.profiles import Pool

NAME: Final = "tdm-r1-loop"
RETRIES: Final = 8
DEPTH: Final = 90
"""Iterations of one workflow at most: Argo ends a recursion that is deeper than 100 templates."""
NEXT_FILE: Final = "/tmp/next"
ROOT: Final = "{{workflow.parameters.root}}"
ITERATION: Final = "{{inputs.parameters.iteration}}"
SHARD: Final = "{{inputs.parameters.shard}}"


def compiled_texts() -> dict[str, str]:
    """YAML by file name."""
    return {f"argo_{name}.yaml": str(made.to_yaml()) for name, made in {"loop": loop(), "cron": cron()}.items()}


def loop() -> WorkflowTemplate:
    """`main`: prompts, base, then `loop`, which calls itself until nothing is next or `budget` iterations have run."""
    return WorkflowTemplate(
        name=NAME,
        namespace=PROFILE.namespace,
        entrypoint="main",
        arguments=[
            m.Parameter(name="root", description="Run directory, s3://…; holds run.json."),
            m.Parameter(name="shards", value="[0]", description="Shard numbers, all those of run.json, as JSON."),
            m.Parameter(name="budget", value=str(DEPTH), description="At most so many iterations."),
        ],
        service_account_name=PROFILE.service_account,
        synchronization=m.Synchronization(mutexes=[m.Mutex(name=ROOT)]),
        pod_gc=m.PodGC(strategy="OnPodSuccess"),
        ttl_strategy=m.TTLStrategy(seconds_after_completion=7 * 86_400),
        security_context=_pod_security(),
        workflow_metadata=m.WorkflowMetadata(labels={"app.kubernetes.io/part-of": "tdm-r1"}),
        templates=[_main(), _loop(), _iteration(), _shard(), *_containers()],
    )


def cron() -> CronWorkflow:
    """Starts the loop every ten minutes unless one runs; the root has to be filled in."""
    return CronWorkflow(
        name=NAME,
        namespace=PROFILE.namespace,
        schedules=["*/10 * * * *"],
        concurrency_policy="Forbid",
        starting_deadline_seconds=0,
        successful_jobs_history_limit=3,
        failed_jobs_history_limit=10,
        cron_suspend=True,
        workflow_template_ref=m.WorkflowTemplateRef(name=NAME),
        arguments=[m.Parameter(name="root", value="s3://BUCKET/runs/NAME")],
    )


def _main() -> Steps:
    once = [Step(name=stage, template=stage) for stage in ("encode-prompts", "distill-base")]
    begin = [
        Step(name="baseline", template="evaluation", arguments={"iteration": "0"}),
        Step(name="loop", template="loop", arguments={"budget": "{{workflow.parameters.budget}}"}),
    ]
    return Steps(name="main", sub_steps=[*once, begin])


def _loop() -> Steps:
    """Ask what is next; run it; do the same again with one less to go."""
    found = "{{steps.next.outputs.parameters.iteration}}"
    goes_on = f"'{found}' != 'none' && {{{{inputs.parameters.budget}}}} > 0"
    left = "{{=asInt(inputs.parameters.budget) - 1}}"
    return Steps(
        name="loop",
        inputs=[Parameter(name="budget")],
        sub_steps=[
            Step(name="next", template="next"),
            Step(name="iterate", template="iteration", arguments={"iteration": found}, when=goes_on),
            Step(name="again", template="loop", arguments={"budget": left}, when=goes_on),
        ],
    )


def _iteration() -> Steps:
    """Shards side by side, so many at once as the profile says; then the updates and the evaluation."""
    shards = Step(
        name="shards",
        template="shard",
        with_param="{{workflow.parameters.shards}}",
        arguments={"iteration": ITERATION, "shard": "{{item}}"},
    )
    rest = ("surrogate-update", "generator-update", "evaluation")
    after = [Step(name=stage, template=stage, arguments={"iteration": ITERATION}) for stage in rest]
    return Steps(
        name="iteration",
        inputs=[Parameter(name="iteration")],
        parallelism=PROFILE.shards_at_once,
        sub_steps=[shards, *after],
    )


def _shard() -> Steps:
    """Scoring begins as soon as its own shard has rolled out."""
    arguments = {"iteration": ITERATION, "shard": SHARD}
    return Steps(
        name="shard",
        inputs=[Parameter(name="iteration"), Parameter(name="shard")],
        sub_steps=[Step(name=stage, template=stage, arguments=arguments) for stage in ("rollout", "reward-scoring")],
    )


def _containers() -> list[Container]:
    sharded, plain = ("iteration", "shard"), ("iteration",)
    inputs = {
        "encode_prompts": (),
        "distill_base": (),
        "rollout": sharded,
        "reward_scoring": sharded,
        "surrogate_update": plain,
        "generator_update": plain,
        "evaluation": plain,
    }
    return [_stage(stage, names) for stage, names in inputs.items()] + [_next()]


def _stage(stage: str, inputs: tuple[str, ...]) -> Container:
    values = [word for name in inputs for word in (f"--{name}", f"{{{{inputs.parameters.{name}}}}}")]
    image = SCORER_IMAGE if stage == "reward_scoring" else TRAIN_IMAGE
    words = launched(PROFILE.pool_of(stage), ["stage", stage, "--root", ROOT, *values])
    return _container(stage, image, words, [Parameter(name=n) for n in inputs])


def _next() -> Container:
    result = Parameter(name="iteration", value_from=m.ValueFrom(path=NEXT_FILE))
    return _container("next", TRAIN_IMAGE, ["next", "--root", ROOT, "--out", NEXT_FILE], [], [result])


def _container(
    name: str, image: str, args: list[str], inputs: list[Parameter], outputs: list[Parameter] | None = None
) -> Container:
    """A pod of the pool on which the stage runs, under Pod Security `restricted`, with a read-only root."""
    pool = PROFILE.pool_of(name)
    volumes, mounts = _volumes(pool)
    return Container(
        name=name.replace("_", "-"),
        image=image,
        command=["tdm-r1"],
        args=args,
        inputs=inputs,
        outputs=outputs,
        env=_environment(),
        resources=_resources(pool),
        volumes=volumes,
        volume_mounts=mounts,
        node_selector=pool.node_labels or None,
        tolerations=[m.Toleration(**taint.model_dump(exclude_none=True)) for taint in pool.tolerations] or None,
        labels=_labels(pool),
        priority_class_name=pool.priority,
        active_deadline_seconds=PROFILE.timeout_of(name),
        retry_strategy=_retry(),
        security_context=m.SecurityContext(
            allow_privilege_escalation=False,
            capabilities=m.Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
    )


def _retry() -> m.RetryStrategy:
    """Only what says itself that it is temporary. A node that was lost is for the next workflow."""
    return m.RetryStrategy(
        limit=RETRIES,
        retry_policy="Always",
        expression="asInt(lastRetry.exitCode) == 75",
        backoff=m.Backoff(duration="30s", factor=2, max_duration="1h"),
    )


def _resources(pool: Pool) -> m.ResourceRequirements:
    amounts: dict[str, Any] = {"cpu": pool.cpu, "memory": pool.memory}
    if pool.accelerators:
        amounts[pool.accelerator] = str(pool.accelerators)
    return m.ResourceRequirements(requests=amounts, limits=amounts)


def _volumes(pool: Pool) -> tuple[list[m.Volume], list[m.VolumeMount]]:
    """/tmp, and /dev/shm in memory where the pool has one: the root of the container is read-only."""
    sizes: dict[str, tuple[str, str | None, str]] = {"scratch": ("/tmp", None, pool.scratch)}
    if pool.shared_memory:
        sizes["shared-memory"] = ("/dev/shm", "Memory", pool.shared_memory)
    volumes = [
        m.Volume(name=name, empty_dir=m.EmptyDirVolumeSource(medium=medium, size_limit=m.Quantity(root=size)))
        for name, (_, medium, size) in sizes.items()
    ]
    return volumes, [m.VolumeMount(name=name, mount_path=path) for name, (path, _, _) in sizes.items()]


def _labels(pool: Pool) -> dict[str, str] | None:
    if pool.queue is None:
        return None
    return {QUEUE_LABEL: pool.queue, **({PRIORITY_LABEL: pool.priority} if pool.priority else {})}


def _environment() -> list[m.EnvVar]:
    storage = PROFILE.storage
    found = [m.EnvVar(name=name, value=value) for name, value in plain_environment().items() if value]
    if storage.secret:
        keys = {"AWS_ACCESS_KEY_ID": storage.secret.access_key, "AWS_SECRET_ACCESS_KEY": storage.secret.secret_key}
        for name, key in keys.items():
            selector = m.SecretKeySelector(name=storage.secret.name, key=key)
            found.append(m.EnvVar(name=name, value_from=m.EnvVarSource(secret_key_ref=selector)))
    return found


def _pod_security() -> m.PodSecurityContext:
    """Pod Security `restricted`, for the containers that Argo adds as well."""
    security = PROFILE.security
    return m.PodSecurityContext(
        run_as_non_root=True,
        run_as_user=security.user,
        run_as_group=security.group,
        fs_group=security.group,
        seccomp_profile=m.SeccompProfile(type="RuntimeDefault"),
    )
