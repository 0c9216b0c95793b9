"""The kinds of number that a limit can be: exact, bounded, and never a float."""

from __future__ import annotations

from decimal import Decimal
from math import isfinite
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from trading.domain.money import check_decimal


def _exact(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, float):
        raise ValueError(f'must be exact, which a float is not; write it as text: "{value}"')
    return value


def _whole(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int):
        example = round(value) if isinstance(value, float) and isfinite(value) else 20
        raise ValueError(f"must be a whole number without quotes, for example {example}")
    return value


def _schema(**bounds: int) -> WithJsonSchema:
    """Return how a decimal is written: an integer, or digits as text; a JSON number with a fraction is refused."""
    digits = {"type": "string", "pattern": r"^[0-9]{1,24}(\.[0-9]{1,18})?$"}
    return WithJsonSchema({"anyOf": [{"type": "integer", **bounds}, digits]})


_Exact = Annotated[Decimal, BeforeValidator(_exact), AfterValidator(check_decimal)]
Amount = Annotated[_Exact, Field(gt=0), _schema(exclusiveMinimum=0)]
Bps = Annotated[_Exact, Field(gt=0, lt=10_000), _schema(exclusiveMinimum=0, exclusiveMaximum=10_000)]
Percent = Annotated[_Exact, Field(gt=0, le=100), _schema(exclusiveMinimum=0, maximum=100)]
#: A probability that is not certain; 1 would bound nothing.
Share = Annotated[_Exact, Field(ge=0, lt=1), _schema(minimum=0, exclusiveMaximum=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: An integer written as one; bounds are the field's.
Whole = Annotated[int, BeforeValidator(_whole)]
Millis = Annotated[Whole, Field(gt=0)]
Count = Annotated[Whole, Field(gt=0)]
