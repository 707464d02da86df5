"""Container of the stage `reward_scoring` for a variant."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - ports that only order tasks, or that the command finds in `{{$}}`, are not in argv

from kfp import dsl

from components.common import SCORER_IMAGE, stage_container


@dsl.container_component
def variant_scoring(
    root: str,
    variant: str,
    iteration: int,
    shard: int,
    metrics: dsl.Output[dsl.Metrics],
    record: dsl.Output[dsl.Dataset],
    done: dsl.OutputPath(str),
) -> dsl.ContainerSpec:
    """Score the committed images of one shard again, by the reward of a variant.

    Args:
        root: run directory, s3://… or a path.
        variant: name that `tdm-r1 variant` gave to the reward.
        iteration: iteration whose rollout is scored.
        shard: shard number, from 0.
        metrics: mean reward, failures, and how far the variant agrees with the run, for the table in the KFP page.
        record: the manifest, with its digest and where it lies.
        done: digest of the committed manifest.
    """
    flags = {"iteration": iteration, "shard": shard, "variant": variant}
    return stage_container("reward_scoring", root, image=SCORER_IMAGE, **flags)
