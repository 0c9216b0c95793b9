"""Prices on Uniswap: the configured pools, read at one block of the chain.

Rules kept here:

- Only configured pools are read: anybody can make a pool of a token that calls itself USDC.
- A symbol is made of the tokens' own names, BASE/QUOTE: WETH is not ETH, USDC.e is not USDC. Two pools whose tokens
  share names but are not the same contracts are told apart by address alone.
- Everything in one answer is from one block; from a block that is too old nothing is quoted.
- Indexed dollar values decorate an answer; without them, or when they fail, it is given all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from mcp_servers.market.not_configured import NotConfigured
from mcp_servers.market.pool_quotes import Order, PoolQuote, PoolQuoter, SideName, Unit
from mcp_servers.market.settings import ChainSettings
from mcp_servers.tool_errors import did_you_mean
from trading.adapters.chain.addresses import parse_address
from trading.adapters.chain.client import Block, ChainClient
from trading.adapters.chain.errors import BadContract, CallReverted
from trading.adapters.chain.pools import Pool, read_pool
from trading.adapters.chain.snapshot import Snapshot, read_pinned
from trading.adapters.chain.subgraph import PoolRow, Subgraph
from trading.adapters.chain.tokens import Tokens
from trading.domain.errors import ConfigurationError, InvalidValue, StaleData, TradingError, Unavailable
from trading.ports.clock import Clock

#: Pools compared in one answer.
_MOST_POOLS: Final = 4
#: Producers may be ahead of us by this much, as nodes accept it.
_AHEAD_MS: Final = 15_000
_SETTINGS: Final = (
    "the owner of the desk sets rpc_url and pools under [market.chain]; a replay has none, today lies ahead of it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnChainQuote:
    """What the pools of one symbol would give.

    Attributes:
        symbol: BASE/QUOTE in the tokens' own names.
        side: buy or sell, of base.
        block: the one everything was read at.
        age_ms: of that block.
        pools: the one that gives most first.
        values: what indexed pools hold and trade in dollars, by address.
        notes: pools that could not be quoted, and why.
    """

    symbol: str
    side: SideName
    block: Block
    age_ms: int
    pools: tuple[PoolQuote, ...]
    values: dict[str, PoolRow]
    notes: tuple[str, ...] = ()


class OnChain:
    """The configured pools. Connects when first asked; close it in the end.

    Args:
        settings: which chain, node and pools.
        clock: for the age of blocks.
        sleep: how to wait between repeated reads; the machine's unless a test says otherwise.

    Raises:
        ConfigurationError: an address or URL is of another form.
    """

    def __init__(
        self, settings: ChainSettings, clock: Clock, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._tokens = Tokens()
        self._quoters: dict[str, PoolQuoter] = {}
        self._broken: tuple[str, ...] = ()
        try:
            self._addresses = tuple(dict.fromkeys(parse_address(address) for address in settings.pools))
            self._quoter = None if settings.quoter is None else parse_address(settings.quoter)
            node, subgraph = settings.rpc_url, settings.subgraph_url
            self._client = (
                None
                if node is None
                else ChainClient(node.get_secret_value(), chain_id=settings.chain_id, clock=clock, sleep=sleep)
            )
            self._subgraph = None if subgraph is None else Subgraph(subgraph.get_secret_value())
        except InvalidValue as error:
            raise ConfigurationError(f"[market.chain]: {error}", suggestion=error.suggestion) from error

    async def quote(self, symbol: str, side: SideName, amount: Decimal, unit: Unit) -> OnChainQuote:
        """Return what a swap would get from each configured pool of a symbol.

        Args:
            symbol: BASE/QUOTE in the tokens' own names, in either order, or a pool's address for its own order.
            side: buy or sell, of base.
            amount: > 0.
            unit: whether ``amount`` is base or quote.

        Raises:
            NotConfigured: there is no node, or no pool.
            InvalidValue: UNKNOWN_POOL, AMBIGUOUS_SYMBOL, or no pool can give that much.
            StaleData: the node's newest block is too old.
            TradingError: the chain could not be read.
        """
        client = self._configured()
        await self._load_pools(client)
        orders = [(quoter, Order(base, side, amount, unit)) for quoter, base in self._find(symbol)[:_MOST_POOLS]]
        pinned = await read_pinned(
            client, lambda at: _quote_all(at, orders), confirmations=self._settings.confirmations
        )
        found, notes = pinned.value
        rows, problem = await self._values([item.pool.address for item in found])
        age_ms = self._fresh_age_ms(pinned.block)
        first = found[0]
        return OnChainQuote(
            symbol=f"{first.base.symbol}/{first.quote.symbol}",
            side=side,
            block=pinned.block,
            age_ms=age_ms,
            pools=found,
            values=rows,
            notes=(*notes, *self._broken, *problem),
        )

    async def close(self) -> None:
        """Close every connection."""
        for part in (self._client, self._subgraph):
            if part is not None:
                await part.close()

    def _configured(self) -> ChainClient:
        if self._client is None or not self._addresses:
            missing = "node" if self._client is None else "pool"
            raise NotConfigured(f"no {missing} is configured for on-chain prices", suggestion=_SETTINGS)
        return self._client

    async def _load_pools(self, client: ChainClient) -> None:
        """Read what never changes of the pools not known yet; contracts that are no pools are named and left out."""
        missing = [address for address in self._addresses if address not in self._quoters]
        if not missing:
            return
        broken: list[str] = []

        async def read(at: Snapshot) -> list[Pool]:
            broken.clear()
            pools: list[Pool] = []
            for address in missing:
                try:
                    pools.append(await read_pool(at, address, self._tokens))
                except (BadContract, CallReverted) as error:
                    broken.append(f"{address}: {error}")
            return pools

        for pool in (await read_pinned(client, read)).value:
            self._quoters[pool.address] = PoolQuoter(pool, twap_s=self._settings.twap_s, quoter=self._quoter)
        self._broken = tuple(broken)
        if not self._quoters:
            raise NotConfigured(f"none of the configured pools is one: {broken[0]}", suggestion=_SETTINGS)

    def _find(self, symbol: str) -> list[tuple[PoolQuoter, str]]:
        """Return the pools meant and, for each, the address of the token that is base."""
        if symbol[:2].lower() == "0x" and "/" not in symbol:
            chosen = self._quoters.get(parse_address(symbol))
            if chosen is None:
                raise self._unknown(symbol)
            return [(chosen, chosen.pool.token0.address)]
        base, _, quote = symbol.casefold().partition("/")
        found: list[tuple[PoolQuoter, str]] = []
        pairs: set[tuple[str, str]] = set()
        for quoter in self._quoters.values():
            tokens = (quoter.pool.token0, quoter.pool.token1)
            for one, other in (tokens, tokens[::-1]):
                if (one.symbol.casefold(), other.symbol.casefold()) == (base, quote):
                    found.append((quoter, one.address))
                    pairs.add((one.address, other.address))
        if not found:
            raise self._unknown(symbol)
        if len(pairs) > 1:
            raise InvalidValue(
                "several tokens share these names",
                code="AMBIGUOUS_SYMBOL",
                suggestion="ask by the address of the pool",
                allowed=tuple(quoter.pool.address for quoter, _ in found),
            )
        return found

    def _unknown(self, symbol: str) -> InvalidValue:
        names = sorted({f"{item.pool.token0.symbol}/{item.pool.token1.symbol}" for item in self._quoters.values()})
        near = did_you_mean(symbol, names)
        return InvalidValue(
            "no configured pool trades that",
            code="UNKNOWN_POOL",
            suggestion="names are those of the tokens on the chain: WETH is not ETH",
            allowed=near or tuple(names),
        )

    def _fresh_age_ms(self, block: Block) -> int:
        age_ms = self._clock.now_ms() - block.timestamp_s * 1_000
        if age_ms < -_AHEAD_MS:
            raise StaleData("the node's block is from the future; a clock is wrong", code="FROM_FUTURE")
        if age_ms > self._settings.max_age_s * 1_000:
            raise StaleData(
                f"the node's newest usable block is {age_ms // 1_000} s old",
                suggestion="the node may be behind the chain; try again later",
            )
        return max(age_ms, 0)

    async def _values(self, addresses: Sequence[str]) -> tuple[dict[str, PoolRow], tuple[str, ...]]:
        """Return the subgraph's rows, or why there are none."""
        if self._subgraph is None:
            return {}, ()
        try:
            found = await self._subgraph.pools(addresses)
        except Unavailable as error:
            return {}, (f"no dollar values: {error}",)
        flaw = ", and it has met errors" if found.indexed.flawed else ""
        note = f"dollar values are the indexer's, as of block {found.indexed.number}{flaw}"
        return {row.address: row for row in found.pools}, (note,) if found.pools else ()


async def _quote_all(
    at: Snapshot, orders: Sequence[tuple[PoolQuoter, Order]]
) -> tuple[tuple[PoolQuote, ...], tuple[str, ...]]:
    """Return every pool's quote, best first, and why others have none.

    Raises:
        TradingError: the first pool's reason, when none can be quoted; the chain could not be read.
    """
    found: list[PoolQuote] = []
    refused: list[tuple[str, TradingError]] = []
    for quoter, order in orders:
        try:
            found.append(await quoter.quote(at, order))
        except (InvalidValue, BadContract, CallReverted) as error:
            refused.append((quoter.pool.address, error))
    if not found:
        raise refused[0][1]
    # The amount asked for is one of the two and the same everywhere; more for it, or less for it, is better.
    found.sort(key=lambda item: (item.pays, -item.gets))
    return tuple(found), tuple(f"{address}: {error}" for address, error in refused)
