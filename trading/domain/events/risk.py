"""What risk writes: approvals, denials, reservations, limits and the breaker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trading.domain.approvals import Approval, Epoch, TradingState
from trading.domain.denials import RiskDenial, RuleResult
from trading.domain.identifiers import ApprovalId
from trading.domain.pending import PendingHuman, PendingState
from trading.domain.standing_exits import StandingExit


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskApproved:
    """Risk reserved and signed. ``envelope`` is the DSSE envelope, JSON text."""

    TYPE: ClassVar[str] = "risk.approved"
    approval: Approval
    envelope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitSigned:
    """Risk renewed the standing exit of an open position. ``envelope`` is the DSSE envelope, JSON text."""

    TYPE: ClassVar[str] = "risk.exit_signed"
    exit: StandingExit
    envelope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskDenied:
    """Risk refused, with every failed rule."""

    TYPE: ClassVar[str] = "risk.denied"
    denial: RiskDenial


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanAsked:
    """Risk asked the operator about an order that nobody else may allow."""

    TYPE: ClassVar[str] = "risk.human_asked"
    pending: PendingHuman


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanAnswered:
    """The question is closed: by the operator, by risk's rules at that moment, by time, or by who asked.

    Attributes:
        by: ``operator:NAME``, or who else closed it.
        approval_id: set only when approved; execution submits that approval at once.
        overridden: rules that failed and that the operator overrode by name, with limit and observed value.
        failures: rules that failed in spite of the operator's word.
    """

    TYPE: ClassVar[str] = "risk.human_answered"
    pending_id: str
    state: PendingState
    by: str
    reason: str
    approval_id: ApprovalId | None = None
    overridden: tuple[RuleResult, ...] = ()
    failures: tuple[RuleResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationReleased:
    """An approval no longer counts against the limits; ``evidence`` is its fate or its order's final state."""

    TYPE: ClassVar[str] = "reservation.released"
    approval_id: ApprovalId
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsLoaded:
    """A policy came into force.

    Attributes:
        by: ``start``, ``file`` for a change that only tightens, or ``operator:NAME``; empty before that was kept.
        reason: the operator's words, or where the document was read.
        envelope: the operator's signed command, JSON text; empty when none was needed.
    """

    TYPE: ClassVar[str] = "limits.loaded"
    version: int
    digest: str
    min_policy_version: int
    document: str
    by: str = ""
    reason: str = ""
    envelope: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTripped:
    """Trading was restricted in a scope: ``desk``, ``account:ID``, ``agent:NAME`` or ``symbol:BASE/QUOTE``."""

    TYPE: ClassVar[str] = "breaker.tripped"
    scope: str
    reason: str
    state: TradingState
    epoch: Epoch
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerReset:
    """Trading was allowed again, by a person or, in paper, by a policy that says so."""

    TYPE: ClassVar[str] = "breaker.reset"
    scope: str
    reason: str
    state: TradingState
    epoch: Epoch
    by: str
