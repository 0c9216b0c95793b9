"""The operator's word on orders that wait for it: approve, refuse, or nothing until the time is over.

Rules kept here:

- The row is the truth; each question is closed once, by a claim that no second answer can have.
- A yes is not a signature: every rule is asked again at that moment, and one that fails refuses the order.
- Overrides are for one order, only of rules that the limits name, and stand in the event with limit and value.
"""

from __future__ import annotations

import logging

from trading.adapters import codec
from trading.adapters.signing import digest
from trading.domain.denials import RiskDenial
from trading.domain.errors import AlreadyClaimed, InvalidValue, LedgerError
from trading.domain.events import EventMetadata, HumanAnswered
from trading.domain.identifiers import RequestId
from trading.domain.pending import PendingHuman, PendingState
from trading.ports.ledger import EventDraft, Ledger, Row, Unit, Upsert

from .assessment import Approved, Outcome
from .authority import Word
from .frames import FrameSource
from .journal import encode_answer, request_claim
from .operator_commands import OperatorAnswer
from .pending import PendingBook, in_words, pending_of, pending_row, state_of
from .sign_off import OPERATOR, SignOff

log = logging.getLogger("grekko.risk")


class People:
    """Closes questions to the operator.

    Args:
        book: those that wait, for the caps.
    """

    def __init__(self, ledger: Ledger, frames: FrameSource, sign_off: SignOff, book: PendingBook) -> None:
        self._ledger = ledger
        self._frames = frames
        self._sign_off = sign_off
        self._book = book

    async def load(self) -> None:
        """Take up the questions of the last run."""
        for row in await self._ledger.rows("pending", {"state": PendingState.PENDING.value}):
            self._book.add(pending_of(row))

    async def row(self, pending_id: str) -> Row:
        """Return the question's row.

        Raises:
            InvalidValue: nothing waits or waited under that id.
        """
        rows = await self._ledger.rows("pending", {"pending_id": pending_id}, limit=1)
        if not rows:
            raise InvalidValue("nothing waits under that id", code="UNKNOWN_PENDING")
        return rows[0]

    async def hear(self, answer: OperatorAnswer) -> tuple[PendingState, str]:
        """Apply the operator's answer and return what has become of the order, and why.

        Raises:
            InvalidValue: no such question, or a rule that may not be overridden.
            Unavailable: a ledger failed; whether it was closed is shown by asking again.
        """
        row = await self.row(answer.pending_id)
        state = state_of(row, self._frames.now_ms())
        if state is not PendingState.PENDING:
            await self.expire()
            return state, str(row["detail"]) or f"it is {state.value} already"
        item, by = pending_of(row), f"operator:{answer.by[:64]}"
        if answer.approve:
            return await self._approve(item, answer, by)
        await self._close(item, PendingState.REFUSED, by, answer.reason)
        return PendingState.REFUSED, answer.reason

    async def withdraw(self, pending_id: str, by: str) -> None:
        """Let who asked take the question back; does nothing once it is closed."""
        row = await self.row(pending_id)
        if state_of(row, self._frames.now_ms()) is PendingState.PENDING:
            await self._close(pending_of(row), PendingState.WITHDRAWN, by, "withdrawn by who asked")

    async def expire(self) -> None:
        """Close what nobody answered in time; what cannot be written is tried again."""
        for item in self._book.due(self._frames.now_ms()):
            try:
                await self._close(item, PendingState.EXPIRED, "risk", "nobody answered in time")
            except LedgerError as error:
                log.warning("an expired question is not written yet (%s)", error.code)
                return

    async def _approve(self, item: PendingHuman, answer: OperatorAnswer, by: str) -> tuple[PendingState, str]:
        overrides = frozenset(answer.overrides)
        scopes, order = self._frames.policy.scopes, item.order
        in_force = scopes.of(order.account_id, item.mode, order.venue, item.agent_id, order.symbol)
        if wrong := overrides - set(in_force.limits.overridable):
            raise InvalidValue(
                f"the limits do not let the operator override {', '.join(sorted(wrong))}",
                code="NOT_OVERRIDABLE",
                allowed=tuple(sorted(in_force.limits.overridable)),
            )

        def also(outcomes: list[Outcome]) -> Unit:
            return self._closing(item, _verdict(item, outcomes[0], by, answer.reason))

        word = Word(overrides=overrides, price_limit=item.price_limit)
        same = digest(codec.encode([item.pending_id, True, sorted(overrides)]))
        outcome = await self._sign_off.on_word(item, word, same, also)
        self._book.remove(item.pending_id)
        event = _verdict(item, outcome, by, answer.reason)
        return event.state, in_words(event.failures) if event.failures else str(event.approval_id)

    async def _close(self, item: PendingHuman, state: PendingState, by: str, reason: str) -> None:
        event = HumanAnswered(pending_id=item.pending_id, state=state, by=by, reason=reason)
        claim = request_claim(
            OPERATOR, RequestId(item.pending_id), digest(state.value.encode()), encode_answer([]), self._frames.now_ms()
        )
        unit = self._closing(item, event)
        try:
            await self._ledger.commit(Unit(events=unit.events, claims=(claim,), writes=unit.writes))
        except AlreadyClaimed:
            # Somebody's answer has landed, unless its commit was lost and made void: then it closes here.
            if str((await self.row(item.pending_id))["state"]) == PendingState.PENDING:
                await self._ledger.commit(unit)
        self._book.remove(item.pending_id)

    def _closing(self, item: PendingHuman, event: HumanAnswered) -> Unit:
        row = pending_row(
            item,
            event.state,
            self._frames.now_ms(),
            approval_id=event.approval_id,
            detail=in_words(event.failures) or event.reason,
        )
        metadata = EventMetadata(correlation_id=item.request_id, causation_id=item.pending_id)
        return Unit(events=(EventDraft(event, metadata),), writes=(Upsert("pending", row),))


def _verdict(item: PendingHuman, outcome: Outcome, by: str, reason: str) -> HumanAnswered:
    """Return what the operator's yes came to."""
    if isinstance(outcome, Approved):
        return HumanAnswered(
            pending_id=item.pending_id,
            state=PendingState.APPROVED,
            by=by,
            reason=reason,
            approval_id=outcome.approval.approval_id,
            overridden=outcome.overridden,
        )
    failures = outcome.failures if isinstance(outcome, RiskDenial) else ()
    return HumanAnswered(
        pending_id=item.pending_id, state=PendingState.REFUSED, by=by, reason=reason, failures=failures
    )
