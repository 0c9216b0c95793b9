"""The gate: eight numbered checks between a signed approval and anything that could reach a venue.

Rules kept here:

- The signature is verified over the exact bytes before any of them is parsed.
- The caller reads the clocks once; every check sees the same ``now``.
- Each refusal has its own code and says nothing about how to get past it.
- Nothing is written and nothing is awaited: the gate is a function of its arguments.

The approval reaches us by a courier that is not trusted (a model, the coordinator, risk's ledger). What is sent is the
order inside the verified bytes, never what the courier says about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final, NoReturn, Protocol, TypeVar

from trading.adapters import codec
from trading.adapters.signing import Envelope
from trading.domain.approvals import APPROVAL_PAYLOAD_TYPE, Approval, ApprovedOrder, Effect, Epoch, Fate, TradingState
from trading.domain.errors import GateRefused, InvalidValue, SignatureRefused
from trading.domain.identifiers import AccountId, AgentId, ApprovalId, KeyId, Venue, client_order_id_for
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import OrderBook, Side
from trading.domain.money import multiply
from trading.domain.proposals import Mode, OrderType
from trading.domain.standing_exits import EXIT_LIFE_MAX_MS, StandingExit
from trading.domain.trading_states import DESK, ScopeState, strictest
from trading.ports.signing import Verifier

NS_PER_MS: Final = 1_000_000

#: What risk signs one by one.
S = TypeVar("S", Approval, StandingExit)


class GateCode(StrEnum):
    """Why the gate said no. Codes never change meaning; the digit in the comment is the number of the check."""

    ENVELOPE = "GATE_ENVELOPE"  # 1
    KEY = "GATE_KEY"  # 1
    SIGNATURE = "GATE_SIGNATURE"  # 1
    PAYLOAD_TYPE = "GATE_PAYLOAD_TYPE"  # 2
    PAYLOAD_FORM = "GATE_PAYLOAD_FORM"  # 2
    MODE = "GATE_MODE"  # 3
    ACCOUNT = "GATE_ACCOUNT"  # 3
    VENUE = "GATE_VENUE"  # 3
    EXPIRED = "GATE_EXPIRED"  # 4
    FROM_FUTURE = "GATE_FROM_FUTURE"  # 4
    TTL_TOO_LONG = "GATE_TTL_TOO_LONG"  # 4
    TTL_MONOTONIC = "GATE_TTL_MONOTONIC"  # 4
    NO_HEARTBEAT = "GATE_NO_HEARTBEAT"  # 5
    HEARTBEAT_STALE = "GATE_HEARTBEAT_STALE"  # 5
    EPOCH = "GATE_EPOCH"  # 5
    POLICY_VERSION = "GATE_POLICY_VERSION"  # 5
    STATE = "GATE_STATE"  # 5
    UNRECONCILED = "GATE_UNRECONCILED"  # 5
    ORDER_MISMATCH = "GATE_ORDER_MISMATCH"  # 6
    REDUCE_ONLY = "GATE_REDUCE_ONLY"  # 6
    STANDING_EXIT = "GATE_STANDING_EXIT"  # 6
    PRICE_STALE = "GATE_PRICE_STALE"  # 7
    PRICE_BAND = "GATE_PRICE_BAND"  # 7
    FATE_WRITTEN = "GATE_FATE_WRITTEN"  # 8
    NOT_FOUND = "GATE_NOT_FOUND"  # risk's ledger has no such approval: there was nothing to check


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRules:
    """What this server is and how strict it is; fixed for the life of the process.

    Attributes:
        key_id: the one key whose approvals count.
        max_clock_skew_ms: how far risk's clock may be ahead of ours.
        ttl_max_ms: the longest life an approval may claim.
        heartbeat_age_max_ms: silence of risk after which nothing may add risk.
        price_age_max_ms: age after which a book no longer prices an order.
    """

    mode: Mode
    account_id: AccountId
    venue: Venue
    key_id: KeyId
    max_clock_skew_ms: int = 250
    ttl_max_ms: int = 120_000
    heartbeat_age_max_ms: int = 3_000
    price_age_max_ms: int = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskPulse:
    """What execution has learned of risk, from verified heartbeats only.

    Attributes:
        state: the desk's; ``scopes`` may restrict some orders more.
        heard_ns: monotonic time of the last fresh heartbeat, less its age on arrival; None before the first of
            this process, whatever the ledger remembers.
    """

    epoch: Epoch
    state: TradingState
    min_policy_version: int
    heard_ns: int | None
    scopes: tuple[ScopeState, ...] = ()

    @property
    def halts_anything(self) -> bool:
        """Whether working orders must be taken back anywhere."""
        return self.state.cancels_increases or any(each.state.cancels_increases for each in self.scopes)

    def state_for(self, order: ApprovedOrder, agent_id: AgentId) -> ScopeState:
        """Return the strictest state that holds for an order, and the scope it comes from."""
        if not self.scopes:
            return ScopeState(DESK, self.state)
        return strictest(self.state, self.scopes, account_id=order.account_id, agent_id=agent_id, symbol=order.symbol)


@dataclass(frozen=True, slots=True)
class Moment:
    """Both clocks, read once."""

    now_ms: int
    monotonic_ns: int


class GateFacts(Protocol):
    """Execution's own state, answered from memory."""

    @property
    def pulse(self) -> RiskPulse:
        """Return what is known of risk now."""
        ...

    def first_seen_ns(self, approval_id: ApprovalId) -> int | None:
        """Return the monotonic time at which this process first heard of the approval."""
        ...

    def fate(self, approval_id: ApprovalId) -> Fate | None:
        """Return the approval's written fate, as far as memory knows; the claim decides in the end."""
        ...

    def instrument(self, instrument_id: InstrumentId) -> Instrument | None:
        """Return the venue's rules for the instrument."""
        ...

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest book that prices the instrument."""
        ...

    def reducible(self, instrument_id: InstrumentId, side: Side) -> Decimal:
        """Return how much base an order on ``side`` may still close: position less all that may be reducing it."""
        ...

    def slack(self, instrument_id: InstrumentId, side: Side) -> Decimal:
        """Return the open quantity less all that may be closing it on ``side``; negative when that is too much."""
        ...

    def is_restricted(self, instrument_id: InstrumentId) -> bool:
        """Return whether an unexplained difference with the venue forbids new risk here."""
        ...


class GateRefusedForNow(GateRefused):
    """A refusal that passes by itself while the approval lives.

    Attributes:
        after_ms: when it is worth asking again.
    """

    after_ms = 500


#: What the next heartbeat or the next price may lift.
_PASSING: Final = frozenset(
    {
        GateCode.FROM_FUTURE,
        GateCode.NO_HEARTBEAT,
        GateCode.HEARTBEAT_STALE,
        GateCode.PRICE_STALE,
        GateCode.PRICE_BAND,
    }
)


def refuse(code: GateCode, message: str, *, suggestion: str = "") -> NoReturn:
    """Raise the refusal of one check."""
    kind = GateRefusedForNow if code in _PASSING else GateRefused
    raise kind(message, code=code.value, suggestion=suggestion)


def open_approval(text: str, approval_id: ApprovalId, *, verifier: Verifier, key_id: KeyId) -> Approval:
    """Return the approval inside an envelope after checks 1 and 2.

    Args:
        text: the envelope, exactly as risk stored it.
        approval_id: the id that the caller asked for.
        verifier: pinned public keys.
        key_id: the only key that approvals may be signed with.

    Raises:
        GateRefused: not a good envelope of that very approval.
    """
    approval = open_signed(text, Approval, APPROVAL_PAYLOAD_TYPE, "approval", verifier=verifier, key_id=key_id)
    if approval.approval_id != approval_id:
        refuse(GateCode.ORDER_MISMATCH, "the envelope holds another approval than the one asked for")
    return approval


def open_signed(text: str, kind: type[S], payload_type: str, what: str, *, verifier: Verifier, key_id: KeyId) -> S:
    """Return what risk has signed, after checks 1 and 2; arguments and errors as of ``open_approval``.

    Args:
        kind: the type that is expected.
        payload_type: its payload type, version included.
        what: its name, for the messages.
    """
    # 1. Signature over the exact bytes, by the pinned key.
    try:
        envelope = Envelope.from_json(text)
    except SignatureRefused:
        refuse(GateCode.ENVELOPE, "the envelope is not in the one form that risk writes")
    if envelope.key_id != key_id:
        refuse(GateCode.KEY, f"the {what} is not signed with risk's approval key")
    try:
        verifier.verify(envelope.key_id, envelope.message(), envelope.signature)
    except SignatureRefused:
        refuse(GateCode.SIGNATURE, f"the {what}'s signature does not verify")
    # 2. Payload type and version, and the one canonical form: bytes that decode to the same value but are spelled
    #    differently were not written by risk.
    if envelope.payload_type != payload_type:
        refuse(GateCode.PAYLOAD_TYPE, f"the signed payload is not an {what} of a version known here")
    try:
        found = codec.decode(kind, envelope.payload)
        same = codec.canonical(found) == envelope.payload
    except InvalidValue:
        refuse(GateCode.PAYLOAD_FORM, f"the signed payload is not a well-formed {what}")
    if not same:
        refuse(GateCode.PAYLOAD_FORM, "the signed payload is not in canonical form")
    if found.key_id != envelope.key_id:
        refuse(GateCode.KEY, f"the {what} names another key than the one that signed it")
    return found


def check_approval(approval: Approval, facts: GateFacts, rules: GateRules, moment: Moment) -> None:
    """Return if the verified approval may be acted on now: checks 3 to 8.

    Raises:
        GateRefused: ``code`` names the failed check.
    """
    _check_place(approval, rules)  # 3
    check_time(approval, facts.first_seen_ns(approval.approval_id), rules, moment)  # 4
    check_state(approval, facts.pulse, rules, moment)  # 5
    if approval.effect is Effect.INCREASE and facts.is_restricted(approval.order.instrument_id):
        refuse(
            GateCode.UNRECONCILED,
            "ledger and venue disagree; only reducing orders are sent until that is explained",
            suggestion="call execution_reconcile and read its differences",
        )
    _check_order(approval, facts)  # 6
    _check_price(approval, facts, rules, moment)  # 7
    if (fate := facts.fate(approval.approval_id)) is not None:  # 8
        refuse(GateCode.FATE_WRITTEN, f"the approval has {fate} already", suggestion="ask risk for a new approval")


def _check_place(approval: Approval, rules: GateRules) -> None:
    """3. Mode, account and venue are this server's."""
    if approval.mode is not rules.mode:
        refuse(GateCode.MODE, f"approved for mode {approval.mode}, this server trades in mode {rules.mode}")
    if approval.order.account_id != rules.account_id:
        refuse(GateCode.ACCOUNT, "approved for another account than this server's")
    if approval.order.venue != rules.venue:
        refuse(GateCode.VENUE, "approved for another venue than this server's")


def check_time(approval: Approval, first_seen_ns: int | None, rules: GateRules, moment: Moment) -> None:
    """4. Not expired, not from the future, and within its life by the monotonic clock since first seen.

    The wall clock can be stepped back; the monotonic one cannot, so an approval never outlives its own length here.

    Raises:
        GateRefused: EXPIRED, FROM_FUTURE, TTL_TOO_LONG or TTL_MONOTONIC.
    """
    if moment.now_ms >= approval.expires_ms:
        refuse(GateCode.EXPIRED, "the approval has expired", suggestion="ask risk for a new approval")
    if approval.issued_ms > moment.now_ms + rules.max_clock_skew_ms:
        refuse(GateCode.FROM_FUTURE, "the approval was issued in the future; the clocks disagree")
    life_ms = approval.expires_ms - approval.issued_ms
    if life_ms > rules.ttl_max_ms:
        refuse(GateCode.TTL_TOO_LONG, f"the approval claims to live {life_ms} ms, the most is {rules.ttl_max_ms} ms")
    if first_seen_ns is not None and moment.monotonic_ns - first_seen_ns >= life_ms * NS_PER_MS:
        refuse(GateCode.TTL_MONOTONIC, "the approval was first seen longer ago than it may live")


def check_state(approval: Approval, pulse: RiskPulse, rules: GateRules, moment: Moment) -> None:
    """5. Trading state, generation and epoch permit this effect.

    Raises:
        GateRefused: NO_HEARTBEAT, HEARTBEAT_STALE, EPOCH, POLICY_VERSION or STATE.
    """
    if pulse.heard_ns is None:
        refuse(GateCode.NO_HEARTBEAT, "risk has not been heard since this server started; nothing is sent until then")
    age_ms = (moment.monotonic_ns - pulse.heard_ns) // NS_PER_MS
    if approval.effect is Effect.INCREASE and age_ms > rules.heartbeat_age_max_ms:
        refuse(GateCode.HEARTBEAT_STALE, f"risk was last heard {age_ms} ms ago; only reducing orders are sent")
    if approval.epoch != pulse.epoch:
        refuse(
            GateCode.EPOCH,
            f"approved in epoch {tuple(approval.epoch)}, risk is in {tuple(pulse.epoch)}",
            suggestion="ask risk for a new approval",
        )
    if approval.policy_version < pulse.min_policy_version:
        refuse(GateCode.POLICY_VERSION, f"limits of version {approval.policy_version} are no longer in force")
    held = pulse.state_for(approval.order, approval.agent_id)
    if not held.state.permits(approval.effect):
        what = "trading" if held.scope == DESK else held.scope
        refuse(GateCode.STATE, f"{what} is {held.state}: an order that would {approval.effect} risk is not sent")


def _check_order(approval: Approval, facts: GateFacts) -> None:
    """6. The order is one that this venue can carry unchanged, and reduce-only is still true."""
    order = approval.order
    if order.client_order_id != client_order_id_for(approval.approval_id, order.venue):
        refuse(GateCode.ORDER_MISMATCH, "the client order id does not follow from the approval id")
    instrument = facts.instrument(order.instrument_id)
    if instrument is None:
        refuse(GateCode.ORDER_MISMATCH, f"{order.symbol} cannot be traded on {order.venue}")
    if order.order_type is OrderType.MARKET:
        refuse(GateCode.ORDER_MISMATCH, "an approved order is never of type market")
    if order.order_type is OrderType.STOP and approval.effect is not Effect.REDUCE:
        refuse(GateCode.ORDER_MISMATCH, "a stop without a limit price has no bound and may only reduce")
    prices = [price for price in (order.limit_price, order.stop_price) if price is not None]
    if not instrument.is_quantity(order.quantity) or not all(instrument.is_price(price) for price in prices):
        refuse(GateCode.ORDER_MISMATCH, "quantity or price is not on the venue's step")
    _check_exit(approval, instrument)
    limit = order.limit_price
    if limit is not None:
        # The limit of a stop lies beyond its trigger, which risk has bounded; the band is about the market now.
        outside = limit > approval.band_high if order.side is Side.BUY else limit < approval.band_low
        if outside and order.stop_price is None:
            refuse(GateCode.ORDER_MISMATCH, "the limit price lies outside the approved band")
        if multiply(order.quantity, limit) > approval.max_notional:
            refuse(GateCode.ORDER_MISMATCH, "quantity times price exceeds the approved notional")
    if (approval.effect is Effect.REDUCE or order.reduce_only) and order.quantity > facts.reducible(
        order.instrument_id, order.side
    ):
        refuse(
            GateCode.REDUCE_ONLY,
            "the order would no longer only reduce: position less working and unknown reduces is smaller",
            suggestion="read execution_get_account, then ask risk for an approval of the remaining size",
        )


def _check_exit(approval: Approval, instrument: Instrument) -> None:
    """6. Nothing is opened without the permission to close it, and that permission closes what this order opens."""
    order, terms = approval.order, approval.standing_exit
    if approval.effect is Effect.REDUCE:
        if terms is not None:
            refuse(GateCode.STANDING_EXIT, "an order that only reduces opens nothing and has no standing exit")
        return
    if terms is None:
        refuse(GateCode.STANDING_EXIT, "an order that can add risk must come with a standing exit")
    if terms.side is order.side:
        refuse(GateCode.STANDING_EXIT, "the standing exit is on the side of the order, so it would close nothing")
    is_wide = 0 < terms.floor < approval.band_low if terms.side is Side.SELL else terms.floor > approval.band_high
    if not is_wide or not instrument.is_price(terms.floor):
        refuse(GateCode.STANDING_EXIT, "the standing exit's floor is not a price beyond the approved band")
    if not approval.expires_ms < terms.expires_ms <= approval.issued_ms + EXIT_LIFE_MAX_MS:
        refuse(GateCode.STANDING_EXIT, "the standing exit ends before the approval does, or lives too long")


def _check_price(approval: Approval, facts: GateFacts, rules: GateRules, moment: Moment) -> None:
    """7. The live price is fresh and inside the approved band."""
    book = facts.book(approval.order.instrument_id)
    mid = None if book is None else book.mid
    if book is None or mid is None:
        refuse(GateCode.PRICE_STALE, "there is no two-sided book to price the order with")
    age_ms = book.age_ms(moment.now_ms)
    if age_ms > rules.price_age_max_ms:
        refuse(GateCode.PRICE_STALE, f"the newest price is {age_ms} ms old, the most is {rules.price_age_max_ms} ms")
    if not approval.band_low <= mid <= approval.band_high:
        refuse(GateCode.PRICE_BAND, "the market has left the approved price band", suggestion="wait, or ask risk again")
