"""Keeps a signed exit alive for every open position, whatever happened to the one it was entered with.

Rules kept here:

- An exit is in risk's ledger before it is anywhere else; execution reads it there.
- It is renewed long before it ends, when the limits became tighter, and when the market has moved so far that its
  floor is no longer far away: a stop that may not sell where the market is would trap the position.
- In every trading state but FROZEN; without a fresh price the last floor, or the price paid, must do.
- What it says is as tight as the tightest limits of those whose entries built the position. Entries that were approved
  while it was flat carry a plan each; once both are in, one exit for both is signed after them.
- A restart goes on with the newest exit in the ledger; a commit whose answer is lost is signed again under a new id.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from trading.adapters import codec
from trading.adapters.signing import Envelope, seal
from trading.domain.approvals import TradingState
from trading.domain.errors import LedgerError
from trading.domain.events import ExitSigned
from trading.domain.identifiers import AgentId, ApprovalId
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import MAX_SCALE, ZERO, bps_of, multiply, subtract
from trading.domain.positions import Position
from trading.domain.standing_exits import STANDING_EXIT_PAYLOAD_TYPE, ExitTerms, StandingExit, StopPlan
from trading.ports.clock import IdFactory
from trading.ports.ledger import EventDraft, Insert, Ledger, Row, Unit, Upsert
from trading.ports.signing import Signer

from .context import Frame
from .pricing import NO_MARKET
from .protection import floor_of, is_tighter, tightest
from .scopes import InForce

log = logging.getLogger("grekko.risk")

TABLE: Final = "standing_exits"
CURRENT: Final = "current"
REPLACED: Final = "replaced"

#: Exits signed in one step; the rest follow in the next, half a second later.
_AT_ONCE: Final = 64
_NOBODY: Final = AgentId("")
#: A floor nearer than this share of ``floor_bps``, or further than that one, is replaced.
_NEAR, _FAR = Decimal("0.8"), Decimal("1.4")
_FINEST: Final = Decimal(1).scaleb(-MAX_SCALE)


class StandingExits:
    """The newest exit of each instrument, and who signs the next one.

    Args:
        ledger: risk's own.
        signer: risk's approval key.
    """

    def __init__(self, ledger: Ledger, signer: Signer, ids: IdFactory) -> None:
        self._ledger = ledger
        self._signer = signer
        self._ids = ids
        self._current: dict[InstrumentId, tuple[StandingExit, Row]] = {}
        self._builders: dict[InstrumentId, frozenset[AgentId]] = {}  # as of the exit that was signed last

    def current(self, instrument_id: InstrumentId) -> StandingExit | None:
        """Return the newest exit that was signed alone for the instrument."""
        known = self._current.get(instrument_id)
        return None if known is None else known[0]

    async def restore(self) -> None:
        """Take up the exits of the last run.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        for row in await self._ledger.rows(TABLE, {"state": CURRENT}):
            found = exit_of(row)
            known = self.current(found.instrument_id)
            if known is None or known.issued_ms <= found.issued_ms:
                self._current[found.instrument_id] = found, row

    async def step(self, frame: Frame) -> Sequence[StandingExit]:
        """Sign what is due and return what was committed; what fails is due again."""
        for closed in self._builders.keys() - frame.portfolio.holders.keys():
            del self._builders[closed]
        open_now = [each for each in frame.portfolio.open_positions() if not _is_frozen(frame, each.instrument_id)]
        due = [terms for position in open_now if (terms := self._due(frame, position)) is not None][:_AT_ONCE]
        if not due:
            return ()
        signed = [self._sign(frame, instrument_id, terms) for instrument_id, terms in due]
        try:
            await self._ledger.commit(self._unit(signed))
        except LedgerError as error:
            log.error("%d standing exits are not renewed yet (%s)", len(signed), error.code)
            return ()
        for item, _, row in signed:
            self._current[item.instrument_id] = item, row
            self._builders[item.instrument_id] = _builders(frame, item.instrument_id)
        return [item for item, _, _ in signed]

    def _due(self, frame: Frame, position: Position) -> tuple[InstrumentId, ExitTerms] | None:
        """Return the terms that the position's exit should have when the one it has will not do."""
        instrument_id = position.instrument_id
        held = self.current(instrument_id)
        in_force = in_force_of(frame, instrument_id, _NOBODY)
        plan = plan_for(frame, instrument_id)
        if in_force.symbol is None and held is not None:
            plan = held.terms.plan  # the symbol was taken off the limits: nobody says any more how it is protected
        side = Side.SELL if position.quantity > 0 else Side.BUY
        over = held is None or self._is_over(frame, held, side, plan, in_force.protection.floor_bps)
        if not over and not self._is_joined(frame, instrument_id):
            return None
        floor = _floor(frame, position, side, held, in_force.protection.floor_bps)
        expires_ms = frame.now_ms + in_force.limits.exit_ttl_ms
        return instrument_id, ExitTerms(side=side, floor=floor, plan=plan, expires_ms=expires_ms)

    def _is_over(self, frame: Frame, held: StandingExit, side: Side, plan: StopPlan, floor_bps: Decimal) -> bool:
        terms = held.terms
        if terms.side is not side or held.mode is not frame.mode or held.key_id != self._signer.key_id:
            return True
        if 2 * (terms.expires_ms - frame.now_ms) < terms.expires_ms - held.issued_ms:
            return True
        market = frame.markets.get(held.instrument_id, NO_MARKET)
        if not market.problem and market.mid is not None and not is_wide(terms, market.mid, floor_bps):
            return True
        return is_tighter(plan, terms.plan)

    def _is_joined(self, frame: Frame, instrument_id: InstrumentId) -> bool:
        """Return whether somebody with another plan has joined: execution may hold the looser exit of that entry."""
        agents = _builders(frame, instrument_id)
        if len(agents) < 2 or agents == self._builders.get(instrument_id):
            return False
        return len({in_force_of(frame, instrument_id, agent).plan for agent in agents}) > 1

    def _sign(
        self, frame: Frame, instrument_id: InstrumentId, terms: ExitTerms
    ) -> tuple[StandingExit, str, dict[str, object]]:
        held = self.current(instrument_id)
        # Execution takes no exit that is not later than the one it holds, also after this clock was set back.
        issued_ms = frame.now_ms if held is None else max(frame.now_ms, held.issued_ms + 1)
        item = StandingExit(
            exit_id=ApprovalId(self._ids.new_id()),
            account_id=frame.portfolio.account_id,
            mode=frame.mode,
            venue=instrument_id.venue,
            symbol=instrument_id.symbol,
            terms=terms,
            policy_version=frame.policy.version,
            issued_ms=issued_ms,
            key_id=self._signer.key_id,
        )
        envelope = seal(codec.canonical(item), STANDING_EXIT_PAYLOAD_TYPE, self._signer).to_json()
        return item, envelope, _row(item, envelope)

    def _unit(self, signed: Sequence[tuple[StandingExit, str, dict[str, object]]]) -> Unit:
        replaced = [
            self._current[item.instrument_id][1] for item, _, _ in signed if item.instrument_id in self._current
        ]
        return Unit(
            events=tuple([EventDraft(ExitSigned(exit=item, envelope=envelope)) for item, envelope, _ in signed]),
            writes=(
                *[Insert(TABLE, row) for _, _, row in signed],
                *[Upsert(TABLE, {**row, "state": REPLACED}) for row in replaced],
            ),
        )


def _builders(frame: Frame, instrument_id: InstrumentId) -> frozenset[AgentId]:
    return frozenset(frame.portfolio.holders.get(instrument_id, ()))


def _is_frozen(frame: Frame, instrument_id: InstrumentId) -> bool:
    return frame.state_for(_NOBODY, instrument_id.symbol).state is TradingState.FROZEN


def exit_of(row: Row) -> StandingExit:
    """Return the exit that a row of ``standing_exits`` holds."""
    return codec.decode(StandingExit, Envelope.from_json(str(row["envelope"])).payload)


def in_force_of(frame: Frame, instrument_id: InstrumentId, agent_id: AgentId) -> InForce:
    """Return what is in force for an agent in an instrument."""
    scopes = frame.policy.scopes
    return scopes.of(frame.portfolio.account_id, frame.mode, instrument_id.venue, agent_id, instrument_id.symbol)


def plan_for(frame: Frame, instrument_id: InstrumentId) -> StopPlan:
    """Return the tightest plan of all agents whose entries built the position, under the limits of now."""
    agents = frame.portfolio.holders.get(instrument_id) or (_NOBODY,)
    return tightest(*[in_force_of(frame, instrument_id, agent).plan for agent in agents])


def is_wide(terms: ExitTerms, mid: Decimal, floor_bps: Decimal) -> bool:
    """Return whether the floor is still about as far from the mid as the limits want it."""
    distance = subtract(mid, terms.floor) if terms.side is Side.SELL else subtract(terms.floor, mid)
    reach = bps_of(mid, floor_bps)
    return multiply(reach, _NEAR) <= distance <= multiply(reach, _FAR)


def _floor(frame: Frame, position: Position, side: Side, held: StandingExit | None, floor_bps: Decimal) -> Decimal:
    """Return the floor by the newest price; by the last exit, or by what was paid, when there never was one."""
    market = frame.markets.get(position.instrument_id, NO_MARKET)
    if market.mid is not None and market.instrument is not None:
        return floor_of(side, market.mid, floor_bps, market.instrument.price_tick)
    if held is not None and held.terms.side is side:
        return held.terms.floor
    return floor_of(side, abs(position.average_price or ZERO), floor_bps, _FINEST)


def _row(item: StandingExit, envelope: str) -> dict[str, object]:
    return {
        "exit_id": item.exit_id,
        "venue": item.venue,
        "symbol": item.symbol,
        "state": CURRENT,
        "envelope": envelope,
        "issued_ms": item.issued_ms,
        "expires_ms": item.terms.expires_ms,
    }
