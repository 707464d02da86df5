"""Download every wheel that the images need: `python -m images.wheelhouse [NAME …] [-- PIP OPTION …]`.

They land in `images/wheelhouse/`, which each build sees. Together with `--build-arg "PIP_ARGS=--no-index --find-links
/wheels"` nothing is fetched while an image is built. Files are checked against the hashes of the locks.
"""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

from images.build import IMAGES
from images.locks import CUDA, TORCH_INDEX

FOLDER: Final = Path(__file__).parent
PLATFORMS: Final = (
    *("linux_x86_64", "manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"),
    *(f"manylinux_2_{minor}_x86_64" for minor in range(5, 37)),
)
"""Tags of wheels that run on the base, glibc 2.36."""


def command(lock: Path, index: list[str], options: list[str]) -> list[str]:
    """The words that download one lock for the images' Python, whatever this one is."""
    target = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    given = ["--quiet", "--only-binary", ":all:", "--no-deps", "--require-hashes", "--dest", str(FOLDER / "wheelhouse")]
    files = ["--requirement", str(lock)]
    return [sys.executable, "-m", "pip", "download", *given, *target, *platforms, *files, *index, *options]


def main() -> int:
    """Download what is not there yet; stop at the first lock that is not to be had."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    names, options = words[:cut] or list(IMAGES), words[cut + 1 :]
    for name in ["build", *names]:
        lock, mark = FOLDER / name / "requirements.lock", FOLDER / "wheelhouse" / f".{name}"
        digest = sha256(lock.read_bytes()).hexdigest()
        if mark.is_file() and mark.read_text(encoding="utf-8") == digest:
            continue
        index = [] if options or name in (CUDA, "build") else ["--extra-index-url", TORCH_INDEX]
        if code := subprocess.run(command(lock, index, options), check=False).returncode:
            hint = f"the names are {', '.join(IMAGES)}"
            print(f"error: {lock} was not downloaded: see above\n\nhint: {hint}", file=sys.stderr)
            return code
        mark.write_text(digest, encoding="utf-8")
    print(f"{len(list((FOLDER / 'wheelhouse').glob('*.whl')))} wheels in {FOLDER / 'wheelhouse'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
