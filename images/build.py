"""Build the images: `python -m images.build [--engine E] [--push] [NAME …]`, from the root of the repository.

Prints `NAME REFERENCE@DIGEST` for what was pushed and `NAME TAG sha256:ID` for what was only built.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

from images.engine import ENGINES, ImageError, find_engine

FOLDER: Final = Path(__file__).parent
IMAGES: Final = tuple(sorted(file.parent.name for file in FOLDER.glob("*/Containerfile")))
REGISTRY: Final = "ghcr.io/tdm-r1"


def pinned_base() -> str:
    """The base of `pins.toml`, by digest if it has one."""
    base = tomllib.loads((FOLDER / "pins.toml").read_text(encoding="utf-8"))["base"]
    return f"{base['name']}@{base['digest']}" if base["digest"] else str(base["name"])


def package_version() -> str:
    """The version of `pyproject.toml`."""
    text = (FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def revision() -> str:
    """The commit of the work tree, `-dirty` when something in it is not committed; nothing outside of git."""
    words = ("git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    return subprocess.run(words, cwd=FOLDER, capture_output=True, text=True, check=False).stdout.strip()


def build(arguments: argparse.Namespace) -> None:
    """Build every image asked for, push it if asked to, and print its line.

    Raises:
        ImageError: an image cannot be built, or shall be pushed although its base has no digest.
    """
    engine = find_engine(arguments.engine, arguments.engine_option)
    base = arguments.base or pinned_base()
    if arguments.push and "@" not in base:
        raise ImageError(f"the base {base} has no digest, so the images are not pushed\n\nhint: run `make pins`")
    given = {
        "BASE": base,
        "BASE_DIGEST": engine.digest(base),
        "VERSION": package_version(),
        "REVISION": arguments.revision if arguments.revision is not None else revision(),
    } | dict(pair.split("=", 1) for pair in arguments.build_arg)
    for name in arguments.names or IMAGES:
        if name not in IMAGES:
            raise ImageError(f"there is no image `{name}`\n\nhint: the images are {', '.join(IMAGES)}")
        tag = f"{arguments.registry}/{name}:{arguments.tag or package_version()}"
        file = str((FOLDER / name / "Containerfile").relative_to(FOLDER.parent))
        image_id = engine.build(file, tag, given, arguments.option, cached=not arguments.no_cache)
        pushed = arguments.push and engine.push(tag)
        print(f"{name} {tag.rpartition(':')[0]}@{pushed}" if pushed else f"{name} {tag} sha256:{image_id}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("names", nargs="*", metavar="NAME", help=f"images, all without any: {', '.join(IMAGES)}")
    words.add_argument("--engine", choices=ENGINES, help="default: the first that is installed")
    words.add_argument("--engine-option", action="append", default=[], help="before the subcommand, e.g. --root=DIR")
    words.add_argument("--option", action="append", default=[], help="for the build itself, e.g. --network=host")
    words.add_argument("--build-arg", action="append", default=[], metavar="K=V", help="e.g. PIP_ARGS=--no-index …")
    words.add_argument("--base", help="another base than that of images/pins.toml, e.g. a mirror's, by digest")
    words.add_argument("--registry", default=REGISTRY, help="registry and organisation of the tags")
    words.add_argument("--tag", help="default: the version of the package")
    words.add_argument("--revision", help="default: the commit")
    words.add_argument("--no-cache", action="store_true", help="build every layer again")
    words.add_argument("--push", action="store_true", help="push, and print the digests for the pipelines")
    return words


def main() -> int:
    """Build; 2 when it is refused or fails."""
    try:
        build(parser().parse_args())
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
