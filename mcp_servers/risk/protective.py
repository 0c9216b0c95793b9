"""Tells the orders of standing exits, which need no approval, from orders that nobody allowed.

Rules kept here:

- Only an exit that risk itself signed counts: it is looked up in risk's own ledger, under the id that the order names.
- The order is on the closing side of that exit, for its account and instrument, not beyond its floor and not after its
  end, and named after its slice. Whatever differs is an order without an approval.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from trading.domain.approvals import Effect
from trading.domain.events import EventEnvelope, OrderInitialized
from trading.domain.identifiers import ApprovalId, client_order_id_for
from trading.domain.standing_exits import PROTECTION, StandingExit
from trading.ports.ledger import LedgerReader

from .journal import approved_of
from .standing_exits import TABLE, exit_of

#: Exits kept in memory; more than one read of execution's ledger can name.
_KEPT: Final = 4_096


class KnownExits:
    """The exits that risk signed, as far as orders have used them.

    Args:
        ledger: risk's own.
    """

    def __init__(self, ledger: LedgerReader) -> None:
        self._ledger = ledger
        self._known: OrderedDict[ApprovalId, StandingExit] = OrderedDict()

    async def learn(self, events: Sequence[EventEnvelope]) -> None:
        """Look up the exits that these events use.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        slices = [event.payload.exit_slice for event in events if isinstance(event.payload, OrderInitialized)]
        wanted = {item.exit_id for item in slices if item is not None} - self._known.keys()
        if not wanted:
            return
        ids = sorted(wanted)
        found = [exit_of(row) for row in await self._ledger.rows(TABLE, {"exit_id": ids})]
        for row in await self._ledger.rows("approvals", {"approval_id": ids}):
            nested = approved_of(row).approval.exit()
            if nested is not None:
                found.append(nested)
        self._known.update((item.exit_id, item) for item in found)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)

    def covers(self, order: OrderInitialized, at_ms: int) -> bool:
        """Return whether a standing exit allows this order, written at ``at_ms`` of execution's clock."""
        used, terms = order.exit_slice, order.terms
        found = None if used is None else self._known.get(used.exit_id)
        if found is None or used is None or terms.limit_price is None:
            return False
        named = (order.approval_id, order.agent_id, order.effect, terms.client_order_id)
        expected = (used.approval_id, PROTECTION, Effect.REDUCE, client_order_id_for(used.approval_id, terms.venue))
        place = (terms.account_id, terms.instrument_id, terms.side)
        return (
            named == expected
            and place == (found.account_id, found.instrument_id, found.terms.side)
            and not found.is_beyond(terms.limit_price)
            and at_ms < found.terms.expires_ms
        )
