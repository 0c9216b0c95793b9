"""Checks a ledger against its hash chain, its signed checkpoints and what other rooms have seen of it.

What is proven by what: the chain shows that single rows were changed, dropped or reordered; a checkpoint shows that the
whole chain was rewritten or cut; a witness shows that even the checkpoint key was used to sign another history. What
lies after the last of them is consistent in itself but could have been rewritten: it is counted as unproven.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from trading.adapters.sql.checkpoints import Refused, origin_of, read_checkpoints
from trading.adapters.sql.merkle import Frontier
from trading.adapters.sql.projections import ProjectionAudit
from trading.adapters.sql.reader import SqlReader
from trading.adapters.sql.stored import EventRow, chain_hash, genesis
from trading.domain.events import HeadWitnessed

_ROWS_AT_ONCE = 5000
_FINDINGS_MAX = 1000
_SUSPECTS_MAX = 64


class Kind(StrEnum):
    """What is wrong."""

    CHANGED = "changed"
    DROPPED = "dropped"
    REORDERED = "reordered"
    REWRITTEN = "rewritten"
    TRUNCATED = "truncated"
    FORGED_CHECKPOINT = "forged_checkpoint"
    UNSIGNED = "unsigned"
    PROJECTION = "projection"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        seq: of the event it concerns; for a range, of its first event.
        kind: what was done.
        detail: a sentence for a person.
    """

    seq: int
    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What the audit of one room found.

    Attributes:
        room: whose ledger it is.
        events: number of events read.
        unproven: events after the newest head that agrees with a checkpoint or witness.
        checkpoints: checkpoints with a good signature.
        witnesses: heads seen by other rooms that were compared.
        findings: what is wrong, at most 1000 of a sort.
    """

    room: str
    events: int
    unproven: int
    checkpoints: int
    witnesses: int
    findings: tuple[Finding, ...]

    @property
    def verified(self) -> bool:
        """Whether nothing is wrong. Unproven events do not count as wrong."""
        return not self.findings


@dataclass(frozen=True, slots=True)
class _Claim:
    root: str
    source: str


class ChainAudit:
    """Reads rows in order and collects findings, in bounded memory.

    Args:
        room: whose ledger it is.
        claims: roots that somebody vouches for, by size.
    """

    def __init__(self, room: str, claims: dict[int, list[_Claim]]) -> None:
        self._claims = claims
        self._previous: bytes | None = genesis(room)
        self._frontier = Frontier()
        self._suspects: list[tuple[EventRow, bytes]] = []
        self.findings: list[Finding] = []
        self.events = 0
        self.seq = 0
        self.proven = 0

    def feed(self, rows: Iterable[EventRow]) -> None:
        """Check the next rows."""
        leaves: list[bytes] = []
        for row in rows:
            if row[0] != self.seq + 1:
                self._dropped(self.seq + 1, row[0] - 1)
            self.events += 1
            self.seq = row[0]
            stored = row[6]
            if self._previous is not None and not _fits(row, self._previous):
                self._changed(row, self._previous)
            # SQLite lets a hash be text: then the next event can only be taken on trust, as after a missing one.
            self._previous = stored if type(stored) is bytes else None
            leaves.append(self._previous or b"")
            if self.seq in self._claims:
                self._frontier.extend(leaves)
                leaves.clear()
                self._compare(self._claims[self.seq])
        self._frontier.extend(leaves)

    def _find(self, seq: int, kind: Kind, detail: str) -> None:
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append(Finding(seq, kind, detail))

    def _dropped(self, first: int, last: int) -> None:
        which = f"event {first} is" if first == last else f"events {first} to {last} are"
        self._find(first, Kind.DROPPED, f"{which} missing")
        # The hash of the missing event is not known, so the next one can only be taken on trust.
        self._previous = None

    def _changed(self, row: EventRow, previous: bytes) -> None:
        for other, before in self._suspects:
            if (
                _fits((other[0], *row[1:]), before)
                or _fits((row[0], *other[1:]), previous)
                or _swapped(row, other, before)
            ):
                self._find(
                    row[0], Kind.REORDERED, f"event {row[0]} stands where event {other[0]} belongs, or the reverse"
                )
                break
        else:
            self._find(row[0], Kind.CHANGED, f"event {row[0]} does not fit its hash and the hash before it")
        if len(self._suspects) < _SUSPECTS_MAX:
            self._suspects.append((row, previous))

    def _compare(self, claims: Sequence[_Claim]) -> None:
        root = self._frontier.root().hex() if self._frontier.size == self.seq else ""
        for claim in claims:
            if claim.root == root:
                self.proven = self.seq
            elif not self.findings:
                first = self.proven + 1
                self._find(
                    first,
                    Kind.REWRITTEN,
                    f"events {first} to {self.seq} hold together but are not those that {claim.source} vouches for",
                )

    def finish(self) -> None:
        """Say what is missing at the end."""
        beyond = [size for size in self._claims if size > self.seq]
        if beyond:
            size = max(beyond)
            source = self._claims[size][0].source
            self._find(
                self.seq + 1,
                Kind.TRUNCATED,
                f"the ledger ends at event {self.seq}, but {source} vouches for events up to {size}",
            )


def _fits(row: EventRow, previous: bytes) -> bool:
    try:
        seq, event_id, event_type, timestamp_ms, payload, metadata, stored = row
        return chain_hash(previous, seq, event_id, event_type, timestamp_ms, payload, metadata) == stored
    except (TypeError, AttributeError, UnicodeEncodeError):  # a column of another type: SQLite lets one in
        return False


def _swapped(row: EventRow, other: EventRow, before: bytes) -> bool:
    """Return whether the two rows exchanged their content but kept their hashes."""
    return _fits((other[0], *row[1:6], other[6]), before)


async def verify_room(
    reader: SqlReader,
    *,
    checkpoints: Path | None = None,
    public_key: str = "",
    witnesses: Sequence[HeadWitnessed] = (),
    origin: str = "",
    projections: bool = False,
) -> AuditReport:
    """Audit one room's ledger, streaming.

    Args:
        reader: of the room.
        checkpoints: the room's checkpoint file, or None if it has none.
        public_key: of the checkpoint key, 64 hexadecimal digits; required with ``checkpoints``.
        witnesses: heads that other rooms have recorded; those of other rooms are passed over.
        origin: of the checkpoints, if it is not the default one.
        projections: compare orders, fills, votes and the like with their events as well; takes some ten times longer.

    Raises:
        LedgerUnavailable: the database does not answer.
    """
    claims: dict[int, list[_Claim]] = {}
    forged: list[Finding] = []
    good = seen = 0
    if checkpoints is not None:
        for entry in read_checkpoints(checkpoints, origin or origin_of(reader.room), public_key):
            if isinstance(entry, Refused):
                detail = (
                    f"checkpoint {entry.index} of the file, for {entry.size} events, is not genuine: {entry.reason}"
                )
                forged.append(Finding(entry.size, Kind.FORGED_CHECKPOINT, detail))
            else:
                good += 1
                claims.setdefault(entry.size, []).append(_Claim(entry.root.hex(), "a checkpoint"))
    for witness in witnesses:
        if witness.service == reader.room:
            seen += 1
            claims.setdefault(witness.size, []).append(_Claim(witness.root, "a witness"))
    audit = ChainAudit(reader.room, claims)
    tables = ProjectionAudit(reader)
    if projections:
        await tables.start()
    while rows := await reader.event_rows(audit.seq, limit=_ROWS_AT_ONCE):
        await asyncio.to_thread(audit.feed, rows)
        if projections:
            await tables.feed(rows)
    audit.finish()
    tables.finish(audit.seq)
    mismatches = [Finding(each.seq, Kind.PROJECTION, each.detail) for each in tables.mismatches]
    return AuditReport(
        room=reader.room,
        events=audit.events,
        unproven=audit.events - min(audit.proven, audit.events),
        checkpoints=good,
        witnesses=seen,
        findings=(*audit.findings, *forged[:_FINDINGS_MAX], *mismatches[:_FINDINGS_MAX]),
    )
