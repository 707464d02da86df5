"""Pictures of committed rollouts as files for a browser, read piece by piece."""

from __future__ import annotations

import io
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from tdm_r1.artifacts.dtypes import UINT8
from tdm_r1.artifacts.picture import picture_digest
from tdm_r1.artifacts.records import Rollout
from tdm_r1.artifacts.repository import fetch_verified, require_kind
from tdm_r1.artifacts.rows import entry_shape
from tdm_r1.artifacts.schema import RowsSpec
from tdm_r1.artifacts.store import Store

TABLE: Final = "part.parquet"
THUMBNAIL: Final = 256
"""Pixels of the longer side."""
KEPT: Final = 256
"""Encoded pictures in memory."""
SPEC: Final = RowsSpec(("N", "height", "width", "3"), UINT8)


@dataclass(frozen=True)
class Sample:
    """One image that can be judged."""

    sample_id: str
    prompt_id: str
    group: int
    picture: str
    """SHA-256 of its pixels."""
    rollout: str
    """Digest of the manifest of its rollout."""


class Pictures:
    """All images of some rollouts. The files are fetched and verified once; pixels are read when they are asked for."""

    def __init__(self, store: Store, locations: list[str]) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="tdm-r1-")
        self._files: list[pq.ParquetFile] = []
        self._place: dict[str, tuple[int, int, int]] = {}
        self._kept: OrderedDict[tuple[str, bool], bytes] = OrderedDict()
        self._lock = Lock()
        self.samples: dict[str, Sample] = {}
        for location in locations:
            self._open(store, location)

    def _open(self, store: Store, location: str) -> None:
        manifest = require_kind(store, location, Rollout)
        local = Path(self._scratch.name, f"{len(self._files)}.parquet")
        entry = manifest.files[TABLE]
        fetch_verified(store, f"{location}/{entry.stored_as}", local, entry)
        file = pq.ParquetFile(local, memory_map=False)
        self._files.append(file)
        for part in range(file.num_row_groups):
            rows = file.read_row_group(part, columns=["sample_id", "prompt_id", "group"]).to_pylist()
            for row, (values, pixels) in enumerate(zip(rows, self._pixels(len(self._files) - 1, part), strict=True)):
                name = values["sample_id"]
                self._place[name] = (len(self._files) - 1, part, row)
                self.samples[name] = Sample(**values, picture=picture_digest(pixels), rollout=manifest.digest)

    def _pixels(self, file: int, part: int) -> npt.NDArray[np.uint8]:
        """[rows, height, width, RGB] of one row group."""
        table = self._files[file].read_row_group(part, columns=["images"])
        shape = entry_shape(table.schema.field("images"), SPEC)
        flat = np.frombuffer(b"".join(value.as_py() for value in table["images"]), dtype=np.uint8)
        return flat.reshape(-1, *shape)

    def encoded(self, sample_id: str, *, thumbnail: bool) -> bytes:
        """A picture as PNG; smaller ones are never enlarged.

        Raises:
            KeyError: for a sample that there is not.
        """
        file, part, row = self._place[sample_id]
        key = (sample_id, thumbnail)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = _png(self._pixels(file, part)[row], thumbnail=thumbnail)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def close(self) -> None:
        """Remove what was fetched."""
        for file in self._files:
            file.close()
        self._scratch.cleanup()


def _png(pixels: npt.NDArray[np.uint8], *, thumbnail: bool) -> bytes:
    image, sink = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if thumbnail:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(sink, "PNG", compress_level=1)
    return sink.getvalue()
