"""Memory that a scoring process shares with its parent: pictures go through it, everything else through the pipe.

A pipe holds a fifth of a megabyte, so a picture of 512 px woke both ends several times and was copied four times.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tdm_r1.rewards.ask import Question

Picture = NDArray[np.uint8]

ROOM: Final = 2**26
"""Bytes of one side; what does not fit, or finds no memory, goes through the pipe."""


@dataclass(frozen=True)
class Place:
    """Stands for a picture that lies on the shelf."""

    offset: int
    size: int
    """Bytes."""
    shape: tuple[int, ...] | None
    """None for a picture file."""


class Shelf:
    """An anonymous file with two sides: the pictures that a process works on, and those that wait for it."""

    def __init__(self, file: int, room: int = ROOM) -> None:
        self.file, self._room = file, room
        self._side = 0

    @classmethod
    def new(cls, room: int = ROOM) -> Shelf | None:
        """None where the system has no such files, or does not allow them."""
        try:
            return cls(os.memfd_create("tdm-r1-pictures"), room)
        except (AttributeError, OSError):
            return None

    def put(self, questions: Sequence[Question]) -> list[Question]:
        """The questions with places instead of the pictures: files and arrays of bytes that fit on this side."""
        placed, offset = [], self._side * self._room
        end = offset + self._room
        for question in questions:
            picture = question.picture
            pixels = _bytes_of(picture)
            if pixels is not None and offset + pixels.nbytes <= end and self._write(pixels, offset):
                place = Place(offset, pixels.nbytes, None if isinstance(picture, bytes) else picture.shape)
                placed.append(replace(question, picture=place))
                offset += pixels.nbytes
            else:
                placed.append(question)
        return placed

    def turn(self) -> None:
        """Leave what was put where it is, and put the next on the other side."""
        self._side = 1 - self._side

    def take(self, questions: Sequence[Question]) -> list[Question]:
        """What was put: each picture in memory of its own, for a scorer may keep it."""
        return [replace(q, picture=self._read(q.picture)) if isinstance(q.picture, Place) else q for q in questions]

    def _write(self, pixels: memoryview, offset: int) -> bool:
        """False when there is no memory for it."""
        try:
            return os.pwrite(self.file, pixels, offset) == pixels.nbytes
        except OSError:
            return False

    def _read(self, place: Place) -> Picture | bytes:
        picture = np.empty(place.size if place.shape is None else place.shape, np.uint8)
        if os.preadv(self.file, [picture.data], place.offset) != place.size:
            raise EOFError("the parent is gone")
        return picture.tobytes() if place.shape is None else picture

    def close(self) -> None:
        os.close(self.file)


def _bytes_of(picture: object) -> memoryview | None:
    """What is written of a picture; None for one that is neither a file nor an array of bytes."""
    if isinstance(picture, bytes):
        return memoryview(picture) if picture else None
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.size > 0:
        return np.ascontiguousarray(picture).data
    return None
