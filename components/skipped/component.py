"""Container that stands for an iteration after the loop was stopped."""
# mypy: allow-untyped-decorators, disable-error-code="valid-type"
# ruff: noqa: ARG001 - the container finds its ports in `{{$}}`

from typing import Final

from kfp import dsl

from components.common import TRAIN_IMAGE

_PASS_ON: Final = """\
import json, pathlib, sys
task = json.loads(sys.argv[1])
files = task["outputs"]["parameters"]
pathlib.Path(files["done"]["outputFile"]).write_text(task["inputs"]["parameterValues"]["dep"])
pathlib.Path(files["stop"]["outputFile"]).write_text("true")
"""


@dsl.container_component
def skipped(dep: str, done: dsl.OutputPath(str), stop: dsl.OutputPath(bool)) -> dsl.ContainerSpec:
    """Do nothing, and hand the end of the loop on to the next iteration.

    Args:
        dep: `done` of the last iteration that ran.
        done: the same digest.
        stop: always true.
    """
    return dsl.ContainerSpec(
        image=TRAIN_IMAGE,
        command=["python", "-c", _PASS_ON],
        args=[dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
