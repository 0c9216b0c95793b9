"""The tool that quotes Uniswap pools."""

from __future__ import annotations

from typing import Annotated, Final, Protocol

from pydantic import Field

from mcp_servers.envelope import Meta, PositiveDecimalText, Reply, ok, timestamp
from mcp_servers.hosting import Context, state
from mcp_servers.market.onchain import OnChain, OnChainQuote
from mcp_servers.market.pool_quotes import PoolQuote, SideName, Unit
from mcp_servers.market.schemas import onchain as schemas
from mcp_servers.market.tools.arguments import Register
from trading.adapters.chain.subgraph import PoolRow

_VENUE: Final = "uniswap"

PoolText = Annotated[str, Field(min_length=3, max_length=42)]


class HasOnChain(Protocol):
    """What this tool needs of the room."""

    @property
    def onchain(self) -> OnChain:
        """The configured pools."""
        ...


def register(read: Register) -> None:
    """Add the tool."""

    @read(title="Quote on-chain")
    async def market_quote_onchain(
        ctx: Context[HasOnChain], symbol: PoolText, side: SideName, amount: PositiveDecimalText, unit: Unit = "base"
    ) -> Reply[schemas.OnChainQuote]:
        """Quote a swap on the configured Uniswap pools at one block.

        Tokens have their on-chain names: "WETH/USDC", not ETH; a pool's address works too. `pays` holds the fee,
        `impact_bps` does not, gas is in neither. Nothing is sent.
        """
        found = await state(ctx).onchain.quote(symbol, side, amount, unit)
        as_of = timestamp(found.block.timestamp_s * 1_000)
        return ok(quote_row(found), Meta(venue=_VENUE, age_ms=found.age_ms, as_of=as_of, source="node"))


def quote_row(found: OnChainQuote) -> schemas.OnChainQuote:
    """Return a quote's row."""
    first = found.pools[0]
    return schemas.OnChainQuote(
        symbol=found.symbol,
        pay_token=first.base.symbol if found.side == "sell" else first.quote.symbol,
        block=found.block.number,
        block_hash=found.block.hash,
        pools=[pool_row(item, found.values.get(item.pool.address)) for item in found.pools],
        notes=list(dict.fromkeys((*found.notes, *(note for item in found.pools for note in item.notes)))),
    )


def pool_row(item: PoolQuote, value: PoolRow | None) -> schemas.PoolQuote:
    """Return one pool's row."""
    return schemas.PoolQuote(
        pool=item.pool.address,
        version=item.pool.version,
        price=item.price,
        liquidity=item.liquidity,
        twap=item.twap.price if item.twap else None,
        twap_s=item.twap.window_s if item.twap else None,
        twap_bps=item.deviation_bps,
        pays=item.pays,
        gets=item.gets,
        average=item.average_price,
        impact_bps=item.impact_bps,
        fee=item.fee,
        tvl_usd=value.tvl_usd if value else None,
        day_volume_usd=value.days[0].volume_usd if value and value.days else None,
        marks=list(item.marks),
    )
