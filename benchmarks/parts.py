"""Real rooms inside the benchmark's own process: SQLite with FULL, every rule on, a market that stands still."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from mcp_servers.execution.gate import GateRules
from mcp_servers.execution.service import ExecutionParts, ExecutionService
from mcp_servers.risk.breaker_limits import BreakerLimits
from mcp_servers.risk.decisions import PinnedKeys
from mcp_servers.risk.heartbeat import HeartbeatSink
from mcp_servers.risk.limits import RiskLimits, SymbolLimits
from mcp_servers.risk.orders import OrderRequest
from mcp_servers.risk.parts import RiskParts
from mcp_servers.risk.service import RiskService
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.signing import Ed25519Verifier
from trading.adapters.sql import LedgerLocation, open_writer
from trading.domain.events import AccountFunded
from trading.domain.identifiers import AgentId, Currency, Symbol, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import OrderBook, Side
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.domain.sizing import SizeUnit
from trading.ports.ledger import EventDraft, Ledger, LedgerReader, Unit
from trading.testing.builders import ACCOUNT, BTC_USDT, INSTRUMENT_ID, PAPER, build_book, build_instrument
from trading.testing.keys import make_test_signer
from trading.testing.venue import build_paper_venue

CLOCK, IDS = SystemClock(), Uuid7Factory()
USDT = Currency("USDT")
DATA_ID = InstrumentId(Venue("binance"), BTC_USDT)
_MANY = 10_000_000


@contextmanager
def scratch() -> Generator[Path]:
    """Yield a directory that is gone afterwards, on the same disk as every other temporary file."""
    with tempfile.TemporaryDirectory(prefix="grekko-bench-") as name:
        yield Path(name)


class StillMarket:
    """Deep books that are always fresh; implements ``MarketView``."""

    def __init__(self, symbols: Sequence[Symbol] = (BTC_USDT,)) -> None:
        book = build_book([("60000", "100000")], [("60001", "100000")], now_ms=CLOCK.now_ms())
        rules = build_instrument(venue="binance")
        ids = [InstrumentId(DATA_ID.venue, symbol) for symbol in symbols]
        self._books = {each: replace(book, instrument_id=each) for each in ids}
        self._rules = {each: replace(rules, id=each, base=Currency(each.symbol.partition("/")[0])) for each in ids}

    def refresh(self) -> None:
        """Publish the same prices again, now."""
        now_ms = CLOCK.now_ms()
        for name, book in self._books.items():
            self._books[name] = replace(
                book, sequence=book.sequence + 1, published_ts_ms=now_ms, venue_ts_ms=now_ms, received_ts_ms=now_ms
            )

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest book."""
        return self._books.get(instrument_id)

    def instrument(self, instrument_id: InstrumentId) -> Instrument | None:
        """Return the venue's rules."""
        return self._rules.get(instrument_id)


class Unheard:
    """Takes risk's heartbeats and forgets them."""

    async def send(self, envelope: str) -> None:
        """Do nothing."""


def open_limits() -> RiskLimits:
    """Return limits that every rule checks and no order of a benchmark meets."""
    quote = Decimal(_MANY) * 1_000_000
    symbol = SymbolLimits(
        order_quantity_max=Decimal(100),
        order_notional_max=Decimal(_MANY),
        position_quantity_max=Decimal(_MANY),
        symbol_open_orders_max=_MANY,
        symbol_turnover_max=quote,
        symbol_drift_max=quote,
    )
    return RiskLimits(
        symbols={BTC_USDT: symbol},
        gross_exposure_max=quote,
        net_exposure_max=quote,
        concentration_pct_max=Decimal(100),
        leverage_max=Decimal(_MANY),
        order_rate_per_s=_MANY,
        order_burst=_MANY,
        desk_rate_per_s=_MANY,
        desk_burst=_MANY,
        symbol_rate_per_s=_MANY,
        venue_rate_per_s=_MANY,
        turnover_max=quote,
        desk_turnover_max=quote,
        desk_open_orders_max=_MANY,
        venue_open_orders_max=_MANY,
        entries_max=_MANY,
        loss_streak_max=_MANY,
        open_approvals_max=_MANY,
        reserved_notional_max=quote,
        breaker=BreakerLimits(
            denials=_MANY, orders=_MANY, agent_orders=_MANY, order_children=_MANY, order_value=quote, rejections=_MANY
        ),
    )


def small_order(number: int, *, agent_id: str = "bench") -> OrderRequest:
    """Return a 600 USDT limit buy; its price differs by number, so that no order repeats another.

    The buys of one run spend 6 * 10^5 USDT each thousand.
    """
    return OrderRequest(
        symbol=BTC_USDT,
        side=Side.BUY,
        order_type=OrderType.LIMIT,
        amount=Decimal("0.01"),
        unit=SizeUnit.BASE,
        limit_price=Decimal(60_001) + Decimal(number % 10_000) / 100,
        time_in_force=TimeInForce.GTC,
        venue=PAPER,
        account_id=ACCOUNT,
        agent_id=AgentId(f"{agent_id}-{number // 10_000}"),
    )


@dataclass(frozen=True, slots=True)
class RiskRoom:
    """A started risk service with the ledgers around it."""

    service: RiskService
    ledger: Ledger
    execution: Ledger


@asynccontextmanager
async def open_risk_room(
    directory: Path,
    *,
    coordinator: LedgerReader | None = None,
    keys: PinnedKeys | None = None,
    symbols: tuple[Symbol, ...] = (BTC_USDT,),
    heartbeats: HeartbeatSink | None = None,
) -> AsyncGenerator[RiskRoom]:
    """Run a real risk service on fresh ledgers; a stand-in for execution gives signs of life and nothing else.

    Args:
        symbols: what the desk trades; the account holds one base unit of each but the first.
    """
    location, market = LedgerLocation.sqlite(directory), StillMarket(symbols)
    async with (
        open_writer("risk", location, clock=CLOCK, ids=IDS) as ledger,
        open_writer("execution", location, clock=CLOCK, ids=IDS) as execution,
    ):
        held = {USDT: Decimal(_MANY) * 1_000} | {_base(symbol): Decimal(1) for symbol in symbols[1:]}
        funded = [AccountFunded(account_id=ACCOUNT, currency=name, amount=amount) for name, amount in held.items()]
        await execution.commit(Unit(events=tuple(EventDraft(event) for event in funded)))
        service = RiskService(
            RiskParts(
                ledger=ledger,
                execution=execution,
                coordinator=coordinator,
                market=market,
                signer=make_test_signer("risk"),
                clock=CLOCK,
                ids=IDS,
                heartbeats=heartbeats or Unheard(),
                limits=open_limits(),
                mode=Mode.PAPER,
                account_id=ACCOUNT,
                venue=PAPER,
                quote=USDT,
                symbols=symbols,
                data_of=lambda instrument_id: InstrumentId(DATA_ID.venue, instrument_id.symbol),
                keys=keys,
            )
        )

        def pulse() -> None:
            market.refresh()
            service.hear_execution(sent_ms=CLOCK.now_ms(), ledger_seq=len(held), unresolved=0, safe=True)

        pulse()
        await service.start()
        async with beside(pulse, every_s=0.2), _running(service):
            yield RiskRoom(service, ledger, execution)
        await service.stop()


def _base(symbol: Symbol) -> Currency:
    return Currency(symbol.partition("/")[0])


@asynccontextmanager
async def open_execution_room(
    directory: Path, approvals: LedgerReader, market: StillMarket, *, deposit: Decimal = Decimal(_MANY) * 1_000
) -> AsyncGenerator[ExecutionService]:
    """Run a real execution service with a journaling paper venue on a fresh ledger; the caller lets risk be heard."""
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    location, signer = LedgerLocation.sqlite(directory), make_test_signer("risk")
    venue = build_paper_venue(CLOCK, deposits={USDT: str(deposit)}, journal=directory / "paper.journal")
    try:
        async with open_writer("execution", location, clock=CLOCK, ids=IDS) as ledger:
            service = ExecutionService(
                ExecutionParts(
                    ledger=ledger,
                    approvals=approvals,
                    venue=venue,
                    market=market,
                    verifier=Ed25519Verifier.of(signer.public_key),
                    rules=GateRules(mode=Mode.PAPER, account_id=ACCOUNT, venue=PAPER, key_id=signer.key_id),
                    clock=CLOCK,
                    ids=IDS,
                    price_source={INSTRUMENT_ID: DATA_ID},
                    opening_balances={USDT: deposit},
                    quote=USDT,
                )
            )

            def show() -> None:
                market.refresh()
                book = market.book(DATA_ID)
                assert book is not None
                venue.on_book(replace(book, instrument_id=INSTRUMENT_ID))

            show()
            await service.start()
            async with beside(show, every_s=0.2):
                yield service
            await service.stop("done")
    finally:
        await venue.aclose()


@asynccontextmanager
async def beside(work: Callable[[], object], *, every_s: float) -> AsyncGenerator[None]:
    """Repeat a call for the length of the block."""

    async def repeat() -> None:
        while True:
            work()
            await asyncio.sleep(every_s)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def _running(service: RiskService) -> AsyncGenerator[None]:
    """Follow execution's ledger, as the room does."""
    task = asyncio.create_task(service.live.follower.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
