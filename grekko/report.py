"""The JSON report of a run: what happened, how fast, and whether it can be proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from grekko.audit import DeskAudit
from grekko.picture import DeskPicture
from trading.domain.identifiers import Currency
from trading.domain.instruments import InstrumentId
from trading.domain.money import ZERO, add, plain, subtract

#: Price in quote by instrument.
Marks = Mapping[InstrumentId, Decimal]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What only the runner knows.

    Attributes:
        market: ``replay`` or ``live``.
        seconds: how long the desk ran.
        opening_marks: mid prices when the run began.  marks: when it ended.
        restarts: how often each room had to be started again.
    """

    mode: str
    market: str
    seconds: float
    opening_marks: Marks
    marks: Marks
    restarts: Mapping[str, int]


def build_report(picture: DeskPicture, audit: DeskAudit, facts: RunFacts, *, quote: Currency) -> dict[str, Any]:
    """Return the report; amounts are decimal strings in ``quote``, latencies milliseconds."""
    counts = picture.counts
    earned = profit(picture, facts.opening_marks, facts.marks, quote=quote)
    return {
        "mode": facts.mode,
        "market": facts.market,
        "seconds": round(facts.seconds, 3),
        "proposals": counts.proposals,
        "proposals_refused": counts.proposals_refused,
        "votes": counts.votes,
        "votes_refused": counts.votes_refused,
        "decisions": counts.decisions,
        "decisions_approved": counts.decisions_approved,
        "approvals": counts.approvals,
        "denied": counts.denied,
        "denials": dict(counts.denials.most_common()),
        "orders": dict(picture.order_states()),
        "stops_among_orders": dict(picture.stop_states()),
        "fills": counts.fills,
        "fees": plain(earned.fees),
        "fees_by_currency": {currency: plain(amount) for currency, amount in picture.fees.items()},
        "pnl": plain(earned.net),
        "pnl_realized": plain(earned.realized),
        "pnl_unrealized": plain(earned.unrealized),
        "positions": {
            str(instrument_id): plain(position.quantity)
            for instrument_id, position in picture.account.positions.items()
        },
        "alarms": counts.alarms,
        "restarts": dict(facts.restarts),
        "latency_ms": picture.latency.percentiles(),
        "audit": audit.as_dict(),
        "invariants": audit.invariants(),
    }


@dataclass(frozen=True, slots=True)
class Profit:
    """Profit and loss of a run in quote.

    Attributes:
        realized: of what was closed in the run, before fees.
        unrealized: change in the worth of what is open, before fees.
    """

    realized: Decimal
    unrealized: Decimal
    fees: Decimal

    @property
    def net(self) -> Decimal:
        """What the run earned after fees."""
        return subtract(add(self.realized, self.unrealized), self.fees)


def profit(picture: DeskPicture, opening_marks: Marks, marks: Marks, *, quote: Currency) -> Profit:
    """Return the profit of a run; a position without a mark is taken at cost."""
    realized, unrealized = ZERO, ZERO
    for positions, prices, sign in ((picture.account.positions, marks, 1), (picture.opening, opening_marks, -1)):
        for instrument_id, position in positions.items():
            realized = add(realized, position.realized * sign)
            if (mark := prices.get(instrument_id)) is not None:
                unrealized = add(unrealized, position.unrealized(mark) * sign)
    return Profit(realized, unrealized, picture.fees.get(quote, ZERO))


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write the report as indented JSON, replacing an older one in one step."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    temporary.replace(path)
