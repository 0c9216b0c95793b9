"""ERC-20 tokens: what a contract calls itself and how its amounts are divided.

Anybody can deploy a contract that calls itself USDC: a symbol is text from outside, cleaned and never trusted to say
which token it is. Only the address says that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from trading.adapters.chain.abi import Function, integer
from trading.adapters.chain.errors import BadContract, CallReverted
from trading.adapters.chain.snapshot import Snapshot
from trading.domain.errors import InvalidValue
from trading.domain.money import EXACT

_SYMBOL: Final = Function("symbol", (), ("string",))
_SYMBOL_BYTES: Final = Function("symbol", (), ("bytes32",))  # MKR and other tokens older than ERC-20's final text
_DECIMALS: Final = Function("decimals", (), ("uint8",))
_READABLE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+$_-]{0,15}")
_MAX_DECIMALS: Final = 36
_MAX_CACHED: Final = 1_024
#: Beyond this an amount cannot be a real one, and squares no longer fit the contracts' integers.
_MAX_UNITS: Final = 1 << 127


@dataclass(frozen=True, slots=True)
class Token:
    """One ERC-20 contract.

    Attributes:
        address: EIP-55.
        symbol: what it calls itself, 1-16 plain ASCII characters, or ``0x12345678`` of its address when it does not.
        decimals: places of its amounts, 0 to 36.
    """

    address: str
    symbol: str
    decimals: int

    def amount(self, units: int) -> Decimal:
        """Return an amount in whole tokens, exactly."""
        return Decimal(units).scaleb(-self.decimals, EXACT)

    def units(self, amount: Decimal) -> int:
        """Return how many of the smallest units ``amount`` whole tokens are, rounded down.

        Raises:
            InvalidValue: less than one unit, or more than 2**127.
        """
        scaled = int(amount.scaleb(self.decimals, EXACT))
        if scaled < 1:
            raise InvalidValue(f"{self.symbol} has only {self.decimals} decimals", code="QUANTITY_TOO_SMALL")
        if scaled > _MAX_UNITS:
            raise InvalidValue("the amount is larger than any token has", code="INVALID_NUMBER")
        return scaled


class Tokens:
    """Reads tokens once: neither symbol nor decimals of a traded token change."""

    def __init__(self) -> None:
        self._known: dict[str, Token] = {}

    async def read(self, at: Snapshot, address: str) -> Token:
        """Return the token at an address.

        Raises:
            BadContract: it has no decimals, or senseless ones.
            TradingError: as :meth:`Snapshot.call`.
        """
        if (known := self._known.get(address)) is not None:
            return known
        try:
            decimals = integer((await at.call(address, _DECIMALS))[0])
        except CallReverted:
            raise BadContract("a token does not say its decimals") from None
        if decimals > _MAX_DECIMALS:
            raise BadContract(f"a token claims {decimals} decimals")
        token = Token(address, await _symbol(at, address), decimals)
        if len(self._known) >= _MAX_CACHED:
            self._known.pop(next(iter(self._known)))
        self._known[address] = token
        return token


async def _symbol(at: Snapshot, address: str) -> str:
    for function in (_SYMBOL, _SYMBOL_BYTES):
        try:
            (said,) = await at.call(address, function)
        except (BadContract, CallReverted):
            continue
        text = said.rstrip(b"\0").decode("ascii", "replace") if isinstance(said, bytes) else str(said)
        if _READABLE.fullmatch(text):
            return text
    return address[:10]
