"""Amounts and names as Kubernetes writes them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

Cores = Annotated[str, Field(pattern=r"^[1-9][0-9]*m?$")]
"""`4`, or `500m` for half a core."""
Bytes = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Ki|Mi|Gi|Ti)$")]
"""With a binary unit: `16Gi`."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=63)]
"""Of an object."""


def bytes_of(quantity: str) -> int:
    """`16Gi` → 17179869184."""
    factor = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[quantity[-2:]]
    return int(quantity[:-2]) * factor


def cores_of(quantity: str) -> Decimal:
    """`500m` → 0.5."""
    return Decimal(quantity[:-1]) / 1000 if quantity.endswith("m") else Decimal(quantity)
