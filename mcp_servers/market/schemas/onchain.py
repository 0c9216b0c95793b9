"""Quotes of Uniswap pools: prices in quote per base, amounts in whole tokens.

As in :mod:`prices`, rows of a list name their own fields instead of a schema that every model reads before every call.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import WithJsonSchema

from mcp_servers.envelope import DecimalText, Row

_OBJECT = WithJsonSchema({"type": "object"})


class PoolQuote(Row):
    """One pool at the block; ``twap_bps`` is how far the price is above its average over ``twap_s`` seconds."""

    pool: str
    version: str
    price: DecimalText
    liquidity: DecimalText
    twap: DecimalText | None
    twap_s: int | None
    twap_bps: DecimalText | None
    pays: DecimalText
    gets: DecimalText
    average: DecimalText
    impact_bps: DecimalText
    fee: DecimalText
    tvl_usd: DecimalText | None
    day_volume_usd: DecimalText | None
    marks: list[str]


class OnChainQuote(Row):
    """Best pool first; twap_bps is price above twap, average includes the fee."""

    symbol: str
    pay_token: str
    block: int
    block_hash: str
    pools: list[Annotated[PoolQuote, _OBJECT]]
    notes: list[str]
