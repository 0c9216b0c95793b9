"""Re-checks the orders that had no approval: each must be a slice of an exit that risk signed, and close what is open.

Rules kept here:

- An entry carries an exit, a reduce carries none; an exit of its own verifies with risk's pinned key.
- A slice makes one order, under the name that follows from exit and number, for the exit's account and instrument, on
  its closing side, not beyond its floor and not after its end.
- Slices of all exits together never trade beyond the position: no fill of theirs turns it around.
"""

from __future__ import annotations

from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, open_envelope
from trading.domain.accounts import split_symbol
from trading.domain.approvals import Approval, Effect
from trading.domain.errors import TradingError
from trading.domain.events import ExitSigned, OrderFilled, OrderInitialized
from trading.domain.fills import Fill
from trading.domain.identifiers import AccountId, ApprovalId, OrderId, TradeId, client_order_id_for
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.positions import Position
from trading.domain.standing_exits import PROTECTION, STANDING_EXIT_PAYLOAD_TYPE, StandingExit


class ExitProofs:
    """The exits that verified, the slices that were used, and the positions they closed."""

    def __init__(self) -> None:
        self._exits: dict[ApprovalId, StandingExit] = {}
        self._used: set[ApprovalId] = set()
        self._stops: set[OrderId] = set()
        self._positions: dict[tuple[AccountId, InstrumentId], Position] = {}
        self._trades: set[tuple[InstrumentId, TradeId]] = set()

    def approved(self, approval: Approval) -> None:
        """Take the exit of an approval whose signature verified.

        Raises:
            TradingError: NOT_PROVEN, an entry without an exit that closes it, or a reduce with one.
        """
        found = approval.exit()
        if approval.effect is Effect.REDUCE:
            require(found is None, "a reduce carries an exit")
            return
        if found is None:
            raise TradingError("an entry was approved without an exit", code="NOT_PROVEN")
        require(found.terms.side is not approval.order.side, "the exit of an entry does not close it")
        self._exits[found.exit_id] = found

    def signed(self, event: ExitSigned, risk: Ed25519Verifier) -> None:
        """Take an exit that was signed alone.

        Raises:
            TradingError: NOT_PROVEN or a signature that does not verify.
        """
        payload = open_envelope(event.envelope, risk, STANDING_EXIT_PAYLOAD_TYPE)
        require(payload == codec.canonical(event.exit), "the recorded exit is not the signed one")
        require(event.exit.exit_id not in self._exits, "the exit was issued twice")
        self._exits[event.exit.exit_id] = event.exit

    def ordered(self, event: OrderInitialized, at_ms: int) -> None:
        """Trace an order that names a slice back to its exit.

        Raises:
            TradingError: NOT_PROVEN, the exit does not allow this order.
        """
        used, terms = event.exit_slice, event.terms
        found = None if used is None else self._exits.get(used.exit_id)
        if found is None or used is None:
            raise TradingError("no verified exit", code="NOT_PROVEN")
        named = client_order_id_for(used.approval_id, terms.venue)
        require((event.approval_id, terms.client_order_id) == (used.approval_id, named), "not named after its slice")
        require((event.agent_id, event.effect) == (PROTECTION, Effect.REDUCE), "a slice that is no stop")
        require(
            (terms.account_id, terms.instrument_id, terms.side)
            == (found.account_id, found.instrument_id, found.terms.side),
            "the exit is for another place or side",
        )
        require(terms.limit_price is not None and not found.is_beyond(terms.limit_price), "beyond the exit's floor")
        require(at_ms <= found.terms.expires_ms, "the exit had expired")
        require(used.approval_id not in self._used, "a slice was used twice")
        self._used.add(used.approval_id)
        self._stops.add(event.order_id)

    def filled(self, event: OrderFilled) -> None:
        """Follow the positions.

        Raises:
            TradingError: NOT_PROVEN, a stop traded more than was open.
        """
        fill = event.fill
        trade = fill.instrument_id, fill.trade_id
        if trade in self._trades:
            return
        self._trades.add(trade)
        key = fill.account_id, fill.instrument_id
        before = self._positions.get(key) or _flat(fill)
        self._positions[key] = before.apply(fill)
        if fill.order_id in self._stops:
            open_now = before.quantity if fill.side is Side.SELL else -before.quantity
            require(fill.quantity <= open_now, "a stop traded more than was open")


def _flat(fill: Fill) -> Position:
    base, quote = split_symbol(fill.instrument_id)
    return Position(account_id=fill.account_id, instrument_id=fill.instrument_id, base=base, quote=quote)


def require(holds: bool, what: str) -> None:
    """Refuse what is not proven.

    Raises:
        TradingError: NOT_PROVEN, it does not hold.
    """
    if not holds:
        raise TradingError(what, code="NOT_PROVEN")
