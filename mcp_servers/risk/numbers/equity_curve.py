"""The desk's equity curve: how deep it is under its best, how deep it ever was, and for how long.

The curve is that of one unit paid in at the beginning: deposits and withdrawals do not bend it, open positions and fees
do. What is kept in the ledger is enough to go on after a restart, so neither a restart nor a crash forgives a loss.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from math import isfinite
from typing import Final

from trading.ports.ledger import Row, Upsert

SCOPE: Final = "equity_curve"
_SAVE_EVERY_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class CurveState:
    """The curve at its newest point.

    Attributes:
        index: worth of one unit, 1 at the beginning.  peak: its highest so far.
        deepest: largest fall below a peak, a share of it, >= 0.
        started_ms, peak_ms, last_ms: of the first point, the newest peak and the newest point.
        longest_ms: longest time between a peak and the next.
        result: earned by trading at the newest point, quote.  equity: the account's worth then, quote.
    """

    index: float
    peak: float
    deepest: float
    started_ms: int
    peak_ms: int
    last_ms: int
    longest_ms: int
    result: float
    equity: float

    @property
    def drawdown(self) -> float:
        """How far the newest point lies below the peak, a share of it, >= 0."""
        return 1 - self.index / self.peak

    @property
    def under_water_ms(self) -> int:
        """Time since the newest peak, 0 at one."""
        return self.last_ms - self.peak_ms


class EquityCurve:
    """Follows the account, one sample after another.

    Args:
        state: where an earlier run stopped; None for a new desk.
    """

    def __init__(self, state: CurveState | None = None) -> None:
        self.state = state
        self._saved_ms: int | None = None

    def sample(self, equity: Decimal | None, result: Decimal | None, now_ms: int) -> None:
        """Take a point; one without a price, or of an empty account, is left out.

        Args:
            equity: the account's worth, quote.
            result: earned by trading since the beginning, quote; only its change counts.
            now_ms: a sample that is not later than the last one is left out.
        """
        if equity is None or result is None or equity <= 0:
            return
        worth, earned = float(equity), float(result)
        old = self.state
        if old is None:
            self.state = CurveState(1.0, 1.0, 0.0, now_ms, now_ms, now_ms, 0, earned, worth)
            return
        if now_ms <= old.last_ms:
            return
        # A unit that lost all it had is worth next to nothing, not nothing: the curve must be able to go on.
        index = old.index * max(1e-9, 1 + (earned - old.result) / old.equity)
        new = replace(old, index=index, last_ms=now_ms, result=earned, equity=worth)
        if index >= old.peak:
            new = replace(new, peak=index, peak_ms=now_ms)
            waited = now_ms - old.peak_ms if old.index < old.peak else 0
        else:
            new = replace(new, deepest=max(old.deepest, new.drawdown))
            waited = new.under_water_ms
        self.state = replace(new, longest_ms=max(old.longest_ms, waited))

    def unsaved(self, now_ms: int) -> Upsert | None:
        """Return the row that keeps the curve, at most once a minute; None when it need not be written."""
        if self.state is None or (self._saved_ms is not None and now_ms - self._saved_ms < _SAVE_EVERY_MS):
            return None
        return Upsert(
            "desk_state",
            {
                "scope": SCOPE,
                "state": "",
                "generation": 0,
                "counter": 0,
                "reason": json.dumps(asdict(self.state)),
                "updated_ms": now_ms,
            },
        )

    def saved(self, now_ms: int) -> None:
        """Note that the row of ``unsaved`` is in the ledger."""
        self._saved_ms = now_ms


def read_curve(row: Row | None) -> CurveState | None:
    """Return the state that ``unsaved`` wrote; None when there is none or it cannot be read."""
    if row is None:
        return None
    try:
        state = CurveState(**json.loads(str(row["reason"])))
        sound = all(isfinite(value) for value in asdict(state).values()) and state.equity > 0
        return state if sound and 0 < state.index <= state.peak else None
    except (ValueError, TypeError):
        return None
