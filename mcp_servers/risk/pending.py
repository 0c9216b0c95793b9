"""Orders that wait for the operator: when one does, how many may, and how they are written and read back.

Rules kept here:

- Only the operator's word may be missing: an order that anything else forbids is denied, as ever.
- Nothing is reserved for it, and nothing is promised: on the operator's word every rule is asked again.
- Waiting orders are capped for each agent and for the desk, so that nobody can bury the operator in questions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from trading.adapters import codec
from trading.domain.denials import Rule, RuleResult
from trading.domain.identifiers import ApprovalId, DecisionId, RequestId
from trading.domain.pending import PendingHuman, PendingState
from trading.ports.clock import IdFactory
from trading.ports.ledger import Row

from .context import OrderContext
from .policies.authority import lacks_only_a_person
from .policies.pipeline import Verdict


@dataclass(frozen=True, slots=True)
class Question:
    """What a pending order is made of beside the order itself."""

    request_id: RequestId
    principal: str
    decision_id: DecisionId | None
    reason: str
    expires_ms: int | None


class PendingBook:
    """The orders that wait now, in memory; their rows are the truth."""

    def __init__(self, ids: IdFactory) -> None:
        self._ids = ids
        self._waiting: dict[str, PendingHuman] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: PendingHuman) -> None:
        """Count a waiting order."""
        self._waiting[item.pending_id] = item

    def remove(self, pending_id: str) -> None:
        """Forget one that is closed or was never written."""
        self._waiting.pop(pending_id, None)

    def due(self, now_ms: int) -> list[PendingHuman]:
        """Return those whose time is over."""
        return [item for item in self._waiting.values() if item.expires_ms <= now_ms]

    def ask(self, c: OrderContext, failed: Verdict, rules: Iterable[RuleResult], question: Question) -> PendingHuman:
        """Return the question to the operator about a refused order, and count it.

        Args:
            c: the order, which ``may_wait``.
            failed: why it cannot pass by itself.
            rules: every rule's verdict in words.
        """
        limits, now_ms = c.limits, c.frame.now_ms
        expires = now_ms + limits.pending_ttl_ms
        item = PendingHuman(
            pending_id=self._ids.new_id(),
            request_id=question.request_id,
            principal=question.principal,
            agent_id=c.agent_id,
            decision_id=question.decision_id,
            mode=c.frame.mode,
            order=c.intent,
            price_limit=c.limit_price,
            notional=c.notional,
            reason=question.reason,
            unmet=failed.failures,
            rules=tuple(rules),
            asked_ms=now_ms,
            expires_ms=expires if question.expires_ms is None else min(expires, question.expires_ms),
        )
        self.add(item)
        return item

    def full(self, c: OrderContext) -> RuleResult | None:
        """Return the refusal of one more question, None while there is room."""
        limits, agent_id = c.limits, c.agent_id
        own = sum(item.agent_id == agent_id for item in self._waiting.values())
        for most, count in ((limits.pending_agent_max, own), (limits.pending_max, len(self._waiting))):
            if count >= most:
                return c.refuse(Rule.AUTHORITY, most, count, "too many orders wait for the operator already")
        return None


def may_wait(c: OrderContext, failed: Verdict) -> bool:
    """Return whether the operator could let this refused order pass: by a word, or by an override the limits name."""
    overridable = c.limits.overridable
    codes = [result.rule for result in failed.failures]
    if (
        not failed.results
        or any(code is not Rule.AUTHORITY and code not in overridable for code in codes)
        or c.notional is None
    ):
        return False
    return lacks_only_a_person(c) if Rule.AUTHORITY in codes else bool(codes)


#: What a caller is told while it waits.
HOW_TO_ANSWER: Final = "the operator answers with: grekko approvals; if approved the desk submits it, so only poll"

_DETAIL_MAX: Final = 1_000  # characters of the reasons kept in a row


def pending_row(
    item: PendingHuman,
    state: PendingState,
    now_ms: int,
    *,
    approval_id: ApprovalId | None = None,
    detail: str = "",
) -> Row:
    """Return the ``pending`` row."""
    return {
        "pending_id": item.pending_id,
        "request_id": item.request_id,
        "agent_id": item.agent_id,
        "state": state.value,
        "document": codec.encode(item).decode(),
        "approval_id": approval_id,
        "detail": detail[:_DETAIL_MAX],
        "asked_ms": item.asked_ms,
        "expires_ms": item.expires_ms,
        "updated_ms": now_ms,
    }


def pending_of(row: Row) -> PendingHuman:
    """Return the question from its row."""
    return codec.decode(PendingHuman, str(row["document"]))


def state_of(row: Row, now_ms: int) -> PendingState:
    """Return what has become of it; one whose time is over has expired, written or not."""
    state = PendingState(str(row["state"]))
    late = state is PendingState.PENDING and int(str(row["expires_ms"])) <= now_ms
    return PendingState.EXPIRED if late else state


def in_words(results: Iterable[RuleResult]) -> str:
    """Return failed rules as one line."""
    return "; ".join(f"{r.rule.value}: {r.message} (limit {r.limit}, observed {r.observed})" for r in results)


def capped(failed: Verdict, refusal: RuleResult) -> Verdict:
    """Return the verdict that says there is no room for another question."""
    return Verdict((*[each for each in failed.failures if each.rule is not Rule.AUTHORITY], refusal))
