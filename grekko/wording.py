"""One line of plain English for each event, for the live view, the log and the explanation."""

from __future__ import annotations

from decimal import Decimal

from trading.adapters import codec
from trading.adapters.signing import Envelope
from trading.domain.approvals import ApprovedOrder
from trading.domain.events import (
    AccountFunded,
    AgentRegistered,
    AlarmRaised,
    ApprovalEnded,
    BreakerReset,
    BreakerTripped,
    DecisionCompleted,
    DomainEvent,
    ExitSigned,
    HeadWitnessed,
    HumanAnswered,
    HumanAsked,
    LimitsLoaded,
    OrderAccepted,
    OrderCanceled,
    OrderCancelRefused,
    OrderCancelRequested,
    OrderFilled,
    OrderFoundAbsent,
    OrderInitialized,
    OrderNotSent,
    OrderOutcomeUnknown,
    OrderRejected,
    ProposalDecided,
    ProposalOpened,
    ProposalRefused,
    ReconciliationCompleted,
    ReservationReleased,
    RiskApproved,
    RiskDenied,
    ServiceStarted,
    ServiceStopped,
    VoteCast,
    VoteRefused,
)
from trading.domain.proposals import OrderIntent, TradeProposal
from trading.domain.trading_states import DESK

SHORT = 8  # characters of an id that are shown


def describe(event: DomainEvent) -> str:
    """Return what happened in one line, without ids longer than eight characters."""
    return _coordination(event) or _risk(event) or _execution(event) or _system(event) or event.TYPE


def _coordination(event: DomainEvent) -> str:
    match event:
        case AgentRegistered():
            return f"{event.agent_id} joined as {event.role}"
        case ProposalOpened():
            proposal = codec.decode(TradeProposal, Envelope.from_json(event.envelope).payload)
            return f"{event.agent_id} proposes {order_text(proposal.order)}: {proposal.reason}"
        case ProposalRefused():
            return f"proposal of {event.agent_id} refused: {event.reason}"
        case VoteCast():
            return f"{event.agent_id} votes {event.choice}{': ' + event.reason if event.reason else ''}"
        case VoteRefused():
            return f"vote of {event.agent_id} not counted: {event.reason}"
        case ProposalDecided(tally=tally):
            why = f" ({', '.join(tally.reasons)})" if tally.reasons else ""
            return f"{event.outcome}: {tally.yes} yes, {tally.no} no, {tally.abstain} abstain of {tally.eligible}{why}"
        case DecisionCompleted():
            return f"decision {event.result}{': ' + event.detail if event.detail else ''}"
        case _:
            return ""


def _risk(event: DomainEvent) -> str:
    match event:
        case RiskApproved(approval=approval):
            seconds = (approval.expires_ms - approval.issued_ms) / 1000
            return f"risk signs {order_text(approval.order)} ({approval.effect}), good for {seconds:g} s"
        case RiskDenied(denial=denial):
            rules = "; ".join(
                f"{failure.rule}, {failure.observed or 'nothing seen'} against a limit of {failure.limit}"
                for failure in denial.failures
            )
            return f"risk denies {order_text(denial.order)}: {rules}"
        case ExitSigned(exit=found):
            hours = (found.terms.expires_ms - found.issued_ms) / 3_600_000
            return f"risk signs an exit of {found.symbol} down to {number(found.terms.floor)}, good for {hours:g} h"
        case HumanAsked(pending=pending):
            return f"risk asks the operator about {order_text(pending.order)} of {pending.agent_id}: grekko approvals"
        case HumanAnswered():
            overridden = ", ".join(rule.rule for rule in event.overridden)
            return f"{event.state} by {event.by}{f', overriding {overridden}' if overridden else ''}: {event.reason}"
        case ReservationReleased():
            return f"reservation released: {event.evidence}"
        case LimitsLoaded():
            by = f" by {event.by}" if event.by else ""
            return f"limits version {event.version} in force{by} ({event.digest[:SHORT]})"
        case BreakerTripped():
            return (
                f"BREAKER {'' if event.scope == DESK else f'{event.scope} '}{event.state} by {event.by}: {event.reason}"
            )
        case BreakerReset():
            what = "trading" if event.scope == DESK else event.scope
            return f"{what} {event.state} by {event.by}: {event.reason}"
        case _:
            return ""


def _execution(event: DomainEvent) -> str:
    match event:
        case OrderInitialized():
            what = "order" if event.exit_slice is None else "stop"
            return f"{what} {order_text(event.terms)} journaled"
        case OrderAccepted():
            return f"accepted by the venue as {event.venue_order_id}"
        case OrderRejected():
            return f"rejected by the venue: {event.reason}"
        case OrderFilled(fill=fill):
            return (
                f"fill: {fill.side} {number(fill.quantity)} at {number(fill.price)} ({fill.liquidity}), {event.status}"
            )
        case OrderCancelRequested():
            return f"cancel asked for by {event.by}"
        case OrderCancelRefused():
            return f"not canceled, it works on: {event.reason}"
        case OrderCanceled():
            return f"canceled: {event.reason}"
        case OrderNotSent():
            return f"not sent: {event.code}"
        case OrderOutcomeUnknown():
            return f"OUTCOME UNKNOWN: {event.reason}"
        case OrderFoundAbsent():
            return f"never reached the venue: {event.evidence}"
        case ApprovalEnded():
            return f"approval {event.fate}: {event.reason}"
        case AccountFunded():
            return f"account funded with {number(event.amount)} {event.currency}"
        case ReconciliationCompleted():
            verdict = "agree" if not event.differences else "; ".join(event.differences)
            return f"reconciled {event.orders_checked} orders with the venue: {verdict}"
        case _:
            return ""


def _system(event: DomainEvent) -> str:
    match event:
        case ServiceStarted():
            return f"started, generation {event.generation}{'' if event.clean else ', after an unclean stop'}"
        case ServiceStopped():
            return f"stopped: {event.reason}"
        case HeadWitnessed():
            return f"witnessed {event.service} at {event.size} events"
        case AlarmRaised():
            return f"ALARM {event.code}: {event.message}"
        case _:
            return ""


def order_text(order: OrderIntent | ApprovedOrder) -> str:
    """Return an order as a trader would say it."""
    words = [str(order.side), number(order.quantity), str(order.symbol), str(order.order_type)]
    if order.limit_price is not None:
        words.append(number(order.limit_price))
    if order.stop_price is not None:
        words.append(f"stop {number(order.stop_price)}")
    if order.time_in_force != "gtc":
        words.append(str(order.time_in_force).upper())
    words += [name for name, on in (("post-only", order.post_only), ("reduce-only", order.reduce_only)) if on]
    return " ".join(words)


def number(value: Decimal, *, places: int | None = None) -> str:
    """Return a number with thousands separators; with ``places``, rounded for display only."""
    text = f"{value:,f}" if places is None else f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text and places is None else text


def clock_text(ms: int) -> str:
    """Return the UTC time of day of a timestamp in milliseconds, HH:MM:SS.mmm."""
    seconds, millis = divmod(ms, 1000)
    return f"{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{millis:03}"
