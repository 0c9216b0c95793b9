"""Instruments, their trading rules and what contracts on them pay."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, WithJsonSchema
from pydantic.config import JsonDict
from typing_extensions import TypeAliasType

from mcp_servers.envelope import DecimalText, Row

# Named types stand once in a schema and are referred to; every tool's schema is read by a model.
D = TypeAliasType("D", DecimalText)
N = TypeAliasType("N", D | None)


def _all_sent(schema: JsonDict) -> None:
    """Leave out the list of fields that are always there: here it is all of them, and it would name each again."""
    schema.pop("required", None)


class Rules(Row):
    """A venue's rules for one instrument; fees are rates of notional."""

    model_config = ConfigDict(json_schema_extra=_all_sent)

    symbol: str
    venue: str
    base: str
    quote: str
    price_tick: D
    quantity_step: D
    quantity_min: D
    quantity_max: N
    notional_min: D
    notional_max: N
    maker_fee: D
    taker_fee: D


class RulesWithFees(Rules):
    """Rules; ``live``: this desk has prices of it."""

    fees_assumed: bool
    fee_source: str
    live: bool


class Found(Row):
    """Instruments that match, best match first."""

    instruments: Annotated[list[Rules], WithJsonSchema({"type": "array", "description": "Rules"})]
    total: int
    complete: bool = Field(description="False: only those with a feed")
    did_you_mean: list[str]


class Funding(Row):
    """Funding of a perpetual contract; a positive rate is paid by longs to shorts each interval."""

    symbol: str
    venue: str
    contract: str
    rate: D
    interval_h: int | None
    rate_per_year: N
    next_ts_ms: int | None
    mark: N
    index: N
