"""How long each stage of a trade took, from the timestamps of its events."""

from __future__ import annotations

from collections import defaultdict

from trading.adapters import codec
from trading.adapters.signing import Envelope
from trading.domain.events import (
    EventEnvelope,
    OrderFilled,
    OrderInitialized,
    ProposalDecided,
    ProposalOpened,
    RiskApproved,
    RiskDenied,
)
from trading.domain.proposals import TradeProposal
from trading.domain.voting import Outcome

#: Stages in the order of the walk; each ends where the next begins.
STAGES = ("open", "vote", "risk", "claim", "venue", "proposal_to_fill", "decision_to_fill")


class LatencyBook:
    """Milliseconds per stage, over all trades seen. Resolution is one millisecond, as recorded."""

    def __init__(self) -> None:
        self._samples: defaultdict[str, list[int]] = defaultdict(list)
        self._created: dict[str, int] = {}
        self._opened: dict[str, int] = {}
        self._decided: dict[str, tuple[int, int]] = {}
        self._approved: dict[str, tuple[int, str | None]] = {}
        self._initialized: dict[str, tuple[int, str | None]] = {}

    def take(self, event: EventEnvelope) -> None:
        """Take one event; the events of one ledger come in order, the ledgers in the order of the walk."""
        at = event.timestamp_ms
        match event.payload:
            case ProposalOpened() as opened:
                created = codec.decode(TradeProposal, Envelope.from_json(opened.envelope).payload).created_ms
                self._add("open", at - created)
                self._created[opened.proposal_id] = created
                self._opened[opened.proposal_id] = at
            case ProposalDecided() as decided if decided.proposal_id in self._opened:
                self._add("vote", at - self._opened.pop(decided.proposal_id))
                created = self._created.pop(decided.proposal_id)
                if decided.outcome is Outcome.APPROVED:
                    self._decided[decided.decision_id] = (at, created)
            case RiskApproved(approval=approval):
                self._answered(approval.decision_id, at)
                self._approved[approval.approval_id] = (at, approval.decision_id)
            case RiskDenied(denial=denial):
                self._answered(denial.decision_id, at)
            case OrderInitialized() as order if order.approval_id in self._approved:
                approved, decision_id = self._approved.pop(order.approval_id)
                self._add("claim", at - approved)
                self._initialized[order.order_id] = (at, decision_id)
            case OrderFilled(fill=fill) if fill.order_id in self._initialized:
                initialized, decision_id = self._initialized.pop(fill.order_id)  # the first fill counts
                self._add("venue", at - initialized)
                if decision_id in self._decided:
                    decided_at, created = self._decided[decision_id]
                    self._add("proposal_to_fill", at - created)
                    self._add("decision_to_fill", at - decided_at)
            case _:
                pass

    def percentiles(self) -> dict[str, dict[str, int]]:
        """Return ``{stage: {p50, p99, n}}`` in milliseconds for the stages that were seen."""
        return {stage: _percentiles(self._samples[stage]) for stage in STAGES if self._samples[stage]}

    def _answered(self, decision_id: str | None, at: int) -> None:
        if decision_id in self._decided:
            self._add("risk", at - self._decided[decision_id][0])

    def _add(self, stage: str, ms: int) -> None:
        self._samples[stage].append(max(0, ms))


def _percentiles(samples: list[int]) -> dict[str, int]:
    ordered = sorted(samples)
    return {"p50": _nearest_rank(ordered, 50), "p99": _nearest_rank(ordered, 99), "n": len(ordered)}


def _nearest_rank(ordered: list[int], percent: int) -> int:
    """Return the nearest-rank percentile of a sorted, non-empty list."""
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]
