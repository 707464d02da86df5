"""Download every wheel that the images need: `python -m images.wheelhouse [NAME …] [-- PIP OPTION …]`.

They land in `images/wheelhouse/`, which each build sees. Together with `--build-arg "PIP_ARGS=--no-index --find-links
/wheels"` nothing is fetched while an image is built. Files are checked against the hashes of the locks.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from images.build import IMAGES
from images.locks import CUDA, TORCH_INDEX

FOLDER: Final = Path(__file__).parent
WHEELHOUSE: Final = FOLDER / "wheelhouse"
PLATFORMS: Final = (
    *("linux_x86_64", "manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"),
    *(f"manylinux_2_{minor}_x86_64" for minor in range(5, 37)),
)
"""Tags of wheels that run on the base, glibc 2.36."""
PIN: Final = re.compile(r"^([a-z0-9-]+)==(\S+) \\\n(?:    --hash=\S+(?: \\)?\n)+", re.MULTILINE)


def lock_of(name: str) -> Path:
    """The lock of a closure."""
    return FOLDER / name / "requirements.lock"


def requirements(locks: Iterable[str]) -> list[str]:
    """The pins of several locks, each once: one text, and another for each further version of the same library."""
    texts: list[dict[str, str]] = []
    for pin in {found[0]: found for lock in locks for found in PIN.finditer(lock)}.values():
        text = next((text for text in texts if pin[1] not in text), None)
        if text is None:
            texts.append(text := {})
        text[pin[1]] = pin[0]
    return ["".join(text.values()) for text in texts]


def command(file: Path, index: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words that download one file of pins for the images' Python, whatever this one is."""
    target = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    given = ["--quiet", "--only-binary", ":all:", "--no-deps", "--require-hashes", "--dest", str(WHEELHOUSE)]
    files = ["--requirement", str(file)]
    return [sys.executable, "-m", "pip", "download", *given, *target, *platforms, *files, *index, *options]


def download(names: Sequence[str], index: Sequence[str], options: Sequence[str]) -> int:
    """Download what these closures hold, and mark each; the exit code of pip."""
    with tempfile.TemporaryDirectory() as scratch:
        for text in requirements(lock_of(name).read_text(encoding="utf-8") for name in names):
            file = Path(scratch) / "requirements.txt"
            file.write_text(text, encoding="utf-8")
            if code := subprocess.run(command(file, index, options), check=False).returncode:
                hint = f"the names are {', '.join(IMAGES)}"
                print(
                    f"error: not all of {', '.join(names)} was downloaded: see above\n\nhint: {hint}", file=sys.stderr
                )
                return code
    for name in names:
        (WHEELHOUSE / f".{name}").write_text(digest(name), encoding="utf-8")
    return 0


def digest(name: str) -> str:
    """SHA-256 of a lock; stands in the mark of a closure that is there."""
    return sha256(lock_of(name).read_bytes()).hexdigest()


def missing(names: Iterable[str]) -> list[str]:
    """Those whose mark is not that of their lock."""
    marks = {name: WHEELHOUSE / f".{name}" for name in names}
    return [name for name, mark in marks.items() if not mark.is_file() or mark.read_text("utf-8") != digest(name)]


def main() -> int:
    """Download what is not there yet; stop at the first that is not to be had."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    names, options = words[:cut] or list(IMAGES), words[cut + 1 :]
    if unknown := sorted(set(names) - set(IMAGES)):
        print(f"error: there is no image `{unknown[0]}`\n\nhint: the images are {', '.join(IMAGES)}", file=sys.stderr)
        return 2
    wanted = missing(["build", *names])
    index = [] if options else ["--extra-index-url", TORCH_INDEX]
    for group, where in (([n for n in wanted if n != CUDA], index), ([n for n in wanted if n == CUDA], [])):
        if code := download(group, where, options):
            return code
    print(f"{len(list(WHEELHOUSE.glob('*.whl')))} wheels in {WHEELHOUSE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
