"""What `tdm-r1 drive` does with its arguments: refuse what cannot work, take the lease, drive."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final

from tdm_r1 import console
from tdm_r1.artifacts.store import open_store
from tdm_r1.drive import argo, kfp
from tdm_r1.drive.cluster import check_cluster, kubernetes_api
from tdm_r1.drive.driver import Driver, Limits
from tdm_r1.drive.http import Api, require_endpoint
from tdm_r1.drive.lease import Lease
from tdm_r1.drive.notify import Webhook
from tdm_r1.drive.package import read_package
from tdm_r1.drive.rules import Rules
from tdm_r1.drive.scheduler import Scheduler
from tdm_r1.errors import ConfigError, TdmR1Error
from tdm_r1.profiles import POOL_OF, open_profile
from tdm_r1.runtime.dealing import require_all_fit
from tdm_r1.runtime.run_file import read_config
from tdm_r1.telemetry.outlets import Outlets

ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where KFP's manifests project the token of a pod's account."""
LOOKS_AT_LEAST: Final = 1.0
"""Seconds between two looks at the storage for metrics."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where blocks are submitted, and what a block is there."""

    endpoint: str
    pipeline: Path | None = None
    pipeline_name: str = ""
    pipeline_version: str = ""
    argo_template: str = ""
    namespace: str = ""
    experiment: str = "tdm-r1"
    service_account: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None
    kubernetes: str | None = None


def drive_run(
    root: str,
    target: Target,
    rules: Rules,
    limits: Limits,
    *,
    lease_seconds: float,
    lease_wait: float,
    webhook: str | None,
    only_check: bool,
    outlets: Outlets,
) -> None:
    """Check everything, and unless that was all, drive the run to its end.

    Raises:
        ConfigError: before anything is written, when a block could not be submitted.
    """
    store = open_store(root)
    config = read_config(store)
    scheduler = open_scheduler(target)
    scheduler.check()
    require_all_fit(scheduler.processes, config)
    require_small_enough(scheduler, config.rollout.shards)
    require_in_cluster(target, scheduler.queues)
    if only_check:
        console.OUT.print(f"{target.endpoint} takes blocks of {root}", soft_wrap=True)
        return
    store.require_writable()
    driver = Driver(
        store=store,
        config=config,
        scheduler=scheduler,
        lease=Lease(store, ttl=lease_seconds),
        rules=rules,
        limits=limits,
        webhook=Webhook(webhook, say),
        say=say,
    )
    with observed(driver, outlets):
        console.OUT.print(hold_and_drive(driver, lease_wait), soft_wrap=True)


@contextmanager
def observed(driver: Driver, outlets: Outlets) -> Iterator[None]:
    """Publish the run and the driver until the end of the block, if that was asked for."""
    if not outlets.any:
        yield
        return
    from tdm_r1.runtime.observe import Observer
    from tdm_r1.runtime.watch import Watch

    observer = Observer(driver.store.root, outlets, say)
    watch = Watch(observer, driver.store, driver.config, say, records=True)
    driver.count = observer.driven
    with observer.serving(), watch.kept(max(driver.limits.poll, LOOKS_AT_LEAST)):
        yield


def prices_of(profile: str) -> dict[str, float]:
    """Price of a pod for an hour, by stage.

    Raises:
        ConfigError: when the profile has no price for a pool that a stage runs in.
    """
    found = open_profile(profile)
    prices = {stage: found.pool_of(stage).price_per_hour for stage in POOL_OF}
    if missing := sorted({POOL_OF[stage] for stage, price in prices.items() if price is None}):
        raise ConfigError(
            f"--budget needs prices, and pool `{missing[0]}` of profile `{found.name}` has none",
            hint="give a .toml file that extends it with price_per_hour in [pools.rollout], [pools.update], "
            "[pools.scoring]",
        )
    return {stage: price for stage, price in prices.items() if price is not None}


def open_scheduler(target: Target) -> Scheduler:
    """The scheduler of a target.

    Raises:
        ConfigError: when it is not clear which, or when its pipeline is no block.
    """
    chosen = [bool(target.pipeline), bool(target.pipeline_name), bool(target.argo_template)]
    if sum(chosen) != 1:
        raise ConfigError(
            f"expected one of --pipeline, --pipeline-name and --argo-template, found {sum(chosen)}",
            hint="write --pipeline pipelines/compiled/block.yaml",
        )
    token = target.token_file or (ACCOUNT_TOKEN if ACCOUNT_TOKEN.exists() else None)
    endpoint = require_endpoint(target.endpoint)
    what, hint = ("an Argo server", argo.HINT) if target.argo_template else ("a KFP server", kfp.HINT)
    api = Api(endpoint=endpoint, what=what, hint=hint, token_file=token, ca_file=target.ca_file)
    package = read_package(target.pipeline) if target.pipeline else None
    if target.argo_template:
        return argo.Argo(
            api=api,
            template=target.argo_template,
            namespace=target.namespace,
            service_account=target.service_account,
        )
    return kfp.Kfp(
        api=api,
        package=package,
        pipeline_name=target.pipeline_name,
        version_name=target.pipeline_version,
        namespace=target.namespace,
        experiment=target.experiment,
        service_account=target.service_account,
    )


def require_small_enough(scheduler: Scheduler, shards: int) -> None:
    """Refuse a pipeline that grows beyond what Argo or Linux takes; say it when only KFP's retry would not work.

    Args:
        shards: of `run.json`.

    Raises:
        ConfigError: with the sizes, which are estimates, and the limits.
    """
    found = list(scheduler.breaches(shards))
    for breach in (breach for breach in found if breach.retry_only):
        say(f"KFP's page cannot retry a block, the driver can: {breach.text}")
    if fatal := [breach.text for breach in found if not breach.retry_only]:
        raise ConfigError(
            f"the pipeline is too large for a run with rollout.shards={shards}: {'; '.join(fatal)}",
            hint="compile it with fewer --iterations, or begin a run with fewer rollout.shards; `tdm-r1 plan` shows "
            "what fits",
        )


def require_in_cluster(target: Target, queues: Sequence[str]) -> None:
    """Refuse a namespace or a Kueue queue that the cluster does not have, where Kubernetes can be asked.

    Raises:
        ConfigError: of `check_cluster`.
    """
    unchecked = check_cluster(kubernetes_api(target.kubernetes), target.namespace, queues)
    if unchecked:
        say(f"namespace and queues were not looked for: {unchecked}")


def hold_and_drive(driver: Driver, wait: float) -> str:
    """Drive while holding the lease; let go of it however that ends, but for a crash."""
    with told_to_end(driver):
        fence = driver.lease.acquire(wait)
        say(f"driver {fence} of {driver.store.root}")
        with driver.lease.kept(say):
            try:
                reason = driver.drive()
            except KeyboardInterrupt:
                let_go(driver, "interrupted")
                raise
            except TdmR1Error as error:
                let_go(driver, error.message)
                driver.webhook.send("gave_up", error.message, root=driver.store.root, fence=fence)
                raise
            let_go(driver, reason)
    driver.webhook.send("finished", reason, root=driver.store.root, fence=fence)
    return reason


def let_go(driver: Driver, reason: str) -> None:
    """Release the lease; when the storage is down the next driver has to wait."""
    try:
        driver.lease.release(reason)
    except TdmR1Error as error:
        say(f"the lease was not released: {error.message}")


@contextmanager
def told_to_end(driver: Driver) -> Iterator[None]:
    """Make SIGTERM, as Kubernetes sends it to a pod, end the driver in order."""

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        driver.ended.set()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(text: str) -> None:
    """One line with the time, on stderr."""
    console.ERR.print(f"{datetime.now(UTC):%H:%M:%S} {console.printable(text)}", soft_wrap=True, markup=False)
