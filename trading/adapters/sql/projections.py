"""Checks that the projection tables say what the events say.

Projections can be changed (orders move on), so nothing guards their rows. What an event fixed for good, though, must
still be in its row: the terms of a fill, the approval of an order, the envelope of a vote. A row without its event is
noticed by counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trading.adapters.sql.reader import SqlReader
from trading.adapters.sql.stored import EventRow, decode_row
from trading.adapters.sql.tables import Shape, Values, shape_of
from trading.domain.approvals import Fate
from trading.domain.errors import InvalidValue
from trading.domain.events import (
    ApprovalEnded,
    DomainEvent,
    OrderFilled,
    OrderInitialized,
    ProposalDecided,
    ProposalOpened,
    RiskApproved,
    VoteCast,
)
from trading.ports.ledger import Row

#: Tables whose every row comes from exactly one event, by room.
_COUNTED: Final[Mapping[str, tuple[str, ...]]] = {
    "execution": ("orders", "fills", "approval_fates"),
    "coordinator": ("proposals", "votes", "decisions"),
}

_MISMATCHES_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A row that is not what its event made it.

    Attributes:
        seq: of the event, or of the newest event when rows are too many.
        detail: a sentence for a person.
    """

    seq: int
    detail: str


def fixed_rows(event: DomainEvent) -> list[tuple[str, Row]]:
    """Return the columns that an event fixed for good, by table; each row includes the table's primary key."""
    match event:
        case OrderInitialized():
            order = {
                "order_id": event.order_id,
                "approval_id": event.approval_id,
                "client_order_id": event.terms.client_order_id,
                "venue": event.terms.venue,
                "symbol": event.terms.symbol,
                "account_id": event.terms.account_id,
                "side": event.terms.side,
            }
            fate = {"approval_id": event.approval_id, "fate": Fate.CONSUMED, "order_id": event.order_id}
            return [("orders", order), ("approval_fates", fate)]
        case ApprovalEnded():
            return [("approval_fates", {"approval_id": event.approval_id, "fate": event.fate, "order_id": None})]
        case OrderFilled():
            fill = event.fill
            row = {
                "venue": fill.instrument_id.venue,
                "trade_id": fill.trade_id,
                "order_id": fill.order_id,
                "symbol": fill.instrument_id.symbol,
                "side": fill.side,
                "quantity": fill.quantity,
                "price": fill.price,
                "fee": fill.fee,
                "fee_currency": fill.fee_currency,
            }
            return [("fills", row)]
        case RiskApproved():
            return [("approvals", {"approval_id": event.approval.approval_id, "envelope": event.envelope})]
        case ProposalOpened():
            return [("proposals", {"proposal_id": event.proposal_id, "envelope": event.envelope})]
        case VoteCast():
            key = {"proposal_id": event.proposal_id, "agent_id": event.agent_id}
            return [("votes", {**key, "choice": event.choice, "envelope": event.envelope})]
        case ProposalDecided():
            return [("decisions", {"decision_id": event.decision_id, "envelope": event.envelope})]
        case _:
            return []


class ProjectionAudit:
    """Compares rows with events, some thousands at a time.

    Args:
        reader: of the room.
    """

    def __init__(self, reader: SqlReader) -> None:
        self._reader = reader
        self._rows_at_start: dict[str, int] = {}
        self._events: dict[str, int] = {}
        self.mismatches: list[Mismatch] = []

    async def start(self) -> None:
        """Count rows first: what a live writer adds afterwards is then never mistaken for a row without its event."""
        for table in _COUNTED.get(self._reader.room, ()):
            self._rows_at_start[table] = await self._reader.count(table)

    async def feed(self, rows: Sequence[EventRow]) -> None:
        """Check the rows of the next events; raises LedgerUnavailable."""
        expected: dict[str, list[tuple[int, Shape, dict[int, object]]]] = {}
        for row in rows:
            try:
                event = decode_row(self._reader.room, row).payload
                wanted = [
                    (name, *_positions(shape_of(self._reader.room, name), fixed)) for name, fixed in fixed_rows(event)
                ]
            except InvalidValue:  # the chain says what is wrong with such an event
                continue
            for name, shape, fixed in wanted:
                self._events[name] = self._events.get(name, 0) + 1
                expected.setdefault(name, []).append((row[0], shape, fixed))
        for name, several in expected.items():
            await self._compare(name, several)

    async def _compare(self, table: str, expected: Sequence[tuple[int, Shape, dict[int, object]]]) -> None:
        shape = expected[0][1]
        where = {shape.columns[at]: sorted({str(fixed[at]) for _, _, fixed in expected}) for at in shape.key}
        found: dict[Values, Row] = {}
        for row in await self._reader.rows(table, where):
            found[_key(shape, {position: row[shape.columns[position]] for position in shape.key})] = row
        for seq, _, fixed in expected:
            if len(self.mismatches) >= _MISMATCHES_MAX:
                return
            row = found.get(_key(shape, fixed))
            if row is None:
                self.mismatches.append(Mismatch(seq, f"the {table} row of event {seq} is missing"))
                continue
            wrong = [shape.columns[at] for at, value in fixed.items() if row[shape.columns[at]] != value]
            if wrong:
                self.mismatches.append(
                    Mismatch(seq, f"the {table} row of event {seq} has another {', '.join(wrong)} than the event")
                )

    def finish(self, seq: int) -> None:
        """Say which tables have rows that no event made; ``seq`` is the newest event's."""
        for table, rows in self._rows_at_start.items():
            extra = rows - self._events.get(table, 0)
            if extra > 0:
                self.mismatches.append(Mismatch(seq, f"{table} has {extra} rows more than events that make one"))


def _positions(shape: Shape, fixed: Row) -> tuple[Shape, dict[int, object]]:
    return shape, {position: allowed[0] for position, allowed in shape.condition(fixed)}


def _key(shape: Shape, fixed: Mapping[int, object]) -> Values:
    return tuple(str(fixed[position]) for position in shape.key)
