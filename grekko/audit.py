"""`grekko audit verify`: chains, checkpoints, witnesses, signatures and the venue's own book, all checked offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from grekko.ledgers import ROOMS, Ledgers, open_ledgers, read_sound_events
from grekko.oracle import Comparison, compare_with_venue
from grekko.proofs import Finding, Proofs, Prover
from trading.adapters import sql
from trading.adapters.config import DeskSettings
from trading.adapters.signing import load_public_key
from trading.adapters.sql import AuditReport, LedgerLocation, open_reader, verify_room
from trading.adapters.sql.verify import Kind
from trading.domain.accounts import AccountBook
from trading.domain.errors import TradingError
from trading.domain.events import HeadWitnessed
from trading.domain.orders import POSSIBLY_LIVE, WORKING

_FINDINGS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class DeskAudit:
    """The verdict on a whole desk.

    Attributes:
        rooms: what the chain audit of each ledger found.
        proofs: what re-checking every signature and every order found.
        venue: the comparison with the paper venue's journal.
        unresolved: orders of which it is not known whether the venue has them.
        resting: orders that rest at the venue; the stop of an open position is one.
    """

    rooms: Mapping[str, AuditReport]
    proofs: Proofs
    venue: Comparison
    unresolved: int
    resting: int

    @property
    def verified(self) -> bool:
        """Whether every ledger verifies and everything in them is proven."""
        return all(report.verified for report in self.rooms.values()) and not self.proofs.findings

    @property
    def findings(self) -> list[Finding]:
        """Everything that is wrong, room by room."""
        chained = [
            Finding(room, finding.seq, f"{finding.kind}: {finding.detail}")
            for room, report in self.rooms.items()
            for finding in report.findings
        ]
        return chained + self.proofs.findings

    def invariants(self) -> dict[str, bool]:
        """Return the promises of the desk and whether each was kept."""
        return {
            "no_order_without_a_verified_approval": not any(f.room == "execution" for f in self.proofs.findings),
            "at_most_one_venue_order_per_approval": not self.venue.duplicated,
            "no_venue_order_without_an_approval": not self.venue.without_approval,
            "ledger_equals_venue": not self.venue.differences,
            "every_signature_verifies": not self.proofs.findings,
            "every_ledger_verifies": all(report.verified for report in self.rooms.values()),
        }

    @property
    def kept(self) -> bool:
        """Whether the audit verifies and every invariant holds."""
        return self.verified and all(self.invariants().values())

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict for the report: counts over all ledgers and the first findings."""
        return {
            "verified": self.verified,
            "events": sum(report.events for report in self.rooms.values()),
            "unproven": sum(report.unproven for report in self.rooms.values()),
            "checkpoints": sum(report.checkpoints for report in self.rooms.values()),
            "witnesses": sum(report.witnesses for report in self.rooms.values()),
            "checked": dict(self.proofs.checked),
            "unresolved_orders": self.unresolved,
            "resting_orders": self.resting,
            "findings": [f"{f.room}#{f.seq}: {f.what}" for f in self.findings[:_FINDINGS_SHOWN]],
            "venue_differences": list(self.venue.differences),
        }


async def audit_desk(settings: DeskSettings) -> DeskAudit:
    """Audit every ledger of a desk, running or not.

    Raises:
        ConfigurationError: a public key is missing.
        LedgerUnavailable: a ledger cannot be read.
    """
    async with open_ledgers(settings) as ledgers:
        witnesses = await _witnesses(ledgers)
        rooms = {room: await _audit_room(settings, room, witnesses) for room in ROOMS}
        proofs = await Prover(settings.desk_home).run(ledgers)
        account = await _fold(ledgers, settings, proofs)
    venue = compare_with_venue(settings.desk_home.venue / "paper.journal", proofs.orders, account)
    resting = sum(order.status in WORKING for order in account.open_orders.values())
    unresolved = sum(order.status in POSSIBLY_LIVE for order in account.open_orders.values()) - resting
    return DeskAudit(rooms, proofs, venue, unresolved, resting)


async def _witnesses(ledgers: Ledgers) -> list[HeadWitnessed]:
    return [
        event.payload
        for reader in map(ledgers.reader, ROOMS)
        async for event in read_sound_events(reader, until=await reader.last_seq())
        if isinstance(event.payload, HeadWitnessed)
    ]


async def _fold(ledgers: Ledgers, settings: DeskSettings, proofs: Proofs) -> AccountBook:
    """Fold the execution ledger; events that contradict each other are findings and change nothing."""
    account = AccountBook(settings.account_id)
    async for event in read_sound_events(ledgers.execution, until=await ledgers.execution.last_seq()):
        try:
            account.apply(event.payload, now_ms=event.timestamp_ms)
        except TradingError as error:
            proofs.findings.append(Finding("execution", event.seq, f"{event.event_type}: {error.code}: {error}"))
    return account


async def _audit_room(settings: DeskSettings, room: str, witnesses: list[HeadWitnessed]) -> AuditReport:
    home = settings.desk_home
    notes = home.checkpoints(room)
    public_key = load_public_key(home.public_keys / f"checkpoint-{room}.pub")
    async with open_reader(room, LedgerLocation.of(settings)) as reader:
        report = await verify_room(
            reader, checkpoints=notes, public_key=public_key, witnesses=witnesses, projections=True
        )
    if report.events and not report.checkpoints:  # a room signs within seconds, and again when it stops
        unsigned = sql.Finding(1, Kind.UNSIGNED, f"no genuine checkpoint vouches for any of {report.events} events")
        report = replace(report, findings=(*report.findings, unsigned))
    return report
