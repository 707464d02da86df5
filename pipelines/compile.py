"""Write the compiled pipelines: `python -m pipelines.compile [--check]`."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from kfp import compiler

from pipelines.block import block
from pipelines.check import check
from pipelines.iteration import iteration

PIPELINES: Final[dict[str, Any]] = {"iteration": iteration, "block": block}
COMPILED: Final = Path(__file__).parent / "compiled"


def compiled_text(pipeline: Any) -> str:
    """Compile to YAML, without the line that names the SDK's version: it differs where nothing else does."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("sdkVersion:"))


def compile_all() -> dict[str, str]:
    """Compile and check every pipeline.

    Returns:
        YAML by file name.
    """
    texts = {f"{name}.yaml": compiled_text(pipeline) for name, pipeline in PIPELINES.items()}
    for text in texts.values():
        check(text)
    return texts


def stale(texts: dict[str, str], directory: Path) -> list[str]:
    """Return the names whose file in `directory` is missing or holds another text."""
    return [
        name
        for name, text in texts.items()
        if not (directory / name).is_file() or (directory / name).read_text(encoding="utf-8") != text
    ]


def main() -> int:
    """Write the files, or with --check only compare them; 1 means that some would change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a file would change")
    parser.add_argument("--out", type=Path, default=COMPILED, help="directory of the YAML files")
    arguments = parser.parse_args()
    texts = compile_all()
    if arguments.check:
        changed = stale(texts, arguments.out)
        if changed:
            print(
                f"error: not up to date: {', '.join(changed)}\n\nhint: run `python -m pipelines.compile`",
                file=sys.stderr,
            )
        return 1 if changed else 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (arguments.out / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
