"""One request, answered once: idempotent, durable before anything leaves.

Rules kept here:

- ``request_id`` is unique for a principal. Its row is claimed in the same commit as the reservation and the approval,
  so two answers cannot exist, whatever races (docs/model: lookup-then-insert reserves twice).
- The same content gets the stored answer; other content under the same id is refused.
- A signature leaves only after its commit. Refused for certain: the reservation is taken back. Unknown: it is held,
  until a second claim of the same key shows whether the first one landed.
- A caller that goes away cancels nothing: the work goes on and its answer is found again by the request id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from trading.domain.denials import RiskDenial
from trading.domain.errors import AlreadyClaimed, InvalidValue, LeaseLost, LedgerError, Unavailable
from trading.domain.identifiers import DecisionId, ProposalId, RequestId
from trading.domain.pending import PendingHuman
from trading.ports.ledger import Ledger, Row, Unit

from .assessment import Approved, Ask, Assessor, Outcome, Wanted
from .authority import Word
from .context import Frame
from .decided import decided_orders, used
from .decisions import DecisionRefused, DecisionVerifier, VerifiedDecision, uncovered
from .frames import FrameSource
from .journal import VOID, approval_row, read_answer, request_claim, request_unit
from .orders import ORDERS_MAX, OrderRequest, intent_of, request_digest
from .reservations import ReservationBook

log = logging.getLogger("grekko.risk")

#: In whose name the operator's answers are claimed; no caller can be called this.
OPERATOR: Final = "operator/answer"

_STEP: Final = 32  # orders judged before other tasks (the breaker) get a turn
_ANSWERS_KEPT: Final = 20_000  # outcomes remembered for retries, over all requests


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request got, in the order of its orders.

    Attributes:
        replayed: the request had been answered before and this is that answer.
    """

    request_id: RequestId
    outcomes: tuple[Outcome, ...]
    replayed: bool = False

    @property
    def approved(self) -> list[Approved]:
        """The approvals."""
        return [item for item in self.outcomes if isinstance(item, Approved)]

    @property
    def denied(self) -> list[RiskDenial]:
        """The refusals."""
        return [item for item in self.outcomes if isinstance(item, RiskDenial)]

    @property
    def pending(self) -> list[PendingHuman]:
        """What waits for the operator; nothing is reserved for it."""
        return [item for item in self.outcomes if isinstance(item, PendingHuman)]


@dataclass(frozen=True, slots=True)
class _Request:
    principal: str
    request_id: RequestId
    digest: str

    @property
    def key(self) -> tuple[str, str]:
        return self.principal, self.request_id


@dataclass(frozen=True, slots=True)
class _Uncertain:
    """A commit whose outcome is unknown."""

    request: _Request
    outcomes: tuple[Outcome, ...]


#: Writes that follow from the outcomes of a request, in the same commit.
Also = Callable[[list[Outcome]], Unit]


class SignOff:
    """Answers requests for approval.

    Args:
        verifier: checks decisions; None where no coordinator's ledger is configured, so that none can be used.
        rows: the ``approvals`` rows of open reservations by id; added to here, used when they are released.
        on_lease_lost: called when another process has become the writer; this one must stop.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        assessor: Assessor,
        frames: FrameSource,
        reservations: ReservationBook,
        verifier: DecisionVerifier | None,
        rows: dict[str, Row],
        on_lease_lost: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._assessor = assessor
        self._frames = frames
        self._reservations = reservations
        self._verifier = verifier
        self._rows = rows
        self._on_lease_lost = on_lease_lost
        self._running: dict[tuple[str, str], tuple[str, asyncio.Task[Answer]]] = {}
        self._answers: OrderedDict[tuple[str, str], tuple[str, Answer]] = OrderedDict()
        self._answers_size = 0
        self._uncertain: list[_Uncertain] = []

    def count_votes_with(self, verifier: DecisionVerifier | None) -> None:
        """Check decisions under other limits from now on."""
        self._verifier = verifier

    @property
    def uncertain(self) -> int:
        """How many requests have a commit whose outcome is not known yet."""
        return len(self._uncertain)

    async def request(
        self,
        principal: str,
        request_id: RequestId,
        orders: tuple[OrderRequest, ...],
        decision_id: DecisionId | None = None,
    ) -> Answer:
        """Return approvals and denials for the orders, in their order.

        Args:
            principal: who asks; request ids are unique for each.
            request_id: names this intent; repeat it on a retry.
            orders: 1 to 256; with a decision none means the decision's own order.
            decision_id: the approved decision that covers them.

        Raises:
            InvalidValue: REQUEST_ID_REUSED, or an order that contradicts itself.
            Unavailable: the ledger failed; repeat with the same request id.
        """
        if len(orders) > ORDERS_MAX or not (orders or decision_id):
            raise InvalidValue(f"1 to {ORDERS_MAX} orders in one request", code="INVALID_ORDERS")
        request = _Request(principal, request_id, request_digest(orders, decision_id))
        if (done := self._answers.get(request.key)) is not None:
            self._same(request, done[0])
            return replace(done[1], replayed=True)
        if (running := self._running.get(request.key)) is not None:
            self._same(request, running[0])
            return replace(await asyncio.shield(running[1]), replayed=True)
        task = asyncio.create_task(self._answer(request, orders, decision_id))
        self._running[request.key] = (request.digest, task)
        task.add_done_callback(lambda done_task: self._finished(request, done_task))
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Find out what became of commits whose outcome is unknown; does nothing while the ledger is down."""
        for uncertain in list(self._uncertain):
            request = uncertain.request
            claim = request_claim(request.principal, request.request_id, request.digest, VOID, self._now_ms())
            try:
                await self._ledger.commit(Unit(claims=(claim,)))
            except AlreadyClaimed as error:
                self._settled(uncertain, str(error.existing["answer"]))
            except LedgerError:
                return
            else:
                # The key is taken by the void answer, so the lost commit can never land any more.
                self._take_back(uncertain.outcomes)
            self._uncertain.remove(uncertain)

    def _settled(self, uncertain: _Uncertain, answer: str) -> None:
        """Keep what the stored answer names, take back the rest (a later attempt may have won the key)."""
        landed = [item for item in uncertain.outcomes if f'"{_id_of(item)}"' in answer]
        for item in _approved(landed):
            reservation = self._reservations.get(item.approval.approval_id)
            if reservation is not None:
                reservation.uncertain = False
        self._take_back([item for item in uncertain.outcomes if item not in landed])

    async def close(self) -> None:
        """Wait for the requests under way."""
        tasks = [task for _, task in self._running.values()]
        if tasks:
            await asyncio.wait(tasks)

    async def on_word(self, item: PendingHuman, word: Word, digest: str, also: Also) -> Outcome:
        """Judge again, on the operator's word, an order that waited for it: approved or denied, once for ever.

        Args:
            item: what waited; its decision, if it names one, is verified again.
            digest: of the operator's answer; another answer to the same question is refused.
            also: what is committed with the outcome.

        Raises:
            InvalidValue: REQUEST_ID_REUSED, it was answered otherwise; REQUEST_VOID, an answer was lost.
            Unavailable: a ledger failed; ask again.
        """
        request = _Request(OPERATOR, RequestId(item.pending_id), digest)
        ask, verified = await self._ask(item.request_id, item.decision_id, self._now_ms())
        ask = replace(ask, word=word, principal=item.principal)
        proposal_id = None
        if verified is not None:
            ask = replace(ask, problem=uncovered(verified.proposal, [item.order]))
            used = await self._ledger.rows("decisions_used", {"proposal_id": verified.proposal.proposal_id})
            siblings = bool(used) and used[0]["request_id"] == item.request_id  # of one proposal, in one request
            proposal_id = None if siblings or not ask.decided else verified.proposal.proposal_id
        outcomes = self._assessor.assess(self._frames.take(), [Wanted(item.order, item.agent_id)], ask)
        return (await self._commit(request, outcomes, proposal_id, ask, also)).outcomes[0]

    async def _answer(
        self, request: _Request, orders: tuple[OrderRequest, ...], decision_id: DecisionId | None
    ) -> Answer:
        frame = self._frames.take()
        ask, verified = await self._ask(request.request_id, decision_id, frame.now_ms)
        if decision_id is not None:
            orders = decided_orders(orders, verified)
            frame = self._frames.take()
        intents = [intent_of(frame, order, decided=ask.decided) for order in orders]
        if verified is not None:
            problem = uncovered(verified.proposal, intents)
            ask = replace(ask, problem=problem)
        ask = replace(ask, principal=request.principal)
        proposal_id = verified.proposal.proposal_id if verified is not None and ask.decided else None
        wanted = [Wanted(intent, order.agent_id, order.reason) for intent, order in zip(intents, orders, strict=True)]
        outcomes = await self._judge(frame, wanted, ask)
        return await self._commit(request, outcomes, proposal_id, ask)

    async def _ask(
        self, request_id: RequestId, decision_id: DecisionId | None, now_ms: int
    ) -> tuple[Ask, VerifiedDecision | None]:
        if decision_id is None:
            return Ask(request_id=request_id), None
        verifier = self._verifier
        if verifier is None:
            return Ask(request_id=request_id, decision_id=decision_id, problem="no vote is configured here"), None
        try:
            verified = await verifier.verify(decision_id, now_ms)
            while verifier is not self._verifier and self._verifier is not None:  # other limits came into force
                verifier = self._verifier
                verified = await verifier.verify(decision_id, now_ms)
        except DecisionRefused as error:
            return Ask(request_id=request_id, decision_id=decision_id, problem=f"{error.code}: {error}"), None
        except LedgerError as error:
            raise Unavailable("the coordinator's ledger cannot be read", suggestion="try again") from error
        return Ask(request_id=request_id, decision_id=decision_id, expires_ms=verified.expires_ms), verified

    async def _judge(self, frame: Frame, orders: list[Wanted], ask: Ask) -> list[Outcome]:
        """Judge the orders in steps; nothing was waited for since ``frame`` was taken, so the first step uses it."""
        outcomes: list[Outcome] = []
        try:
            for start in range(0, len(orders), _STEP):
                if start:
                    await asyncio.sleep(0)
                    frame = self._frames.take()
                outcomes += self._assessor.assess(frame, orders[start : start + _STEP], ask)
        except BaseException:
            self._take_back(outcomes)
            raise
        return outcomes

    async def _commit(
        self,
        request: _Request,
        outcomes: list[Outcome],
        proposal_id: ProposalId | None,
        ask: Ask,
        also: Also | None = None,
    ) -> Answer:
        rows = [approval_row(item, ask.principal) for item in _approved(outcomes)]
        unit = request_unit(
            principal=request.principal,
            request_id=request.request_id,
            digest=request.digest,
            outcomes=outcomes,
            rows=rows,
            now_ms=self._now_ms(),
            proposal_id=proposal_id,
        )
        if also is not None:
            more = also(outcomes)
            unit = replace(unit, events=(*unit.events, *more.events), writes=(*unit.writes, *more.writes))
        for row in rows:  # before the commit: a release may follow it at once
            self._rows[str(row["approval_id"])] = row
        try:
            await self._ledger.commit(unit)
        except AlreadyClaimed as error:
            self._take_back(outcomes)
            return await self._claimed(request, error, outcomes, ask, also)
        except LeaseLost:
            self._take_back(outcomes)
            self._on_lease_lost()
            raise
        except LedgerError as error:
            self._hold(request, outcomes)
            raise Unavailable(
                "the ledger did not confirm; nothing was handed out",
                code="COMMIT_UNKNOWN",
                suggestion="repeat with the same request_id",
            ) from error
        return Answer(request.request_id, tuple(outcomes))

    async def _claimed(
        self, request: _Request, error: AlreadyClaimed, outcomes: list[Outcome], ask: Ask, also: Also | None
    ) -> Answer:
        """Somebody was first: give the stored answer, or refuse a decision that was used already."""
        if error.table != "requests":
            problem = "PROPOSAL_USED: the proposal has been approved once already"
            refused: list[Outcome] = [used(item, problem, self._now_ms()) for item in outcomes]
            return await self._commit(request, refused, None, ask, also)
        self._same(request, str(error.existing["digest"]))
        stored = await read_answer(self._ledger, str(error.existing["answer"]))
        if stored is None:
            raise InvalidValue(
                "the ledger failed while this request was written, so it was made void; nothing is approved",
                code="REQUEST_VOID",
                suggestion="ask again with a new request_id",
            )
        return Answer(request.request_id, stored, replayed=True)

    def _hold(self, request: _Request, outcomes: list[Outcome]) -> None:
        for item in _approved(outcomes):
            reservation = self._reservations.get(item.approval.approval_id)
            if reservation is not None:
                reservation.uncertain = True
        self._uncertain.append(_Uncertain(request, tuple(outcomes)))

    def _take_back(self, outcomes: Sequence[Outcome]) -> None:
        self._assessor.take_back(self._reservations, outcomes)
        for item in _approved(outcomes):
            self._rows.pop(item.approval.approval_id, None)

    def _finished(self, request: _Request, task: asyncio.Task[Answer]) -> None:
        self._running.pop(request.key, None)
        if task.cancelled() or task.exception() is not None:
            return
        answer = task.result()
        self._answers[request.key] = (request.digest, answer)
        self._answers_size += len(answer.outcomes)
        while self._answers_size > _ANSWERS_KEPT:
            _, (_, oldest) = self._answers.popitem(last=False)
            self._answers_size -= len(oldest.outcomes)

    def _now_ms(self) -> int:
        return self._frames.now_ms()

    @staticmethod
    def _same(request: _Request, digest: str) -> None:
        if digest != request.digest:
            raise InvalidValue(
                "this request_id was used for other content",
                code="REQUEST_ID_REUSED",
                suggestion="use a new request_id for a new intent",
            )


def _approved(outcomes: Sequence[Outcome]) -> list[Approved]:
    return [item for item in outcomes if isinstance(item, Approved)]


def _id_of(item: Outcome) -> str:
    if isinstance(item, Approved):
        return item.approval.approval_id
    return item.pending_id if isinstance(item, PendingHuman) else ""
