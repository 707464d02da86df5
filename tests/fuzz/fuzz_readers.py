"""Fuzz every reader with coverage feedback: `python -m tests.fuzz.fuzz_readers -max_total_time=60 [CORPUS]`.

Arguments are libFuzzer's. It stops at the first error that is not a refusal of ours, at 2 GiB of memory, or in time.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tdm_r1"]):
    from tests.fuzz.readers import READERS, feed_any
    from tests.fuzz.seeds import seeds


def write_corpus(folder: Path) -> None:
    """One file per valid input, behind the byte that chooses its reader."""
    names = sorted(READERS)
    for name, inputs in seeds().items():
        for number, data in enumerate(inputs):
            (folder / f"{name.replace('/', '-')}-{number}").write_bytes(bytes([names.index(name)]) + data)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder))
        options = ["-rss_limit_mb=2048", "-timeout=20", "-max_len=65536", "-len_control=0", "-close_fd_mask=0"]
        atheris.Setup([sys.argv[0], *options, *sys.argv[1:], folder], lambda data: feed_any(data) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
