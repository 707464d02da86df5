"""Ask the registry for the digest of the base, and write it: `python -m images.pins`, from anywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

PINS: Final = Path(__file__).parent / "pins.toml"
ASKERS: Final = {
    "skopeo": ("inspect", "--format", "{{.Digest}}", "docker://%s"),
    "crane": ("digest", "%s"),
    "docker": ("buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", "%s"),
}
"""Programs that read a digest from a registry without pulling, and the words that make them."""


def registry_digest(name: str) -> str:
    """The digest that the registry serves for a name.

    Raises:
        SystemExit: no program is installed that can ask, or the registry gives no digest.
    """
    program = next((program for program in ASKERS if shutil.which(program)), None)
    if program is None:
        raise SystemExit(f"error: found none of {', '.join(ASKERS)}\n\nhint: apt-get install skopeo")
    words = [word.replace("%s", name) for word in ASKERS[program]]
    asked = subprocess.run([program, *words], stdout=subprocess.PIPE, text=True, check=False)
    digest = asked.stdout.strip()
    if asked.returncode or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise SystemExit(
            f"error: `{program}` exited with {asked.returncode} and told no digest of {name}\n\n"
            "hint: on a machine without the internet, pass a mirror to `python -m images.build --base`"
        )
    return digest


def main() -> int:
    """Rewrite the pin in place; print the old and the new."""
    text = PINS.read_text(encoding="utf-8")
    base = tomllib.loads(text)["base"]
    digest = registry_digest(base["name"])
    PINS.write_text(text.replace(f'digest = "{base["digest"]}"', f'digest = "{digest}"'), encoding="utf-8")
    print(f"{base['name']}: {base['digest'] or 'no digest'} → {digest}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
