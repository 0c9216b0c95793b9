"""The paper venue as the desk sees it: requests that travel, a matching core, a journal, reports.

Order of things in one turn: requests that have arrived are matched, what they did is journaled in one write, and
only then answered and reported. So nothing that anybody was told can be forgotten.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from trading.adapters.venues.paper.accounts import Accounts
from trading.adapters.venues.paper.journal import Journal, revive
from trading.adapters.venues.paper.latency import Latency, NoLatency
from trading.adapters.venues.paper.matching import PaperExchange
from trading.adapters.venues.paper.orders import Refusal, Step
from trading.adapters.venues.paper.reports import ReportStream
from trading.adapters.venues.paper.rules import FEES_IN_QUOTE, FeeSchedule
from trading.domain.approvals import ApprovedOrder
from trading.domain.errors import ConfigurationError, NonRetryable, OutcomeUnknown, Retryable, VenueError
from trading.domain.identifiers import AccountId, ClientOrderId, Currency, Symbol, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import OrderBook, TradePrint
from trading.domain.portfolio import Balance
from trading.ports.clock import Clock
from trading.ports.venue import PreparedOrder, VenueOrderState, VenueQuote, VenueReport, VenueTrade


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperVenueSettings:
    """What a paper venue needs to know.

    Attributes:
        deposits: opening balances; they count when the journal is new.
        journal: the file that remembers everything; None for a venue that forgets (backtests).
        fsync: wait for the disk after each batch, to survive the machine and not only the process.
        report_backlog_max: unread changed orders at which the venue takes no new orders.
    """

    name: Venue
    account_id: AccountId
    instruments: Sequence[Instrument]
    deposits: Mapping[Currency, Decimal]
    journal: Path | None = None
    fsync: bool = False
    fees: FeeSchedule = FEES_IN_QUOTE
    report_backlog_max: int = 10_000


@dataclass(slots=True)
class _Request:
    """A message on its way: ``act`` runs at the venue on arrival, ``answer`` then makes the reply."""

    act: Callable[[int], Step] | None
    answer: Callable[[], object]
    reply: asyncio.Future[Any]


class PaperVenue:
    """Implements ``trading.ports.venue.ExecutionVenue``. Use from one event loop.

    Args:
        settings: name, account, instruments, deposits, journal.
        clock: the venue's clock.
        latency: how long messages travel; none by default.

    Raises:
        ConfigurationError: the journal is damaged, in use, or of another account or instrument.
    """

    def __init__(self, settings: PaperVenueSettings, clock: Clock, latency: Latency | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._latency = latency or NoLatency()
        self._instant = isinstance(self._latency, NoLatency)
        self._streams: list[ReportStream] = []
        self._arrived: list[_Request] = []
        self._travelling: list[tuple[int, int, Callable[[], None]]] = []  # due (monotonic ns), tie-break, what
        self._waiting: set[asyncio.Future[Any]] = set()
        self._messages = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = ""
        self._now_ms = 0
        self._journal = Journal(settings.journal, fsync=settings.fsync) if settings.journal is not None else None
        #: Length of an incomplete last line that was cut off the journal at the start, 0 normally.
        self.torn_bytes = self._journal.content.torn_bytes if self._journal is not None else 0
        try:
            self.exchange = open_exchange(settings, self._journal, clock.now_ms())
        except BaseException:
            if self._journal is not None:
                self._journal.close()
            raise

    @property
    def name(self) -> Venue:
        """The venue's name."""
        return self._settings.name

    # The market that is watched -------------------------------------------------------------------------------

    def on_book(self, book: OrderBook) -> None:
        """Take in a public book; resting orders may fill and stops trigger."""
        self._watch(lambda now_ms: self.exchange.on_book(book, now_ms))

    def on_trade(self, trade: TradePrint) -> None:
        """Take in a public print; resting orders may fill and stops trigger."""
        self._watch(lambda now_ms: self.exchange.on_trade(trade, now_ms))

    def _watch(self, act: Callable[[int], Step]) -> None:
        if self._stopped:
            return
        try:
            step = act(self._read_clock())
            if step.is_empty:
                return
            self._write([step])
        except OSError as error:
            self._stop(f"the journal failed: {error}")
            return
        except Exception:
            self._stop("a fault inside the venue")
            raise
        self._report(step)

    def _report(self, step: Step) -> None:
        fresh = Counter(trade.client_order_id for trade in step.trades)
        changes = [(order.client_order_id, len(order.trades) - fresh[order.client_order_id]) for order in step.changed]
        for stream in self._streams:
            self._travel(partial(_push, stream, changes))

    # Requests -------------------------------------------------------------------------------------------------

    async def instruments(self) -> list[Instrument]:
        """Return the rules of everything that can be traded here."""
        return self.exchange.instruments

    async def prepare(self, order: ApprovedOrder, *, deadline_ms: int) -> PreparedOrder:
        """Return the order ready to go. Nothing is re-encoded on the way: this very object arrives.

        Raises:
            NonRetryable: the order is for another venue.
            Retryable: the venue is down, or reports wait to be read and no new order is taken until they are.
        """
        if order.venue != self.name:
            raise NonRetryable(f"this is {self.name}, not {order.venue}", code=Refusal.UNKNOWN_SYMBOL)
        if self._stopped:
            raise Retryable(f"the paper venue is down: {self._stopped}", code="VENUE_DOWN")
        if any(stream.backlog >= self._settings.report_backlog_max for stream in self._streams):
            raise Retryable("too many unread reports", code="REPORTS_BACKLOG", suggestion="read reports() first")
        return PreparedOrder(order, order.quantity, order.limit_price, deadline_ms, order)

    def send(self, prepared: PreparedOrder) -> Awaitable[VenueReport]:
        """Queue the order before returning; await the answer afterwards. Dropping the answer does not stop it.

        An id the venue has seen before is answered with that order as it is now, or with its old refusal.

        Raises (from the awaitable):
            NonRetryable: refused; ``code`` is one of ``Refusal``. OutcomeUnknown: the venue stopped meanwhile.
        """
        order, deadline_ms = prepared.order, prepared.deadline_ms
        return self._request(
            lambda now_ms: self.exchange.submit(order, now_ms, deadline_ms=deadline_ms),
            lambda: self._accepted(order.client_order_id),
        )

    def _accepted(self, client_order_id: ClientOrderId) -> VenueReport:
        order = self.exchange.orders[client_order_id]
        if order.state is VenueOrderState.REJECTED:
            raise NonRetryable(f"the paper venue refused the order: {order.reason}", code=order.reason)
        return order.report()

    async def cancel(self, client_order_id: ClientOrderId) -> VenueReport:
        """Cancel an order and return it afterwards; it may have ended first.

        Raises:
            NonRetryable: ORDER_NOT_FOUND. OutcomeUnknown: the venue stopped.
        """
        return await self._request(
            lambda now_ms: self.exchange.cancel(client_order_id, now_ms), lambda: self._known(client_order_id)
        )

    def _known(self, client_order_id: ClientOrderId) -> VenueReport:
        order = self.exchange.orders.get(client_order_id)
        if order is None:
            raise NonRetryable("the paper venue has no such order", code=Refusal.ORDER_NOT_FOUND)
        return order.report()

    async def cancel_all(self, symbol: Symbol | None = None) -> list[VenueReport]:
        """Cancel every working order, of one symbol if given, and return them afterwards."""
        working = await self.open_orders()
        chosen = [each for each in working if symbol is None or each.instrument_id.symbol == symbol]
        return list(await asyncio.gather(*(self.cancel(each.client_order_id) for each in chosen)))

    async def query(self, client_order_id: ClientOrderId) -> VenueReport | None:
        """Return the order, a refused one included, or None if it never arrived (so far).

        Raises:
            OutcomeUnknown: the venue stopped; that is not a "not found".
        """

        def find() -> VenueReport | None:
            order = self.exchange.orders.get(client_order_id)
            return None if order is None else order.report()

        return await self._request(None, find)

    async def open_orders(self) -> list[VenueReport]:
        """Return every working order, stops included, in the order of arrival."""
        return await self._request(None, lambda: [order.report() for order in self.exchange.working.values()])

    async def trades_since(self, since_ms: int) -> list[VenueTrade]:
        """Return executions from that venue time on, oldest first."""
        trades = self.exchange.trades
        return await self._request(
            None, lambda: trades[bisect_left(trades, since_ms, key=lambda trade: trade.venue_ts_ms) :]
        )

    async def quote(self, instrument_id: InstrumentId) -> VenueQuote | None:
        """Return the best prices that orders would meet here now, what they have taken already left out."""
        return await self._request(None, lambda: self.exchange.quote(instrument_id.symbol))

    async def balances(self) -> dict[Currency, Balance]:
        """Return the account's balances."""
        return await self._request(None, self.exchange.accounts.balances)

    def reports(self) -> ReportStream:
        """Return a new reader of unsolicited changes, which hears everything from now on. Close it when done."""
        stream = ReportStream(self.exchange.orders, self._streams.remove)
        self._streams.append(stream)
        return stream

    # Transport ------------------------------------------------------------------------------------------------

    def _request(self, act: Callable[[int], Step] | None, answer: Callable[[], object]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        if self._stopped:
            _refuse(reply, self._stopped)
            return reply
        self._waiting.add(reply)
        request = _Request(act, answer, reply)
        if self._instant:
            if not self._arrived:
                loop.call_soon(self._turn)
            self._arrived.append(request)
        else:
            self._travel(partial(self._arrived.append, request))
        return reply

    def _travel(self, arrive: Callable[[], None]) -> None:
        """Let something happen after one leg of latency."""
        if self._instant:
            arrive()
            return
        self._messages += 1
        due = self._clock.monotonic_ns() + self._latency.leg_ns()
        heapq.heappush(self._travelling, (due, self._messages, arrive))
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._travelling and not self._stopped:
            wait_s = max(0, self._travelling[0][0] - self._clock.monotonic_ns()) / 1e9
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.pump)

    def pump(self) -> None:
        """Let everything arrive whose time has come; the venue does this itself, a test with its own clock may."""
        while self._travelling and self._travelling[0][0] <= self._clock.monotonic_ns():
            heapq.heappop(self._travelling)[2]()
            if self._arrived:
                self._turn()
        self._arm()

    def _turn(self) -> None:
        """Match what has arrived, journal it in one write, then answer."""
        requests, self._arrived = self._arrived, []
        if self._stopped or not requests:
            return
        steps: list[Step] = []
        outcomes: list[tuple[asyncio.Future[Any], object]] = []
        try:
            for request in requests:
                if request.act is not None:
                    steps.append(request.act(self._read_clock()))
                outcomes.append((request.reply, _outcome(request.answer)))
            self._write(steps)
        except OSError as error:
            self._stop(f"the journal failed: {error}")
            return
        except Exception:
            self._stop("a fault inside the venue")  # the core may be half way through a step: take nothing more
            raise
        for reply, outcome in outcomes:
            self._travel(partial(self._deliver, reply, outcome))

    def _deliver(self, reply: asyncio.Future[Any], outcome: object) -> None:
        self._waiting.discard(reply)
        if reply.done():
            return  # the caller went away; the order did not
        if isinstance(outcome, VenueError):
            reply.set_exception(outcome)
            reply.exception()  # a caller who never looks is not worth a warning
        else:
            reply.set_result(outcome)

    def _write(self, steps: list[Step]) -> None:
        if self._journal is not None:
            for step in steps:
                self._journal.add(step)
            self._journal.flush()

    def _read_clock(self) -> int:
        """Return the venue's time, which does not go back even when the machine's does."""
        self._now_ms = max(self._now_ms, self._clock.now_ms())
        return self._now_ms

    # Ending ---------------------------------------------------------------------------------------------------

    def _stop(self, why: str) -> None:
        self._stopped = why
        if self._timer is not None:
            self._timer.cancel()
        for reply in self._waiting:
            _refuse(reply, why)
        self._waiting.clear()
        self._travelling.clear()
        self._arrived.clear()
        for stream in list(self._streams):
            stream.end()

    async def aclose(self) -> None:
        """Stop, release the journal. Requests still on their way end as OutcomeUnknown; resting orders are kept."""
        if not self._stopped:
            self._stop("it was closed")
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def open_exchange(settings: PaperVenueSettings, journal: Journal | None, now_ms: int) -> PaperExchange:
    """Return the matching core as the journal remembers it, ready for a new generation of ids.

    Raises:
        ConfigurationError: the journal belongs to another account, or an open order's instrument is not offered.
    """
    accounts = Accounts()
    if journal is None:
        accounts.deposit(settings.deposits)
        return PaperExchange(settings.instruments, settings.account_id, accounts, fees=settings.fees)
    known = journal.content
    if known.account_id not in (None, settings.account_id):
        raise ConfigurationError(f"the paper journal belongs to account {known.account_id}", code="JOURNAL_ACCOUNT")
    opening = journal.open_generation(settings.account_id, settings.deposits, now_ms)
    accounts.deposit(known.deposits or opening.deposits)
    exchange = PaperExchange(
        settings.instruments,
        settings.account_id,
        accounts,
        fees=settings.fees,
        id_prefix=f"{opening.born_ms:x}.{opening.generation:x}",
    )
    for trade in known.trades:
        exchange.restore_trade(trade)
    for order in revive(list(known.orders.values())):
        exchange.restore(order)
    journal.forget()
    return exchange


def _outcome(answer: Callable[[], object]) -> object:
    try:
        return answer()
    except VenueError as error:
        return error


def _refuse(reply: asyncio.Future[Any], why: str) -> None:
    if not reply.done():
        reply.set_exception(OutcomeUnknown(f"the paper venue stopped: {why}", suggestion="query after its restart"))
        reply.exception()


def _push(stream: ReportStream, changes: list[tuple[ClientOrderId, int]]) -> None:
    for client_order_id, first_trade in changes:
        stream.push(client_order_id, first_trade)
