"""What execution knows of risk: the highest epoch it has learned, and when it last heard a fresh heartbeat.

Rules kept here:

- Only heartbeats that verify and name this account count. What risk's ledger says of a trip counts too, also while the
  bus is down, but it can only tighten; nothing else changes anything.
- A new epoch takes effect in memory at once, before it is written down: no send begins after it was learned.
- The highest epoch is persisted; a lower one is ignored for ever, also after a restart.
- A heartbeat is fresh by its age on arrival and by the monotonic clock afterwards. After a start nothing is fresh.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import cast

from mcp_servers.execution.gate import NS_PER_MS, GateRules, Moment, RiskPulse
from trading.adapters import codec
from trading.adapters.signing import open_envelope
from trading.domain.approvals import HEARTBEAT_PAYLOAD_TYPE, Epoch, Heartbeat, TradingState
from trading.domain.errors import InvalidValue, SignatureRefused
from trading.domain.identifiers import AccountId
from trading.domain.trading_states import DESK, SCOPES_MAX, ScopeState, is_scope
from trading.ports.ledger import Ledger, LedgerReader, Row, Unit, Upsert
from trading.ports.signing import Verifier

#: Before risk was ever heard: an epoch below every real one, and the strictest state.
NEVER = RiskPulse(epoch=Epoch(0, 0), state=TradingState.HALTED, min_policy_version=0, heard_ns=None)


class Ignored(StrEnum):
    """Why a heartbeat changed nothing."""

    SIGNATURE = "SIGNATURE"
    MALFORMED = "MALFORMED"
    ACCOUNT = "ACCOUNT"
    OLD_EPOCH = "OLD_EPOCH"
    REPLAYED = "REPLAYED"
    STALE = "STALE"
    FROM_FUTURE = "FROM_FUTURE"


@dataclass(frozen=True, slots=True)
class Learned:
    """What a heartbeat changed.

    Attributes:
        before: the pulse it replaced.
        newer_epoch: whether approvals of earlier epochs died with it.
        changed: whether epoch, state or policy floor differ, so that it must be written down.
    """

    before: RiskPulse
    newer_epoch: bool
    changed: bool


class EpochTracker:
    """Keeps the pulse of risk.

    Args:
        account_id: heartbeats of other accounts are ignored.
        verifier: pins risk's key.
        rules: age limit and clock skew.
        remembered: what the ledger holds from earlier processes; never counts as heard.
    """

    def __init__(
        self, account_id: AccountId, *, verifier: Verifier, rules: GateRules, remembered: RiskPulse = NEVER
    ) -> None:
        self._account_id = account_id
        self._verifier = verifier
        self._rules = rules
        self._pulse = replace(remembered, heard_ns=None)
        self._counter = -1
        self.ignored: dict[Ignored, int] = {}

    @property
    def pulse(self) -> RiskPulse:
        """What is known of risk now."""
        return self._pulse

    def age_ms(self, monotonic_ns: int) -> int | None:
        """Return milliseconds since risk was last heard, None before the first time."""
        heard = self._pulse.heard_ns
        return None if heard is None else (monotonic_ns - heard) // NS_PER_MS

    def is_fresh(self, monotonic_ns: int) -> bool:
        """Return whether risk was heard within the age limit."""
        age = self.age_ms(monotonic_ns)
        return age is not None and age <= self._rules.heartbeat_age_max_ms

    def observe(self, text: str, moment: Moment) -> Learned | Ignored:
        """Take one heartbeat as it came from the bus.

        Args:
            text: the DSSE envelope, JSON.
            moment: both clocks at its arrival.

        Returns:
            What changed, or why nothing did.
        """
        outcome = self._judge(text, moment)
        if isinstance(outcome, Ignored):
            self.ignored[outcome] = self.ignored.get(outcome, 0) + 1
        return outcome

    def _judge(self, text: str, moment: Moment) -> Learned | Ignored:
        try:
            payload = open_envelope(text, self._verifier, HEARTBEAT_PAYLOAD_TYPE)
        except SignatureRefused:
            return Ignored.SIGNATURE
        try:
            beat = codec.decode(Heartbeat, payload)
        except InvalidValue:
            return Ignored.MALFORMED
        if beat.account_id != self._account_id:
            return Ignored.ACCOUNT
        before = self._pulse
        if beat.epoch < before.epoch:
            return Ignored.OLD_EPOCH
        if beat.epoch.generation == before.epoch.generation and beat.counter <= self._counter:
            return Ignored.REPLAYED
        age_ms = moment.now_ms - beat.sent_ms
        if age_ms < -self._rules.max_clock_skew_ms:
            return Ignored.FROM_FUTURE
        newer = beat.epoch > before.epoch
        state = beat.state
        if len(beat.scopes) > SCOPES_MAX:  # more than can be told apart
            state = strictest_of(state, beat.scopes)
        # A late heartbeat still tells of an epoch that cannot be taken back; it does not prove that risk is alive.
        late = age_ms > self._rules.heartbeat_age_max_ms
        if late and not newer:
            return Ignored.STALE
        self._counter = beat.counter
        self._pulse = RiskPulse(
            epoch=beat.epoch,
            state=state,
            scopes=beat.scopes[:SCOPES_MAX],
            min_policy_version=max(beat.min_policy_version, before.min_policy_version),
            heard_ns=None if late else moment.monotonic_ns - max(0, age_ms) * NS_PER_MS,
        )
        return Learned(before, newer, newer or replace(self._pulse, heard_ns=None) != replace(before, heard_ns=None))

    def tighten(self, scope: str, state: TradingState, epoch: Epoch) -> Learned | None:
        """Take a trip that risk's ledger tells of; None when it says nothing new.

        The ledger is not signed event by event, so this can stop orders and never allow one: loosening, and the proof
        that risk is alive, come with heartbeats alone.
        """
        before = self._pulse
        if epoch <= before.epoch or not state.is_restricted:
            return None
        if epoch.generation > before.epoch.generation:
            self._counter = -1  # heartbeats of a new generation count from the beginning
        if scope == DESK:
            held = state if state.is_stricter_than(before.state) else before.state
            self._pulse = replace(before, epoch=epoch, state=held)
        else:
            self._pulse = replace(_with(before, ScopeState(scope, state)), epoch=epoch)
        return Learned(before, newer_epoch=True, changed=True)

    async def persist(self, ledger: Ledger, *, now_ms: int) -> None:
        """Write the highest epoch down, so that a restart cannot be told of a lower one.

        Raises:
            LedgerError: it is not durable; the pulse in memory holds all the same.
        """
        pulse = self._pulse
        row = {
            "account_id": self._account_id,
            "generation": pulse.epoch.generation,
            "counter": pulse.epoch.counter,
            "state": pulse.state.value,
            "min_policy_version": pulse.min_policy_version,
            "updated_ms": now_ms,
            "scopes": ",".join([f"{each.scope}={each.state.value}" for each in pulse.scopes]),
        }
        await ledger.commit(Unit(writes=(Upsert("epochs", row),)))


async def remembered_pulse(ledger: LedgerReader, account_id: AccountId) -> RiskPulse:
    """Return what earlier processes learned of risk; never fresh."""
    rows = await ledger.rows("epochs", {"account_id": account_id})
    if not rows:
        return NEVER
    row = rows[0]
    return RiskPulse(
        epoch=Epoch(cast("int", row["generation"]), cast("int", row["counter"])),
        state=TradingState(cast("str", row["state"])),
        min_policy_version=cast("int", row["min_policy_version"]),
        heard_ns=None,
        scopes=_read_scopes(cast("str", row["scopes"])),
    )


def trips_in(rows: Iterable[Row]) -> list[tuple[str, TradingState, Epoch]]:
    """Return what rows of risk's ``desk_state`` restrict, in the order of their epochs; unreadable ones halt."""
    found: list[tuple[str, TradingState, Epoch]] = []
    for row in rows:
        scope, text = str(row["scope"]), str(row["state"])
        if is_scope(scope):
            state = TradingState(text) if text in list(TradingState) else TradingState.HALTED
            found.append((scope, state, Epoch(cast("int", row["generation"]), cast("int", row["counter"]))))
    return sorted(found, key=lambda trip: trip[2])


def strictest_of(desk: TradingState, scopes: Iterable[ScopeState]) -> TradingState:
    """Return the strictest state of all."""
    for each in scopes:
        desk = each.state if each.state.is_stricter_than(desk) else desk
    return desk


def _with(pulse: RiskPulse, added: ScopeState) -> RiskPulse:
    """Return the pulse with a further restricted scope."""
    known = {each.scope: each for each in pulse.scopes}
    before = known.get(added.scope)
    if before is None or added.state.is_stricter_than(before.state):
        known[added.scope] = added
    if len(known) > SCOPES_MAX:
        return replace(pulse, state=strictest_of(pulse.state, known.values()))
    return replace(pulse, scopes=tuple([known[scope] for scope in sorted(known)]))


def _read_scopes(text: str) -> tuple[ScopeState, ...]:
    pairs = [part.rpartition("=") for part in text.split(",") if part]
    return tuple([ScopeState(scope, TradingState(state)) for scope, _, state in pairs])
