"""From bytes in an inbox to a verified proposal or vote, or the code of what is wrong with it.

Verify first, parse afterwards; and whoever owns the inbox must be who signed and who is named inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Generic, TypeVar

from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, digest, open_envelope, seal
from trading.domain.approvals import PROPOSAL_PAYLOAD_TYPE, VOTE_PAYLOAD_TYPE
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import AccountId, Symbol, Venue
from trading.domain.proposals import Mode, TradeClass, TradeProposal
from trading.domain.voting import Roster, RosterMember, Vote
from trading.ports.signing import Signer

T = TypeVar("T")

REASON_MAX: Final = 280  # characters
_ID_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Signed(Generic[T]):
    """A verified value with the exact text it came in.

    Attributes:
        digest: SHA-256 of the signed payload, 64 hexadecimal digits.
    """

    value: T
    envelope: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalRules:
    """What a proposal must keep to be put to the vote.

    Attributes:
        window_ms: longest time from creation to deadline, by class.
        life_ms: longest time from deadline to expiry.
        skew_ms: how far in the future it may have been made (Redis time).
    """

    mode: Mode
    account_id: AccountId
    venue: Venue
    symbols: tuple[Symbol, ...]
    window_ms: dict[TradeClass, int]
    life_ms: int = 10_000
    skew_ms: int = 50


def sign_proposal(proposal: TradeProposal, signer: Signer) -> str:
    """Return the proposal's DSSE envelope as JSON text."""
    return seal(codec.canonical(proposal), PROPOSAL_PAYLOAD_TYPE, signer).to_json()


def sign_vote(vote: Vote, signer: Signer) -> str:
    """Return the vote's DSSE envelope as JSON text."""
    return seal(codec.canonical(vote), VOTE_PAYLOAD_TYPE, signer).to_json()


@lru_cache(maxsize=1024)
def open_proposal(text: str, member: RosterMember) -> Signed[TradeProposal]:
    """Return the proposal that this member signed.

    Remembered by text and member, because the leader and every hosted agent verify the very same bytes; a refusal is
    never remembered.

    Raises:
        SignatureRefused: it did not.
        InvalidValue: MALFORMED, or WRONG_AGENT when it speaks in another's name.
    """
    payload = open_envelope(text, verifier_of(member.public_key), PROPOSAL_PAYLOAD_TYPE)
    proposal = codec.decode(TradeProposal, payload)
    if proposal.agent_id != member.agent_id:
        raise InvalidValue("the proposal names another agent", code="WRONG_AGENT")
    if not 0 < len(proposal.proposal_id) <= _ID_MAX or not proposal.proposal_id.isprintable():
        raise InvalidValue("the proposal id is empty, too long or not printable", code="MALFORMED")
    return Signed(proposal, text, digest(payload))


def open_vote(text: str, member: RosterMember) -> Signed[Vote]:
    """Return the vote that this member signed.

    Raises:
        SignatureRefused: it did not.
        InvalidValue: MALFORMED, or WRONG_AGENT when it speaks in another's name.
    """
    payload = open_envelope(text, verifier_of(member.public_key), VOTE_PAYLOAD_TYPE)
    vote = codec.decode(Vote, payload)
    if vote.agent_id != member.agent_id:
        raise InvalidValue("the vote names another agent", code="WRONG_AGENT")
    if len(vote.reason) > REASON_MAX or not 0 < len(vote.proposal_id) <= _ID_MAX:
        raise InvalidValue("the reason or the proposal id is too long", code="MALFORMED")
    return Signed(vote, text, digest(payload))


def objection_to(proposal: TradeProposal, rules: ProposalRules, roster: Roster, now_ms: int) -> str:
    """Return why a verified proposal is not put to the vote, as a stable code; empty when it is.

    Args:
        proposal: verified.
        rules: the desk's.
        roster: the present one.
        now_ms: Redis time.
    """
    order = proposal.order
    checks = (
        (proposal.mode is not rules.mode, "WRONG_MODE"),
        (order.account_id != rules.account_id, "WRONG_ACCOUNT"),
        (order.venue != rules.venue, "WRONG_VENUE"),
        (order.symbol not in rules.symbols, "UNKNOWN_INSTRUMENT"),
        (proposal.roster_version != roster.version, "ROSTER_CHANGED"),
        (proposal.created_ms > now_ms + rules.skew_ms, "FROM_THE_FUTURE"),
        (proposal.deadline_ms <= now_ms, "DEADLINE_PASSED"),
        (proposal.deadline_ms - proposal.created_ms > rules.window_ms[proposal.trade_class], "DEADLINE_TOO_FAR"),
        (proposal.expires_ms - proposal.deadline_ms > rules.life_ms, "EXPIRY_TOO_FAR"),
    )
    return next((code for failed, code in checks if failed), "")


@lru_cache(maxsize=1024)
def verifier_of(public_key: str) -> Ed25519Verifier:
    """Return a verifier that pins this one key."""
    return Ed25519Verifier.of(public_key)
