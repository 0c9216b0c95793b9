"""The venue's memory: an append-only file that survives the process.

- One line of JSON per step. A step is everything that one request, book or print changed, so a cut between two lines
  never splits a fill from its order. Lines are numbered without gaps.
- A batch is one ``write``: it is in the kernel when that returns, so ``kill -9`` loses nothing that was answered.
  ``fsync`` makes it survive the machine too, at the price of a disk wait per batch.
- A torn last line (the machine died while writing) was never answered; it is cut off and reported.
- One process has the file at a time, by ``flock``.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from trading.adapters import codec
from trading.adapters.venues.paper.orders import PaperOrder, Step
from trading.domain.approvals import ApprovedOrder
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.identifiers import AccountId, ClientOrderId, Currency, VenueOrderId
from trading.ports.venue import VenueOrderState, VenueTrade


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A process took the journal over; the first one brings the deposits.

    Attributes:
        generation: 1 for the first, rises with each.
        born_ms: when the journal began; part of every id, so a new journal never repeats an old one's ids.
    """

    generation: int
    born_ms: int
    account_id: AccountId
    deposits: dict[Currency, Decimal]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderEntry:
    """An order the venue took in or refused, with its state at the end of that step."""

    terms: ApprovedOrder
    venue_order_id: VenueOrderId
    arrival: int
    state: VenueOrderState
    reason: str
    triggered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEntry:
    """A later change of a known order; fills are in the trades."""

    client_order_id: ClientOrderId
    state: VenueOrderState
    reason: str
    triggered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line."""

    n: int
    at_ms: int
    opening: Opening | None = None
    orders: tuple[OrderEntry, ...] = ()
    trades: tuple[VenueTrade, ...] = ()
    changes: tuple[ChangeEntry, ...] = ()


@dataclass(slots=True)
class JournaledOrder:
    """What the journal knows of one order."""

    entry: OrderEntry
    created_ms: int
    updated_ms: int
    state: VenueOrderState
    reason: str
    triggered: bool
    trades: list[VenueTrade] = field(default_factory=list[VenueTrade])


@dataclass(slots=True)
class JournalContent:
    """All that a journal tells.

    Attributes:
        orders: by client order id, in order of arrival.
        trades: in the order in which they happened.
        duplicates: client order ids that were taken in more than once; must be empty.
        torn_bytes: length of an incomplete last line, 0 normally.
        good_bytes: length of the file without it.
    """

    orders: dict[ClientOrderId, JournaledOrder] = field(default_factory=dict[ClientOrderId, JournaledOrder])
    trades: list[VenueTrade] = field(default_factory=list[VenueTrade])
    duplicates: list[ClientOrderId] = field(default_factory=list[ClientOrderId])
    deposits: dict[Currency, Decimal] = field(default_factory=dict[Currency, Decimal])
    account_id: AccountId | None = None
    generation: int = 0
    born_ms: int = 0
    lines: int = 0
    torn_bytes: int = 0
    good_bytes: int = 0

    def apply(self, entry: Entry) -> None:
        """Take in the next line."""
        self.lines = entry.n
        if entry.opening is not None:
            self._open(entry.opening)
        for order in entry.orders:
            self._add(order, entry.at_ms)
        for trade in entry.trades:
            self.trades.append(trade)
            self.orders[trade.client_order_id].trades.append(trade)
            self.orders[trade.client_order_id].updated_ms = entry.at_ms
        for change in entry.changes:
            known = self.orders[change.client_order_id]
            known.state, known.reason, known.triggered = change.state, change.reason, change.triggered
            known.updated_ms = entry.at_ms

    def _open(self, opening: Opening) -> None:
        self.generation = opening.generation
        self.account_id, self.born_ms = opening.account_id, opening.born_ms
        for currency, amount in opening.deposits.items():
            self.deposits[currency] = self.deposits.get(currency, Decimal(0)) + amount

    def _add(self, order: OrderEntry, at_ms: int) -> None:
        client_order_id = order.terms.client_order_id
        if client_order_id in self.orders:
            self.duplicates.append(client_order_id)
            return
        self.orders[client_order_id] = JournaledOrder(order, at_ms, at_ms, order.state, order.reason, order.triggered)


def read_journal(path: Path) -> JournalContent:
    """Return what a journal says, without locking it; an absent file is an empty journal.

    Raises:
        ConfigurationError: a line other than the last is damaged, or their numbers have a gap.
    """
    content = JournalContent()
    data = path.read_bytes() if path.exists() else b""
    for line in _complete_lines(data):
        content.apply(_parse(line, content.lines + 1, path))
        content.good_bytes += len(line) + 1
    content.torn_bytes = len(data) - content.good_bytes
    return content


def _complete_lines(data: bytes) -> Iterator[bytes]:
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        yield data[start:end]
        start = end + 1


def _parse(line: bytes, expected: int, path: Path) -> Entry:
    try:
        entry = codec.decode(Entry, line)
    except InvalidValue as error:
        raise ConfigurationError(
            f"{path.name}: line {expected} is damaged: {error}",
            code="JOURNAL_DAMAGED",
            suggestion="restore the file from a backup, or start with an empty paper account",
        ) from error
    if entry.n != expected:
        raise ConfigurationError(
            f"{path.name}: line {expected} carries number {entry.n}; lines are missing or repeated",
            code="JOURNAL_DAMAGED",
        )
    return entry


class Journal:
    """The writing end.

    Args:
        path: the file; its directory exists. Created with mode 0600.
        fsync: wait for the disk after each batch.

    Raises:
        ConfigurationError: another process has it, or it is damaged.
    """

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._fsync = fsync
        self._lines: list[bytes] = []
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.content = read_journal(path)
            if self.content.torn_bytes:
                os.ftruncate(self._file, self.content.good_bytes)
        except BlockingIOError:
            os.close(self._file)
            raise ConfigurationError(
                f"{path.name}: another process has this paper venue open",
                code="JOURNAL_LOCKED",
                suggestion="stop the other desk, or give this one its own home",
            ) from None
        except BaseException:
            os.close(self._file)
            raise
        self._n = self.content.lines

    def open_generation(self, account_id: AccountId, deposits: Mapping[Currency, Decimal], now_ms: int) -> Opening:
        """Write, and bring to the disk, that a new process runs the venue; deposits count in a new journal only."""
        known = self.content
        opening = Opening(
            generation=known.generation + 1,
            born_ms=known.born_ms or now_ms,
            account_id=account_id,
            deposits={} if known.generation else dict(deposits),
        )
        self._append(codec.encode({"n": self._n + 1, "at_ms": now_ms, "opening": opening}))
        self.flush()
        os.fsync(self._file)
        return opening

    def add(self, step: Step) -> None:
        """Queue a step for the next ``flush``; an empty step is not written."""
        if not step.is_empty:
            self._append(encode_step(step, self._n + 1))

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._n += 1

    def flush(self) -> None:
        """Write everything queued, in one piece.

        Raises:
            OSError: the disk is full or gone; what was written is unknown and the venue must stop.
        """
        if not self._lines:
            return
        self._lines.append(b"")
        data = b"\n".join(self._lines)
        self._lines.clear()
        written = os.write(self._file, data)
        if written != len(data):
            raise OSError(f"journal: wrote {written} of {len(data)} bytes")
        if self._fsync:
            os.fdatasync(self._file)

    def forget(self) -> None:
        """Free what was read at the start; the venue holds it by now."""
        self.content = JournalContent()

    def close(self) -> None:
        """Give the file up."""
        os.close(self._file)


def encode_step(step: Step, n: int) -> bytes:
    """Return the line with number ``n`` that tells a step."""
    line: dict[str, object] = {"n": n, "at_ms": step.at_ms}
    if step.created:
        line["orders"] = [_order_entry(order) for order in step.created]
    if step.trades:
        line["trades"] = step.trades
    if step.changed:
        line["changes"] = [_change_entry(order) for order in step.changed]
    return codec.encode(line)


def _order_entry(order: PaperOrder) -> Mapping[str, object]:
    return {
        "terms": order.terms,
        "venue_order_id": order.venue_order_id,
        "arrival": order.arrival,
        "state": order.state,
        "reason": str(order.reason),
        "triggered": order.triggered,
    }


def _change_entry(order: PaperOrder) -> Mapping[str, object]:
    return {
        "client_order_id": order.client_order_id,
        "state": order.state,
        "reason": str(order.reason),
        "triggered": order.triggered,
    }


def revive(known: Sequence[JournaledOrder]) -> Iterator[PaperOrder]:
    """Yield the venue's orders as they were, in the order of arrival."""
    for order in known:
        filled = sum((trade.quantity for trade in order.trades), Decimal(0))
        yield PaperOrder(
            terms=order.entry.terms,
            venue_order_id=order.entry.venue_order_id,
            arrival=order.entry.arrival,
            lock_currency=Currency(""),
            created_ms=order.created_ms,
            updated_ms=order.updated_ms,
            state=order.state,
            filled=filled,
            triggered=order.triggered,
            reason=order.reason,
            trades=list(order.trades),
        )
