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
"""Bytes; what does not fit, or finds no memory, goes through the pipe."""


@dataclass(frozen=True)
class Place:
    """Stands for a picture that lies on the shelf."""

    offset: int
    shape: tuple[int, ...]


class Shelf:
    """An anonymous file. The parent puts the pictures of one answer on it; they stay until it puts the next ones."""

    def __init__(self, file: int, room: int = ROOM) -> None:
        self.file, self._room = file, room

    @classmethod
    def new(cls, room: int = ROOM) -> Shelf | None:
        """None where the system has no such files, or does not allow them."""
        try:
            return cls(os.memfd_create("tdm-r1-pictures"), room)
        except (AttributeError, OSError):
            return None

    def put(self, questions: Sequence[Question]) -> list[Question]:
        """The questions with places instead of those pictures that are arrays of bytes and fit."""
        placed, offset = [], 0
        for question in questions:
            picture = question.picture
            if _is_plain(picture) and offset + picture.nbytes <= self._room and self._write(picture, offset):
                placed.append(replace(question, picture=Place(offset, picture.shape)))
                offset += picture.nbytes
            else:
                placed.append(question)
        return placed

    def take(self, questions: Sequence[Question]) -> list[Question]:
        """What was put: each picture in memory of its own, for a scorer may keep it."""
        return [replace(q, picture=self._read(q.picture)) if isinstance(q.picture, Place) else q for q in questions]

    def _write(self, picture: Picture, offset: int) -> bool:
        """False when there is no memory for it."""
        try:
            return os.pwrite(self.file, np.ascontiguousarray(picture).data, offset) == picture.nbytes
        except OSError:
            return False

    def _read(self, place: Place) -> Picture:
        picture = np.empty(place.shape, np.uint8)
        if os.preadv(self.file, [picture.data], place.offset) != picture.nbytes:
            raise EOFError("the parent is gone")
        return picture

    def close(self) -> None:
        os.close(self.file)


def _is_plain(picture: object) -> bool:
    return isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.size > 0
