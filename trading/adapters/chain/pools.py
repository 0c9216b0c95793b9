"""Uniswap pools: which kind a contract is, its two tokens and its fee. Read once: none of it ever changes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

from trading.adapters.chain.abi import Function, integer
from trading.adapters.chain.addresses import parse_address
from trading.adapters.chain.errors import BadContract, CallReverted
from trading.adapters.chain.ratios import power_of_ten
from trading.adapters.chain.snapshot import Snapshot
from trading.adapters.chain.tokens import Token, Tokens
from trading.domain.errors import InvalidValue

_FACTORY: Final = Function("factory", (), ("address",))
_TOKEN0: Final = Function("token0", (), ("address",))
_TOKEN1: Final = Function("token1", (), ("address",))
_FEE: Final = Function("fee", (), ("uint24",))
_TICK_SPACING: Final = Function("tickSpacing", (), ("int24",))
_RESERVES: Final = Function("getReserves", (), ("uint112", "uint112", "uint32"))

#: Fees are counted in millionths of the amount that goes in.
PIPS: Final = 1_000_000
V2_FEE_PIPS: Final = 3_000


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool.

    Attributes:
        address: EIP-55.
        version: ``v2`` (constant product) or ``v3`` (concentrated liquidity).
        factory: the contract that made it.
        token0, token1: in the order of their addresses; the contracts price token0 in token1.
        fee_pips: millionths of the amount that goes in.
        tick_spacing: distance between usable ticks; 0 for v2.
    """

    address: str
    version: Literal["v2", "v3"]
    factory: str
    token0: Token
    token1: Token
    fee_pips: int
    tick_spacing: int

    @property
    def scale(self) -> Fraction:
        """Whole tokens of token0 per unit over whole tokens of token1 per unit: turns a ratio of units into a price."""
        return power_of_ten(self.token0.decimals - self.token1.decimals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """What a swap of one size would do, in the tokens' smallest units.

    Attributes:
        zero_for_one: whether token0 goes in and token1 comes out.
        amount_in: with the fee.
        amount_out: what comes out.
        method: ``formula``, ``tick-walk`` (our own arithmetic) or ``quoter`` (the QuoterV2 contract).
        ticks_crossed: initialized ticks passed, when our own arithmetic passed them.
    """

    zero_for_one: bool
    amount_in: int
    amount_out: int
    method: Literal["formula", "tick-walk", "quoter"]
    ticks_crossed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Twap:
    """A time-weighted average price.

    Attributes:
        price: token1 per token0, whole tokens.
        window_s: over how many seconds up to the block.
        wanted_s: over how many it was asked for.
        why_short: what limits the window, when it is shorter than asked for.
    """

    price: Decimal
    window_s: int
    wanted_s: int
    why_short: str = ""


class NoTwap(InvalidValue):
    """There is no average over time; the message says why."""

    code = "NOT_ENOUGH_HISTORY"


def not_enough_liquidity(what: str) -> InvalidValue:
    """Return the refusal of a size that the pool cannot give."""
    return InvalidValue(f"the pool {what}", code="NOT_ENOUGH_LIQUIDITY", suggestion="ask for a smaller amount")


async def read_pool(at: Snapshot, address: str, tokens: Tokens) -> Pool:
    """Return the pool at an address.

    Raises:
        BadContract: there is no v2 or v3 pool.
        TradingError: as :meth:`Snapshot.call`.
    """
    try:
        factory, first, second = [
            parse_address(str(found[0]))
            for found in await asyncio.gather(*(at.call(address, item) for item in (_FACTORY, _TOKEN0, _TOKEN1)))
        ]
        fee, spacing = await _v3_terms(at, address)
        if not spacing:
            await at.call(address, _RESERVES)
    except CallReverted:
        raise BadContract(f"{address} is no Uniswap v2 or v3 pool") from None
    token0, token1 = await tokens.read(at, first), await tokens.read(at, second)
    return Pool(address, "v3" if spacing else "v2", factory, token0, token1, fee, spacing)


async def _v3_terms(at: Snapshot, address: str) -> tuple[int, int]:
    """Return fee and tick spacing of a v3 pool; a v2 pair has neither function, only one fee and no ticks."""
    try:
        (fee,), (spacing,) = await at.call(address, _FEE), await at.call(address, _TICK_SPACING)
    except (BadContract, CallReverted):
        return V2_FEE_PIPS, 0
    found_fee, found_spacing = integer(fee), integer(spacing)
    if not (0 <= found_fee < PIPS and 0 < found_spacing <= 16_384):
        raise BadContract(f"{address} claims a fee or tick spacing that no v3 pool has")
    return found_fee, found_spacing
