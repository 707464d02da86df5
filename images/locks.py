"""Lock the closures again: `python -m images.locks [--upgrade] [UV OPTION …]`; needs `uv`, and asks the package index.

Further options go to `uv pip compile`. What a lock already names stays unless `--upgrade` is given.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
CUDA: Final = "train"
"""The one closure whose torch is PyPI's, with CUDA; the others take `+cpu` from PyTorch's own index."""
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"
PLATFORM: Final = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")


def command(name: str, options: list[str]) -> list[str]:
    """The words that lock one closure. PyTorch's index is left out where UV_FIND_LINKS has its wheel."""
    torch = [] if name == CUDA or "UV_FIND_LINKS" in os.environ else ["--extra-index-url", TORCH_INDEX]
    index = ["--index-strategy", "unsafe-best-match"] if torch else []  # safe: every file is named by its hash
    files = [f"images/{name}/requirements.in", "--output-file", f"images/{name}/requirements.lock"]
    given = ["--generate-hashes", "--no-header", "--only-binary", ":all:", "--quiet"]
    return [sys.executable, "-m", "uv", "pip", "compile", *files, *given, *PLATFORM, *torch, *index, *options]


def main() -> int:
    """Write every lock; stop at the first that cannot be made."""
    for file in sorted(FOLDER.glob("*/requirements.in")):
        name = file.parent.name
        environment = dict(os.environ)
        if name == CUDA:
            environment.pop("UV_FIND_LINKS", None)
        ended = subprocess.run(command(name, sys.argv[1:]), cwd=FOLDER.parent, env=environment, check=False)
        if ended.returncode:
            print(f"error: images/{name}/requirements.lock was not made: see above", file=sys.stderr)
            return ended.returncode
        print(f"images/{name}/requirements.lock", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
