"""Write the compiled pipelines: `python -m pipelines.compile [--check] [--profile 8xH100 --out DIR] [NAME …]`."""

import argparse
import os
import sys
import tempfile
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from kfp import compiler

from pipelines.check import BrokenPipelineError, check, positive

PIPELINES: Final = ("iteration", "block", "loop", "score_only", "evaluate_only")
"""Each is a function of the module of the same name."""
NAMES: Final = (*PIPELINES, "argo_loop", "argo_cron")
"""Files without their ending."""
ROOT: Final = Path(__file__).parents[1]
COMPILED: Final = Path(__file__).parent / "compiled"


def compiled_text(pipeline: Any) -> str:
    """Compile to YAML, without the line that names the SDK's version: it differs where nothing else does."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("sdkVersion:"))


def compile_all(
    lists: Mapping[str, int] | None = None, names: Collection[str] = NAMES, *, retry: bool = True
) -> dict[str, str]:
    """Compile and check pipelines, for the profile that the environment names.

    Args:
        lists: lengths of list parameters by name, for the sizes.
        names: which of NAMES.
        retry: refuse a run that is too large for KFP's retry, though it could run.

    Returns:
        YAML by file name.
    """
    texts = {}
    for name in (name for name in PIPELINES if name in names):
        text = compiled_text(getattr(import_module(f"pipelines.{name}"), name))
        try:
            check(text, lists, retry=retry)
        except BrokenPipelineError as error:
            raise BrokenPipelineError(f"{name}: {error}") from error
        texts[f"{name}.yaml"] = text
    argo: dict[str, str] = import_module("pipelines.argo").compiled_texts()
    return texts | {file: text for file, text in argo.items() if file.removesuffix(".yaml") in names}


def stale(texts: Mapping[str, str], directory: Path) -> list[str]:
    """Return the names whose file in `directory` is missing or holds another text."""
    return [
        name
        for name, text in texts.items()
        if not (directory / name).is_file() or (directory / name).read_text(encoding="utf-8") != text
    ]


def _write(texts: Mapping[str, str], directory: Path) -> None:
    for name, text in texts.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")


def _compare(files: Mapping[Path, Mapping[str, str]]) -> int:
    changed = [name for directory, texts in files.items() for name in stale(texts, directory)]
    if changed:
        found = f"error: not up to date: {', '.join(changed)}"
        print(f"{found}\n\nhint: run `python -m pipelines.compile`", file=sys.stderr)
    return 1 if changed else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("names", nargs="*", metavar="NAME", help=f"all without any: {', '.join(NAMES)}")
    words.add_argument("--check", action="store_true", help="write nothing, fail if a file would change")
    words.add_argument("--out", type=Path, default=COMPILED, help="directory of the YAML files")
    words.add_argument("--profile", help="name of a profile, or a TOML file; TDM_R1_PROFILE without it")
    words.add_argument("--iterations", type=positive, help="iterations per block; TDM_R1_BLOCK_ITERATIONS without it")
    words.add_argument("--shards", type=positive, help="shards that `run.json` has; the sizes are checked for them")
    words.add_argument("--without-retry", action="store_true", help="allow a run that KFP's retry cannot bear")
    return words


def main() -> int:
    """Write the files, or with --check only compare them; 1 means that some would change, 2 that one is refused."""
    given = parser().parse_args()
    if unknown := sorted(set(given.names) - set(NAMES)):
        print(f"error: there is no pipeline `{unknown[0]}`\n\nhint: they are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    chosen = {"TDM_R1_PROFILE": given.profile, "TDM_R1_BLOCK_ITERATIONS": given.iterations}
    os.environ.update({name: str(value) for name, value in chosen.items() if value is not None})
    try:
        positive(os.environ.get("TDM_R1_BLOCK_ITERATIONS", "1"))
        lists = {"shards": given.shards, "iterations": given.iterations}
        lengths = {name: count for name, count in lists.items() if count is not None}
        files = {given.out: compile_all(lengths, given.names or NAMES, retry=not given.without_retry)}
    except (BrokenPipelineError, argparse.ArgumentTypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.out == COMPILED and not given.names:
        files[ROOT / "docs/operations"] = import_module("pipelines.stages").pages(files[COMPILED])
    if given.check:
        return _compare(files)
    for directory, texts in files.items():
        _write(texts, directory)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
