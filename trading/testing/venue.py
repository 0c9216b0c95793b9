"""A venue that misbehaves on request, in front of one that does not.

Every fault is one that real venues and networks show. The venue behind keeps its own book, so a test can compare
what the desk believes with what really happened::

    venue = FaultyVenue(build_paper_venue(clock))
    venue.script(Operation.SEND, Fault.LOSE_ANSWER)       # the next order is taken, nobody hears of it
    venue.script(Operation.QUERY, Fault.NOT_FOUND, None)  # then one false "not found", then the truth
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from trading.adapters.venues.paper.latency import Latency
from trading.adapters.venues.paper.venue import PaperVenue, PaperVenueSettings
from trading.domain.approvals import ApprovedOrder
from trading.domain.errors import NonRetryable, OutcomeUnknown, Retryable, VenueError
from trading.domain.identifiers import AccountId, ClientOrderId, Currency, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.money import ZERO
from trading.domain.portfolio import Balance
from trading.ports.clock import Clock
from trading.ports.venue import ExecutionVenue, PreparedOrder, VenueOrderState, VenueQuote, VenueReport, VenueTrade
from trading.testing.builders import ACCOUNT, PAPER, build_instrument

T = TypeVar("T")


class Operation(StrEnum):
    """What a fault is attached to. READ is open_orders, trades_since, balances and quote."""

    PREPARE = "prepare"
    SEND = "send"
    CANCEL = "cancel"
    QUERY = "query"
    READ = "read"
    REPORT = "report"


class Fault(StrEnum):
    """What goes wrong.

    - UNAVAILABLE: nothing reached the venue and the caller knows it (Retryable).
    - REFUSE: a definitive refusal that the venue behind never sees (NonRetryable, code VENUE_REFUSED).
    - LOSE_REQUEST: the request never arrives; the caller gets OutcomeUnknown. For a report: it is lost.
    - LOSE_ANSWER: the venue did it; the caller gets OutcomeUnknown.
    - DELAY_REQUEST: the caller gets OutcomeUnknown now, the venue gets the request at ``release`` (SEND only).
    - HOLD_ANSWER: the venue did it; the answer, or report, comes at ``release`` or after the next report.
    - NOT_FOUND: a successful "not found" for an order that may well exist (QUERY only).
    - FILL_AFTER_CANCEL: the cancel is answered without the fills it raced with; they come as a held report.
    - DUPLICATE: the report comes twice (REPORT only).
    """

    UNAVAILABLE = "unavailable"
    REFUSE = "refuse"
    LOSE_REQUEST = "lose_request"
    LOSE_ANSWER = "lose_answer"
    DELAY_REQUEST = "delay_request"
    HOLD_ANSWER = "hold_answer"
    NOT_FOUND = "not_found"
    FILL_AFTER_CANCEL = "fill_after_cancel"
    DUPLICATE = "duplicate"


Rates = Mapping[tuple[Operation, Fault], float]


def build_paper_venue(
    clock: Clock,
    *,
    deposits: Mapping[str, str] | None = None,
    journal: Path | None = None,
    latency: Latency | None = None,
    instruments: Sequence[Instrument] | None = None,
    account_id: str = ACCOUNT,
    report_backlog_max: int = 10_000,
    fsync: bool = False,
) -> PaperVenue:
    """Return a paper venue for BTC/USDT with 100,000 USDT and 1 BTC; it has no book until ``on_book``."""
    amounts = {"USDT": "100000", "BTC": "1"} if deposits is None else deposits
    settings = PaperVenueSettings(
        name=PAPER,
        account_id=AccountId(account_id),
        instruments=[build_instrument()] if instruments is None else instruments,
        deposits={Currency(currency): Decimal(amount) for currency, amount in amounts.items()},
        journal=journal,
        report_backlog_max=report_backlog_max,
        fsync=fsync,
    )
    return PaperVenue(settings, clock, latency)


class FaultyVenue:
    """Implements ``ExecutionVenue`` on top of another one, with faults from a script or at random.

    Args:
        inner: the venue that really executes.
        rates: probability in [0, 1] of each fault where no script says otherwise.
        seed: the same seed and calls give the same faults.

    Attributes:
        handed_over: every client order id given to ``send``, in order, whatever became of it.
    """

    def __init__(self, inner: ExecutionVenue, *, rates: Rates | None = None, seed: int = 0) -> None:
        self.inner = inner
        self.rates: Rates = rates or {}
        self.handed_over: list[ClientOrderId] = []
        self._random = random.Random(seed)
        self._scripts: dict[Operation, deque[Fault | None]] = defaultdict(deque)
        self._delayed: list[PreparedOrder] = []
        self._gates: list[asyncio.Event] = []
        self._streams: list[FaultyReports] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    def script(self, operation: Operation, *faults: Fault | None) -> None:
        """Let the next calls of an operation fail in this order; None lets one through."""
        self._scripts[operation].extend(faults)

    def draw(self, operation: Operation) -> Fault | None:
        """Return what goes wrong with the next call of an operation: scripted first, else at random."""
        script = self._scripts[operation]
        if script:
            return script.popleft()
        for (on, fault), rate in self.rates.items():
            if on is operation and self._random.random() < rate:
                return fault
        return None

    async def release(self) -> None:
        """Let everything arrive that was delayed or held, requests first."""
        delayed, self._delayed = self._delayed, []
        for prepared in delayed:
            try:
                await self.inner.send(prepared)
            except VenueError:
                continue  # whoever sent it has long stopped listening
        gates, self._gates = self._gates, []
        for gate in gates:
            gate.set()
        for stream in self._streams:
            stream.release()
        await asyncio.sleep(0)

    # The port -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> Venue:
        """The venue's name."""
        return self.inner.name

    async def instruments(self) -> list[Instrument]:
        """Return the rules of everything that can be traded here."""
        return await self.inner.instruments()

    async def prepare(self, order: ApprovedOrder, *, deadline_ms: int) -> PreparedOrder:
        """Prepare at the venue behind; UNAVAILABLE and REFUSE apply."""
        _raise_before(self.draw(Operation.PREPARE))
        return await self.inner.prepare(order, deadline_ms=deadline_ms)

    def send(self, prepared: PreparedOrder) -> Awaitable[VenueReport]:
        """Hand over to the venue behind before returning, unless the fault is that it does not arrive."""
        self.handed_over.append(prepared.order.client_order_id)
        fault = self.draw(Operation.SEND)
        if fault is Fault.DELAY_REQUEST:
            self._delayed.append(prepared)
        if fault is not None and fault in _NEVER_ARRIVES:
            return self._run(_fail(fault))
        return self._run(self._answer(self.inner.send(prepared), fault))

    async def cancel(self, client_order_id: ClientOrderId) -> VenueReport:
        """Cancel at the venue behind; every request fault and FILL_AFTER_CANCEL apply."""
        fault = self.draw(Operation.CANCEL)
        _raise_before(fault)
        report = await self._answer(self.inner.cancel(client_order_id), fault)
        if fault is not Fault.FILL_AFTER_CANCEL:
            return report
        for stream in self._streams:
            stream.hold(report)
        return replace(report, state=VenueOrderState.CANCELED, filled=ZERO, trades=())

    async def query(self, client_order_id: ClientOrderId) -> VenueReport | None:
        """Query the venue behind; every request fault and NOT_FOUND apply."""
        fault = self.draw(Operation.QUERY)
        if fault is Fault.NOT_FOUND:
            return None
        _raise_before(fault)
        return await self._answer(self.inner.query(client_order_id), fault)

    async def open_orders(self) -> list[VenueReport]:
        """Read from the venue behind; every request fault applies."""
        return await self._read(self.inner.open_orders)

    async def trades_since(self, since_ms: int) -> list[VenueTrade]:
        """Read from the venue behind; every request fault applies."""
        return await self._read(lambda: self.inner.trades_since(since_ms))

    async def quote(self, instrument_id: InstrumentId) -> VenueQuote | None:
        """Read from the venue behind; every request fault applies."""
        return await self._read(lambda: self.inner.quote(instrument_id))

    async def balances(self) -> dict[Currency, Balance]:
        """Read from the venue behind; every request fault applies."""
        return await self._read(self.inner.balances)

    def reports(self) -> FaultyReports:
        """Return the venue's reports, some of them lost, doubled or out of order."""
        stream = FaultyReports(self.inner.reports(), self.draw)
        self._streams.append(stream)
        return stream

    async def _read(self, ask: Callable[[], Awaitable[T]]) -> T:
        fault = self.draw(Operation.READ)
        _raise_before(fault)
        return await self._answer(ask(), fault)

    async def _answer(self, answer: Awaitable[T], fault: Fault | None) -> T:
        result = await answer
        if fault is Fault.LOSE_ANSWER:
            raise OutcomeUnknown("the answer was lost")
        if fault is Fault.HOLD_ANSWER:
            gate = asyncio.Event()
            self._gates.append(gate)
            await gate.wait()
        return result

    def _run(self, answer: Coroutine[Any, Any, VenueReport]) -> asyncio.Task[VenueReport]:
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[VenueReport]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a caller who never looks is not worth a warning


_NEVER_ARRIVES = frozenset({Fault.UNAVAILABLE, Fault.REFUSE, Fault.LOSE_REQUEST, Fault.DELAY_REQUEST})


def _raise_before(fault: Fault | None) -> None:
    """Raise what the caller sees of a request that did not arrive.

    Raises:
        Retryable, NonRetryable or OutcomeUnknown, by the fault.
    """
    if fault is Fault.UNAVAILABLE:
        raise Retryable("the venue does not answer", code="VENUE_DOWN")
    if fault is Fault.REFUSE:
        raise NonRetryable("the venue refused the request")
    if fault in _NEVER_ARRIVES:
        raise OutcomeUnknown("no answer in time")


async def _fail(fault: Fault) -> VenueReport:
    _raise_before(fault)
    raise AssertionError("only faults that keep a request from arriving come here")


class FaultyReports(AsyncIterator[VenueReport]):
    """Reads the venue's reports and hands on what the faults leave of them."""

    def __init__(self, inner: AsyncIterator[VenueReport], draw: Callable[[Operation], Fault | None]) -> None:
        self._inner = inner
        self._draw = draw
        self._ready: deque[VenueReport] = deque()
        self._held: list[VenueReport] = []
        self._wakeup = asyncio.Event()
        self._next: asyncio.Future[VenueReport | None] | None = None

    def hold(self, report: VenueReport) -> None:
        """Keep a report back until ``release``."""
        self._held.append(report)

    def release(self) -> None:
        """Hand on what was kept back."""
        self._ready.extend(self._held)
        self._held.clear()
        self._wakeup.set()

    async def __anext__(self) -> VenueReport:
        """Return the next report that survives."""
        while not self._ready:
            await self._pull()
        return self._ready.popleft()

    async def _pull(self) -> None:
        """Wait for the next report or a release, whichever comes first; a reader that gives up loses nothing."""
        if self._next is None:
            self._next = asyncio.ensure_future(_step(self._inner))
        self._wakeup.clear()
        woken = asyncio.ensure_future(self._wakeup.wait())
        try:
            await asyncio.wait({self._next, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        if self._next.done():
            finished, self._next = self._next, None
            self._take(finished.result())

    def _take(self, report: VenueReport | None) -> None:
        if report is None:
            if not self._held:
                raise StopAsyncIteration
            self.release()
            return
        fault = self._draw(Operation.REPORT)
        if fault is Fault.HOLD_ANSWER:
            self._held.append(report)
        elif fault is not Fault.LOSE_REQUEST:
            self._ready.extend([report] * (2 if fault is Fault.DUPLICATE else 1))
            self.release()  # what was held back comes after a later one: out of order

    async def aclose(self) -> None:
        """Stop reading."""
        if self._next is not None:
            self._next.cancel()
        close = getattr(self._inner, "aclose", None)
        if close is not None:
            await close()


async def _step(inner: AsyncIterator[VenueReport]) -> VenueReport | None:
    try:
        return await anext(inner)
    except StopAsyncIteration:
        return None  # a task cannot carry StopAsyncIteration cleanly
