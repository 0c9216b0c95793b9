"""Makes the stop-loss manager of an execution service."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from mcp_servers.execution.protection.closing import Closing
from mcp_servers.execution.protection.exits import StandingExits
from mcp_servers.execution.protection.prices import ExitPrices
from mcp_servers.execution.protection.resting import RestingStops
from mcp_servers.execution.protection.slices import ExitSlices
from mcp_servers.execution.protection.stop_loss import StopLoss, StopLossParts
from trading.domain.instruments import InstrumentId

if TYPE_CHECKING:
    from mcp_servers.execution.service import ExecutionService


def build_slices(service: ExecutionService) -> ExitSlices:
    """Return what sends the service's protective orders."""
    parts = service.parts
    return ExitSlices(
        lifecycle=service.lifecycle,
        ledger=parts.ledger,
        venue=parts.venue,
        sending=service.sending,
        facts=service,
        gate=parts.rules,
        rules=parts.protection,
        clock=parts.clock,
        ids=parts.ids,
    )


def build_stop_loss(service: ExecutionService, exits: StandingExits, slices: ExitSlices) -> StopLoss:
    """Return the manager; nothing is read or sent before its ``load``."""
    parts, rules = service.parts, service.parts.protection
    prices = ExitPrices(
        service.book,
        parts.venue,
        parts.clock,
        age_max_ms=parts.rules.price_age_max_ms,
        timeout_s=rules.quote_timeout_s,
    )
    resting = RestingStops(
        lifecycle=service.lifecycle,
        cancels=service.cancels,
        slices=slices,
        facts=service,
        rules=rules,
        clock=parts.clock,
    )
    closing = Closing(
        lifecycle=service.lifecycle,
        resting=resting,
        slices=slices,
        facts=service,
        rules=rules,
        clock=parts.clock,
    )

    def equity(marks: Mapping[InstrumentId, Decimal]) -> Decimal | None:
        snapshot = service.lifecycle.book.snapshot(now_ms=parts.clock.now_ms(), ledger_seq=0)
        known = {
            instrument.base: marks[name]
            for name, instrument in service.instruments.items()
            if name in marks and instrument.quote == parts.quote
        }
        return snapshot.equity(parts.quote, known)

    return StopLoss(
        StopLossParts(
            lifecycle=service.lifecycle,
            ledger=parts.ledger,
            exits=exits,
            prices=prices,
            closing=closing,
            resting=resting,
            gate=parts.rules,
            rules=rules,
            clock=parts.clock,
            equity=equity,
            is_risk_heard=lambda: service.epochs.is_fresh(parts.clock.monotonic_ns()),
        )
    )
