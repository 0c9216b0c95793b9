"""The state of contracts at one block: every value of an answer is from the same moment.

Calls name the block by its hash, so a node that has moved to another branch refuses instead of mixing two histories.
At the end the block is looked up once more; when it is gone, everything is read again at a new one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from trading.adapters.chain.abi import Function
from trading.adapters.chain.client import Block, ChainClient
from trading.adapters.chain.errors import BlockGone, ChainUnavailable
from trading.domain.errors import InvalidValue

T = TypeVar("T")

_ATTEMPTS: Final = 3
_MAX_CALLS: Final = 2_000


class Snapshot:
    """Contracts as they are at one block.

    Args:
        client: asks the node.
        block: the block.
        max_calls: calls at most, so that one question stays bounded whatever a contract answers.

    Attributes:
        client: asks the node.
        block: the block.
    """

    def __init__(self, client: ChainClient, block: Block, *, max_calls: int = _MAX_CALLS) -> None:
        self.client = client
        self.block = block
        self._left = max_calls

    async def call(self, address: str, function: Function, *arguments: object) -> tuple[object, ...]:
        """Return what a contract's function returns.

        Raises:
            BadContract: the contract is of another kind.
            InvalidValue: TOO_DEEP: more calls than one question may make.
            TradingError: as :meth:`ChainClient.ask`.
        """
        self._left -= 1
        if self._left < 0:
            raise InvalidValue(
                "the question needs too many reads of the chain", code="TOO_DEEP", suggestion="ask for less"
            )
        return function.decode(await self.client.call(address, function.encode(*arguments), self.block))

    async def earlier(self, number: int) -> Snapshot:
        """Return the state at an earlier block, with the same number of calls left."""
        return Snapshot(self.client, await self.client.block(number), max_calls=self._left)


@dataclass(frozen=True, slots=True)
class Pinned(Generic[T]):
    """A value and the block it was read at, which was still part of the chain afterwards."""

    value: T
    block: Block


async def read_pinned(
    client: ChainClient,
    read: Callable[[Snapshot], Awaitable[T]],
    *,
    confirmations: int = 0,
) -> Pinned[T]:
    """Return what ``read`` finds at one block.

    Args:
        client: asks the node.
        read: asks contracts through the snapshot; called again, with another one, when the chain reorganises.
        confirmations: blocks behind the head, >= 0.

    Raises:
        ChainUnavailable: the chain reorganised each time.
        TradingError: whatever ``read`` raises, or as :meth:`ChainClient.ask`.
    """
    for _ in range(_ATTEMPTS):
        block = await client.block()
        try:
            if confirmations:
                block = await client.block(max(block.number - confirmations, 0))
            value = await read(Snapshot(client, block))
            if (await client.block(block.number)).hash == block.hash:
                return Pinned(value, block)
        except BlockGone:
            continue
    raise ChainUnavailable("the chain keeps reorganising while it is read", suggestion="wait for a few blocks")
