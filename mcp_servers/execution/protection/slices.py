"""Protective orders: each uses one slice of a standing exit, at most once, and goes through the room's one send.

::

    slice ─▶ prepare ─▶ check ─▶ claim + OrderInitialized + guard, one commit ─▶ last check ─▶ send ─▶ answer

Rules kept here:

- The name of a slice follows from exit and number, and its fate is claimed before anything is sent: whatever crashes,
  a slice makes at most one order.
- A number that is taken is passed over, never used again.
- If the claim may have been written although the ledger failed, the room stops: the restart finds out.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from mcp_servers.execution.gate import GateRules, Moment
from mcp_servers.execution.lifecycle import Lifecycle
from mcp_servers.execution.protection.guards import Guard, guard_row
from mcp_servers.execution.protection.permits import ExitFacts, ExitPermit, check_exit
from mcp_servers.execution.protection.rules import ProtectionRules
from mcp_servers.execution.sending import Sending
from mcp_servers.execution.walks import Walk, check_wire, claim_of
from trading.domain.approvals import ApprovedOrder, Effect
from trading.domain.errors import AlreadyClaimed, LedgerError, LedgerUnavailable, Retryable
from trading.domain.identifiers import ApprovalId, OrderId, client_order_id_for
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Side
from trading.domain.orders import Order
from trading.domain.proposals import OrderType, TimeInForce
from trading.domain.standing_exits import PROTECTION, ExitSlice, StandingExit
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Ledger
from trading.ports.venue import ExecutionVenue

_TRIES: Final = 24  # doubling the number each time passes over 16 million used slices


class ExitSlices:
    """Takes slices to the venue.

    Args:
        sending: does what follows a durable claim, for approvals and slices alike.
        facts: execution's own state for the checks.
    """

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        ledger: Ledger,
        venue: ExecutionVenue,
        sending: Sending,
        facts: ExitFacts,
        gate: GateRules,
        rules: ProtectionRules,
        clock: Clock,
        ids: IdFactory,
    ) -> None:
        self._lifecycle = lifecycle
        self._ledger = ledger
        self._venue = venue
        self._sending = sending
        self._facts = facts
        self._gate = gate
        self._rules = rules
        self._clock = clock
        self._ids = ids
        self._under_way: set[ApprovalId] = set()

    @property
    def under_way(self) -> frozenset[ApprovalId]:
        """Slices that are being sent right now; nobody else may draw conclusions about them."""
        return frozenset(self._under_way)

    async def close_now(
        self, guard: Guard, found: StandingExit, instrument: Instrument, quantity: Decimal, limit: Decimal
    ) -> tuple[Guard, Order]:
        """Send an order that trades at once down to ``limit`` or not at all; return guard and order as they are then.

        Args:
            guard: of the position.
            found: the exit to use.
            instrument: the venue's rules.
            quantity: base, on the step.
            limit: quote per base, on the tick, not beyond the floor.

        Raises:
            GateRefused: the exit does not allow it; nothing was sent.
            VenueError: the venue takes no order now; nothing was sent.
            LedgerUnavailable: the ledger failed; nothing was sent.
        """
        return await self._use(
            guard, found, instrument.id, {"quantity": quantity, "limit_price": limit, "stop_price": None}
        )

    async def rest_stop(
        self,
        guard: Guard,
        found: StandingExit,
        instrument: Instrument,
        quantity: Decimal,
        *,
        stop: Decimal,
        limit: Decimal,
    ) -> tuple[Guard, Order]:
        """Let a stop order rest at the venue; arguments, result and errors as of ``close_now``."""
        prices = {"quantity": quantity, "limit_price": limit, "stop_price": stop}
        return await self._use(guard, found, instrument.id, prices)

    async def _use(
        self, guard: Guard, found: StandingExit, instrument_id: InstrumentId, prices: Mapping[str, Decimal | None]
    ) -> tuple[Guard, Order]:
        used = guard.next_slice(found.exit_id)
        for _ in range(_TRIES):
            result = await self._try(guard.used(used), found, used, instrument_id, prices)
            if result is not None:
                return result
            used = ExitSlice(exit_id=used.exit_id, number=used.number * 2)
        raise Retryable("no free slice of the standing exit was found", code="SLICES_USED")

    async def _try(
        self,
        guard: Guard,
        found: StandingExit,
        used: ExitSlice,
        instrument_id: InstrumentId,
        prices: Mapping[str, Decimal | None],
    ) -> tuple[Guard, Order] | None:
        """Use one slice; None when it was used before."""
        now_ms = self._clock.now_ms()
        terms = _terms(found, used, instrument_id, prices)
        permit = ExitPermit(exit=found, used=used, send_by_ms=now_ms + self._rules.window_ms)
        prepared = await self._venue.prepare(terms, deadline_ms=permit.send_by_ms)
        check_wire(prepared, terms)
        check_exit(permit, terms, self._facts, self._gate, self._moment(), claimed=False)
        order = Order(
            order_id=OrderId(self._ids.new_id()),
            approval_id=used.approval_id,
            agent_id=PROTECTION,
            effect=Effect.REDUCE,
            terms=terms,
            created_ms=now_ms,
            updated_ms=now_ms,
        )
        walk = Walk(used.approval_id, prepared=prepared, permit=permit)
        self._under_way.add(used.approval_id)
        try:
            await self._ledger.commit(claim_of(order, exit_slice=used, writes=(guard_row(guard),)))
            walk.order = self._lifecycle.restore(order)
            answers = self._sending.dispatch([walk])  # no await between its last check and its send
            await self._sending.collect(answers)
            await self._lifecycle.flush()
        except AlreadyClaimed:
            return None
        except LedgerError as error:
            self._lifecycle.broken.set()
            raise LedgerUnavailable("the execution ledger failed while a stop was sent; the room stops") from error
        finally:
            self._under_way.discard(used.approval_id)
        return guard, self._lifecycle.book.order(order.order_id) or order

    def _moment(self) -> Moment:
        return Moment(self._clock.now_ms(), self._clock.monotonic_ns())


def _terms(
    found: StandingExit, used: ExitSlice, instrument_id: InstrumentId, prices: Mapping[str, Decimal | None]
) -> ApprovedOrder:
    """Return the order of a slice. A purchase cannot be reduce-only on spot, where nothing is ever short."""
    side, stop, quantity = found.terms.side, prices["stop_price"], prices["quantity"]
    assert quantity is not None
    return ApprovedOrder(
        account_id=found.account_id,
        venue=instrument_id.venue,
        symbol=instrument_id.symbol,
        side=side,
        order_type=OrderType.LIMIT if stop is None else OrderType.STOP_LIMIT,
        time_in_force=TimeInForce.IOC if stop is None else TimeInForce.GTC,
        quantity=quantity,
        limit_price=prices["limit_price"],
        stop_price=stop,
        post_only=False,
        reduce_only=side is Side.SELL,
        client_order_id=client_order_id_for(used.approval_id, instrument_id.venue),
    )
