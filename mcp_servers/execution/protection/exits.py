"""The standing exits that this room holds: one for each instrument and closing side, verified, in the own ledger.

Rules kept here:

- An exit is kept only after its signature was verified over the exact bytes with risk's pinned key, in the one
  canonical form, for this account, mode and venue. What is read back at the start is verified again.
- A newer exit replaces the one that is held only when it differs materially, so that entries in quick succession do
  not each write one down. An exit that was issued earlier never replaces a later one.
- Memory follows the ledger: an exit counts once its row is durable.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, cast

from mcp_servers.execution.gate import GateCode, GateRules, open_approval, open_signed, refuse
from trading.adapters.signing import Envelope
from trading.domain.approvals import APPROVAL_PAYLOAD_TYPE, Approval
from trading.domain.errors import GateRefused, SignatureRefused
from trading.domain.events import EventEnvelope, ExitSigned
from trading.domain.identifiers import ApprovalId
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import difference_bps
from trading.domain.standing_exits import EXIT_LIFE_MAX_MS, STANDING_EXIT_PAYLOAD_TYPE, ExitTerms, StandingExit
from trading.ports.clock import Clock
from trading.ports.ledger import Ledger, LedgerReader, Row, Unit, Upsert
from trading.ports.signing import Verifier

log = logging.getLogger(__name__)

#: An exit is materially newer when it lives so much longer, or its floor lies so far from the one held.
LIFE_STEP_MS: Final = 3_600_000
FLOOR_STEP_BPS: Final = Decimal(100)

Key = tuple[InstrumentId, Side]


@dataclass(frozen=True, slots=True)
class KeptExit:
    """A verified exit and the bytes that prove it."""

    exit: StandingExit
    envelope: str

    @property
    def key(self) -> Key:
        """What it closes."""
        return self.exit.instrument_id, self.exit.terms.side

    def write(self, now_ms: int) -> Upsert:
        """Return what writes it down."""
        exit_ = self.exit
        row = {
            "account_id": exit_.account_id,
            "venue": exit_.venue,
            "symbol": exit_.symbol,
            "side": exit_.terms.side.value,
            "exit_id": exit_.exit_id,
            "envelope": self.envelope,
            "expires_ms": exit_.terms.expires_ms,
            "adopted_ms": now_ms,
        }
        return Upsert("standing_exits", row)


class StandingExits:
    """Keeps the exits of one account.

    Args:
        verifier: pins risk's key.
        rules: which mode, account, venue and key count.
    """

    def __init__(self, *, ledger: Ledger, verifier: Verifier, rules: GateRules, clock: Clock) -> None:
        self._ledger = ledger
        self._verifier = verifier
        self._rules = rules
        self._clock = clock
        self._kept: dict[Key, KeptExit] = {}

    def of(self, instrument_id: InstrumentId, side: Side) -> StandingExit | None:
        """Return the exit that closes with an order on ``side``, expired or not; None if there is none."""
        kept = self._kept.get((instrument_id, side))
        return None if kept is None else kept.exit

    def usable(self, instrument_id: InstrumentId, side: Side) -> StandingExit | None:
        """Return the exit if it has not expired by our clock."""
        found = self.of(instrument_id, side)
        return found if found is not None and self._clock.now_ms() < found.terms.expires_ms else None

    def offer(self, approval: Approval, envelope: str) -> KeptExit | None:
        """Return the exit of a verified approval if it should be written down with the approval's claim.

        Costs a comparison when nothing new is offered, which is so for all but a few entries of an hour.
        """
        terms = approval.standing_exit
        if terms is None:
            return None
        held = self._kept.get((approval.order.instrument_id, terms.side))
        if held is not None and not _is_newer(held.exit, terms, approval.issued_ms, approval.policy_version):
            return None
        found = approval.exit()
        return None if found is None else KeptExit(found, envelope)

    def keep(self, kept: KeptExit) -> None:
        """Hold an exit whose row is durable."""
        self._kept[kept.key] = kept

    async def follow(self, event: EventEnvelope) -> InstrumentId | None:
        """Take one event of risk's ledger; return the instrument whose exit it renewed, None if it renewed none.

        Raises:
            LedgerError: the exit could not be written down.
        """
        if not isinstance(event.payload, ExitSigned):
            return None
        return await self._adopt(event.payload.exit.exit_id, event.payload.envelope)

    async def catch_up(self, risk: LedgerReader) -> None:
        """Adopt what risk has signed while nobody followed.

        Raises:
            LedgerError: risk's ledger cannot be read, or an exit could not be written down.
        """
        for row in await risk.rows("standing_exits", {"state": "current"}):
            await self._adopt(ApprovalId(cast("str", row["exit_id"])), cast("str", row["envelope"]))

    async def _adopt(self, exit_id: ApprovalId, envelope: str) -> InstrumentId | None:
        try:
            found = open_exit(envelope, exit_id, verifier=self._verifier, rules=self._rules)
        except GateRefused as error:
            log.error("risk's ledger holds an exit that does not pass: %s", error.code)
            return None
        kept = KeptExit(found, envelope)
        held = self._kept.get(kept.key)
        if held is not None and not _is_newer(held.exit, found.terms, found.issued_ms, found.policy_version):
            return None
        await self._ledger.commit(Unit(writes=(kept.write(self._clock.now_ms()),)))
        self.keep(kept)
        return found.instrument_id

    async def load(self) -> None:
        """Read back what was kept; what does not verify is left out and logged."""
        for row in await self._ledger.rows("standing_exits", {"account_id": self._rules.account_id}):
            try:
                self.keep(self._verified(row))
            except GateRefused as error:
                log.error("a stored exit of %s does not pass: %s", row["symbol"], error.code)

    def _verified(self, row: Row) -> KeptExit:
        text, exit_id = cast("str", row["envelope"]), ApprovalId(cast("str", row["exit_id"]))
        kind = _payload_type(text)
        if kind == APPROVAL_PAYLOAD_TYPE:
            approval = open_approval(text, exit_id, verifier=self._verifier, key_id=self._rules.key_id)
            found = approval.exit()
            if found is None:
                refuse(GateCode.PAYLOAD_FORM, "the approval has no standing exit")
            check_place(found, self._rules)
        else:
            found = open_exit(text, exit_id, verifier=self._verifier, rules=self._rules)
        return KeptExit(found, text)


def open_exit(text: str, exit_id: ApprovalId, *, verifier: Verifier, rules: GateRules) -> StandingExit:
    """Return the standing exit inside an envelope of its own, verified as approvals are.

    Args:
        text: the envelope, exactly as risk stored it.
        exit_id: the id it is stored under.
        verifier: pinned public keys.
        rules: the one key, mode, account and venue that count.

    Raises:
        GateRefused: not a good envelope of that very exit, or not for this server.
    """
    kind = STANDING_EXIT_PAYLOAD_TYPE
    found = open_signed(text, StandingExit, kind, "exit", verifier=verifier, key_id=rules.key_id)
    if found.exit_id != exit_id:
        refuse(GateCode.ORDER_MISMATCH, "the envelope holds another exit than the one it is stored as")
    if found.terms.expires_ms - found.issued_ms > EXIT_LIFE_MAX_MS:
        refuse(GateCode.STANDING_EXIT, "the exit claims to live longer than any may")
    check_place(found, rules)
    return found


def check_place(found: StandingExit, rules: GateRules) -> None:
    """Return if an exit is for this server.

    Raises:
        GateRefused: MODE, ACCOUNT or VENUE.
    """
    if found.mode is not rules.mode:
        refuse(GateCode.MODE, f"the exit is for mode {found.mode}, this server trades in mode {rules.mode}")
    if found.account_id != rules.account_id:
        refuse(GateCode.ACCOUNT, "the exit is for another account than this server's")
    if found.venue != rules.venue:
        refuse(GateCode.VENUE, "the exit is for another venue than this server's")


def _is_newer(held: StandingExit, terms: ExitTerms, issued_ms: int, policy_version: int) -> bool:
    """Return whether terms issued then say something materially other than the exit that is held."""
    if issued_ms <= held.issued_ms:
        return False
    known = held.terms
    return (
        policy_version != held.policy_version
        or terms.expires_ms - known.expires_ms > LIFE_STEP_MS
        or terms.plan != known.plan
        or (terms.floor != known.floor and abs(difference_bps(terms.floor, known.floor)) > FLOOR_STEP_BPS)
    )


def _payload_type(text: str) -> str:
    try:
        return Envelope.from_json(text).payload_type
    except SignatureRefused:
        refuse(GateCode.ENVELOPE, "the envelope is not in the one form that risk writes")
