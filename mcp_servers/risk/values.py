"""The kinds of number that a limit can be."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, Field


def _exact(value: object) -> object:
    if isinstance(value, (float, bool)):
        raise ValueError('write a decimal as text, for example "0.5"')
    return value


Amount = Annotated[Decimal, BeforeValidator(_exact), Field(gt=0)]
Bps = Annotated[Decimal, BeforeValidator(_exact), Field(gt=0, lt=10_000)]
Percent = Annotated[Decimal, BeforeValidator(_exact), Field(gt=0, le=100)]
Millis = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
