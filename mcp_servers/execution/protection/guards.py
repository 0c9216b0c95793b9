"""The state of one position's protection: what must survive a restart, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import cast

from mcp_servers.execution.protection.stops import AS_PLANNED, Stop, StopKind, Tightening, tighter
from trading.adapters import codec
from trading.domain.identifiers import AccountId, ApprovalId
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.standing_exits import ExitSlice
from trading.ports.ledger import Row, Upsert


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """How one position is protected now. Immutable: every change returns a new one.

    Attributes:
        side: the closing side.
        is_open: False once the position is closed; only ``exit_id`` and ``number`` then mean anything.
        opened_ms: our clock when the position was first seen.
        best: the best price at which it could have been closed since; None before the first price.
        stop_price, kind: the stop that counts; None before the first.
        asked: what an agent has tightened.
        hit: the stop that was hit; once set the position is closed whatever the price does.
        exit_id, number: the exit whose slices were used last, and how many of them.
    """

    account_id: AccountId
    instrument_id: InstrumentId
    side: Side
    is_open: bool = True
    opened_ms: int
    best: Decimal | None = None
    stop_price: Decimal | None = None
    kind: StopKind | None = None
    asked: Tightening = AS_PLANNED
    hit: StopKind | None = None
    exit_id: ApprovalId | None = None
    number: int = 0

    @property
    def stop(self) -> Stop | None:
        """The stop that counts."""
        if self.stop_price is None or self.kind is None:
            return None
        return Stop(self.stop_price, self.kind)

    @property
    def last_slice(self) -> ApprovalId | None:
        """The name of the last slice that was used, None before the first."""
        if self.exit_id is None or self.number < 1:
            return None
        return ExitSlice(exit_id=self.exit_id, number=self.number).approval_id

    def saw(self, price: Decimal) -> Guard:
        """Return the guard after a price at which the position could be closed."""
        better = self.best is None or (price > self.best if self.side is Side.SELL else price < self.best)
        return replace(self, best=price) if better else self

    def with_stop(self, found: Stop) -> Guard:
        """Return the guard with the nearer of its own stop and the one found now."""
        stop = tighter(self.side, self.stop, found)
        return self if stop == self.stop else replace(self, stop_price=stop.price, kind=stop.kind)

    def next_slice(self, exit_id: ApprovalId) -> ExitSlice:
        """Return the slice to use next of an exit."""
        return ExitSlice(exit_id=exit_id, number=self.number + 1 if exit_id == self.exit_id else 1)

    def used(self, used: ExitSlice) -> Guard:
        """Return the guard after a slice."""
        return replace(self, exit_id=used.exit_id, number=used.number)

    def ended(self) -> Guard:
        """Return the guard of a position that is closed. The slices stay counted: the exit may be used again."""
        return Guard(
            account_id=self.account_id,
            instrument_id=self.instrument_id,
            side=self.side,
            is_open=False,
            opened_ms=self.opened_ms,
            exit_id=self.exit_id,
            number=self.number,
        )


def guard_row(guard: Guard) -> Upsert:
    """Return what writes the guard down."""
    name = guard.instrument_id
    row = {
        "account_id": guard.account_id,
        "venue": name.venue,
        "symbol": name.symbol,
        "guard_json": codec.encode(guard).decode(),
    }
    return Upsert("protections", row)


def guard_of(row: Row) -> Guard:
    """Return the guard that a row holds."""
    return codec.decode(Guard, cast("str", row["guard_json"]))
