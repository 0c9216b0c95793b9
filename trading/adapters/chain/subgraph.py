"""A Uniswap v3 subgraph over GraphQL: what pools hold and trade in dollars, as an indexer has added it up.

Rules kept here:

- What it says is as of the block it has indexed, which may be far behind the chain's head and is in every answer.
- It is no price source: dollars are the indexer's estimate. Prices come from the chain itself.
- Addresses are checked and written into the query: their GraphQL type differs between versions of the schema.
- An ``errors`` array is a failure even beside data; numbers are bounded before they reach the arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Final, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from trading.adapters.bounded_http import BoundedHttp, HttpFailed, check_url
from trading.adapters.chain.addresses import parse_address
from trading.adapters.chain.errors import ChainRateLimited, ChainUnavailable
from trading.domain.money import MAX_MAGNITUDE, MAX_SCALE, quantize_nearest

_T = TypeVar("_T", bound="_Answer")

_MAX_BYTES: Final = 2 << 20
_MAX_POOLS: Final = 100
_MAX_DAYS: Final = 365
_NUMBER: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,80})?")
_HEADERS: Final = {"Content-Type": "application/json", "Accept": "application/json"}

_META: Final = "_meta { block { number hash timestamp } hasIndexingErrors }"
_DAY: Final = "date volumeUSD tvlUSD feesUSD open high low close"
_POOL: Final = f"""
    id feeTier txCount totalValueLockedUSD volumeUSD
    token0 {{ id symbol decimals }} token1 {{ id symbol decimals }}
    poolDayData(first: 1, orderBy: date, orderDirection: desc) {{ {_DAY} }}
"""


def _big_decimal(value: object) -> Decimal:
    """Read a BigDecimal: text of up to 34 significant digits, of which 18 behind the point are kept."""
    if not isinstance(value, str) or _NUMBER.fullmatch(value) is None:
        raise ValueError("no decimal")
    found = quantize_nearest(Decimal(value), MAX_SCALE)
    if abs(found) >= MAX_MAGNITUDE:
        raise ValueError("out of range")
    return found


def _big_int(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or re.fullmatch(r"-?[0-9]{1,80}", value) is None:
        raise ValueError("no integer")
    return int(value)


BigDecimal = Annotated[Decimal, BeforeValidator(_big_decimal)]
BigInt = Annotated[int, BeforeValidator(_big_int)]
Address = Annotated[str, BeforeValidator(lambda value: parse_address(str(value)))]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class TokenRow(_Answer):
    """A token as the indexer names it; the name is outside text."""

    address: Address = Field(alias="id")
    symbol: str = Field(max_length=256)
    decimals: BigInt = Field(ge=0, le=36)


class DayRow(_Answer):
    """A pool's day in UTC, the last one still going on.

    Attributes:
        start_s: when it began, seconds since the epoch.
        open, high, low, close: of token1 per token0, as the indexer has it.
    """

    start_s: int = Field(alias="date", ge=0, le=2**33)
    volume_usd: BigDecimal = Field(alias="volumeUSD", ge=0)
    tvl_usd: BigDecimal = Field(alias="tvlUSD")
    fees_usd: BigDecimal = Field(alias="feesUSD", ge=0)
    open: BigDecimal
    high: BigDecimal
    low: BigDecimal
    close: BigDecimal


class PoolRow(_Answer):
    """A pool: what it holds now and has traded ever, in dollars.

    Attributes:
        fee_pips: millionths of what goes in.
        days: the newest day, or none.
    """

    address: Address = Field(alias="id")
    fee_pips: BigInt = Field(alias="feeTier", ge=0, lt=1_000_000)
    transactions: BigInt = Field(alias="txCount", ge=0)
    tvl_usd: BigDecimal = Field(alias="totalValueLockedUSD")
    volume_usd: BigDecimal = Field(alias="volumeUSD", ge=0)
    token0: TokenRow
    token1: TokenRow
    days: tuple[DayRow, ...] = Field(alias="poolDayData", max_length=1)


class _Envelope(_Answer):
    data: object = None
    errors: object = None


class _IndexedBlock(_Answer):
    number: int = Field(ge=0)
    hash: str | None = Field(default=None, max_length=66)
    timestamp: int | None = Field(default=None, ge=0, le=2**33)


class _Meta(_Answer):
    block: _IndexedBlock
    has_indexing_errors: bool = Field(alias="hasIndexingErrors")


class _Pools(_Answer):
    meta: _Meta = Field(alias="_meta")
    pools: tuple[PoolRow, ...] = Field(max_length=_MAX_POOLS)


class _Days(_Answer):
    meta: _Meta = Field(alias="_meta")
    days: tuple[DayRow, ...] = Field(alias="poolDayDatas", max_length=_MAX_DAYS)


@dataclass(frozen=True, slots=True)
class Indexed:
    """Up to where the indexer has read the chain.

    Attributes:
        number: the last block it has read.
        timestamp_s: of that block, seconds since the epoch; None from indexers that do not say.
        flawed: it has met errors on the way, so totals may be wrong.
    """

    number: int
    timestamp_s: int | None
    flawed: bool


@dataclass(frozen=True, slots=True)
class PoolsAsOf:
    """Pools, as of a block."""

    pools: tuple[PoolRow, ...]
    indexed: Indexed


@dataclass(frozen=True, slots=True)
class DaysAsOf:
    """A pool's days, newest first, as of a block."""

    days: tuple[DayRow, ...]
    indexed: Indexed


class Subgraph:
    """A Uniswap v3 subgraph; closed by :meth:`close`.

    Args:
        url: its GraphQL endpoint, ``https``, or ``http`` on this machine.
        timeout_s: for one question.

    Raises:
        InvalidValue: the URL is of another form.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        self._url = check_url(url, what="subgraph_url")
        self._http = BoundedHttp(max_bytes=_MAX_BYTES, timeout_s=timeout_s, connections=4)

    async def pools(self, addresses: Sequence[str]) -> PoolsAsOf:
        """Return what is known of up to 100 pools; unknown ones are left out.

        Raises:
            ChainUnavailable, ChainRateLimited: there is no usable answer.
        """
        asked = " ".join(f'"{parse_address(address).lower()}"' for address in addresses[:_MAX_POOLS])
        return _pools(await self._ask(_Pools, f"pools(first: {_MAX_POOLS}, where: {{id_in: [{asked}]}}) {{ {_POOL} }}"))

    async def pools_of(self, token: str, *, limit: int = 20) -> PoolsAsOf:
        """Return the pools that hold a token, the one with the highest value first.

        Raises:
            ChainUnavailable, ChainRateLimited: there is no usable answer.
        """
        holds = f'"{parse_address(token).lower()}"'
        order = f"first: {max(1, min(limit, _MAX_POOLS))}, orderBy: totalValueLockedUSD, orderDirection: desc"
        where = f"where: {{or: [{{token0: {holds}}}, {{token1: {holds}}}]}}"
        return _pools(await self._ask(_Pools, f"pools({order}, {where}) {{ {_POOL} }}"))

    async def days(self, pool: str, *, limit: int = 30) -> DaysAsOf:
        """Return a pool's days, newest first.

        Raises:
            ChainUnavailable, ChainRateLimited: there is no usable answer.
        """
        order = f"first: {max(1, min(limit, _MAX_DAYS))}, orderBy: date, orderDirection: desc"
        where = f'where: {{pool: "{parse_address(pool).lower()}"}}'
        found = await self._ask(_Days, f"poolDayDatas({order}, {where}) {{ {_DAY} }}")
        return DaysAsOf(found.days, _indexed(found.meta))

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()

    async def _ask(self, kind: type[_T], selection: str) -> _T:
        query = orjson.dumps({"query": f"{{ {_META} {selection} }}"})
        try:
            answer = await self._http.post(self._url, query, _HEADERS)
            found = _Envelope.model_validate(orjson.loads(answer.body))
            if found.errors:
                raise ChainUnavailable("the subgraph answered with errors", suggestion="try again later")
            return kind.model_validate(found.data)
        except HttpFailed as error:
            if error.failure == "rate_limited":
                raise ChainRateLimited(error.after_ms) from None
            raise ChainUnavailable(f"the subgraph: {error}", suggestion="try again later") from None
        except ValueError:  # no JSON, or not the schema's
            raise ChainUnavailable("the subgraph's answer makes no sense", code="GARBAGE") from None


def _pools(found: _Pools) -> PoolsAsOf:
    return PoolsAsOf(found.pools, _indexed(found.meta))


def _indexed(meta: _Meta) -> Indexed:
    return Indexed(meta.block.number, meta.block.timestamp, meta.has_indexing_errors)
