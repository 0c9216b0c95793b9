"""How a document of limits comes into force: a tighter one by itself, a looser one by the operator's signature.

Rules kept here:

- Nothing of a document that loosens anything is applied without the signature, at a start as little as while running.
- A file is acted on once it was read twice in a row with the same content: half a document never counts.
- A policy is in the ledger before the first order is judged by it, and a version never stands for two documents.
- A signed document counts only if it is what the desk's document says, and only for the version it was signed against;
  else the file would undo at once what was signed, or an old signature undo a later change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from trading.adapters.signing import digest
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.events import AlarmRaised
from trading.ports.clock import Clock
from trading.ports.ledger import EventDraft, Ledger, LedgerReader, Unit

from .document import Document, LimitsSource, parse_stored
from .journal import policy_unit
from .limits import Policy, RiskLimits, document_of, policy_of
from .operator_commands import Command, CommandKind
from .tightness import Change, compare, loosening

log = logging.getLogger("grekko.risk")

LIMITS_PAYLOAD_TYPE: Final = "application/vnd.grekko.limits-command+json;v=1"
#: Where a policy comes from that no person signed.
START: Final = "start"
FILE: Final = "file"
_CHANGES_SHOWN: Final = 4
_NOTE_MAX: Final = 400  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsCommand(Command):
    """The operator puts a document in force.

    Attributes:
        document: RFC 8785 text of the limits, as :func:`document_of` writes it.
        digest: its SHA-256, 64 hexadecimal digits.
        base_version: the policy that was in force when the operator looked.
    """

    document: str
    digest: str
    base_version: int


@dataclass(frozen=True, slots=True)
class Opening:
    """What a start finds.

    Attributes:
        is_new: the policy is not in the ledger yet.
        waiting: why the document is not in force; empty when it is.
    """

    policy: Policy
    is_new: bool
    waiting: str


async def opening_policy(ledger: LedgerReader, limits: RiskLimits) -> Opening:
    """Return what is in force at a start: the document, unless it is looser than the newest policy in the ledger.

    Args:
        ledger: risk's own.
        limits: what the document says now.

    Raises:
        ConfigurationError: the ledger holds limits that this release cannot read.
    """
    newest = await newest_row(ledger)
    if newest is None:
        return Opening(policy_of(limits, version=1), is_new=True, waiting="")
    version, document = newest
    held = policy_of(parse_stored(document), version=version)
    waiting = waits(loosening(compare(held.limits, limits)))
    wanted = held.limits if waiting else limits
    # A release that knows more limits spells the same ones in another way, which is another document.
    is_new = document_of(wanted) != document
    return Opening(policy_of(wanted, version=version + is_new), is_new=is_new, waiting=waiting)


async def newest_row(ledger: LedgerReader) -> tuple[int, str] | None:
    """Return version and document of the newest policy in risk's ledger, None before the first."""
    rows = await ledger.rows("policies")
    found = [(int(str(row["version"])), str(row["document"])) for row in rows]
    return max(found, default=None)


def waits(changes: Sequence[Change]) -> str:
    """Return what a person is told of a document that is not in force; empty without changes."""
    if not changes:
        return ""
    shown = "; ".join([str(change) for change in changes[:_CHANGES_SHOWN]])
    more = f"; and {len(changes) - _CHANGES_SHOWN} more" if len(changes) > _CHANGES_SHOWN else ""
    return f"a looser document waits for the operator's signature: {shown}{more}"[:_NOTE_MAX]


class Adoption:
    """Watches the document and puts policies in force.

    Args:
        ledger: risk's own.
        clock: for the time a policy is loaded.
        source: reads the document; None when nothing is watched.
        in_force: gives the policy in force.
        follow: makes everything in the room follow a policy, at once and without waiting.
        announce: tells execution, after that; must not raise.
        waiting: what was found at the start.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        source: LimitsSource | None,
        in_force: Callable[[], Policy],
        follow: Callable[[Policy], None],
        announce: Callable[[], Awaitable[None]],
        waiting: str = "",
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._source = source
        self._in_force = in_force
        self._follow = follow
        self._announce = announce
        self._one = asyncio.Lock()
        self._seen = ""
        self._handled: tuple[str, int] | None = None
        self._had_file = False
        self.note = waiting

    @property
    def kind(self) -> CommandKind:
        """The command that puts a signed document in force."""
        return CommandKind(LIMITS_PAYLOAD_TYPE, LimitsCommand, self.sign)

    async def look(self) -> None:
        """Read the document if it changed; apply what only tightens, and note what does not.

        Raises:
            LedgerError: a tighter policy is not written, so it is not in force either; the next look tries again.
        """
        source = self._source
        if source is None:
            return
        seen, before = await asyncio.to_thread(source.fingerprint), self._seen
        self._seen = seen
        if seen != before or self._handled == (seen, self._in_force().version):
            return  # perhaps it is being written right now: the next look decides
        async with self._one:
            try:
                document = await asyncio.to_thread(source.read)
            except ConfigurationError as error:
                await self._report(error)
            else:
                if await asyncio.to_thread(source.fingerprint) != seen:
                    return
                await self._take(document)
            self._handled = seen, self._in_force().version

    async def sign(self, command: LimitsCommand, envelope: str) -> str:
        """Put a document in force that the operator signed, and return what to answer.

        Raises:
            InvalidValue: LIMITS_DIGEST, LIMITS_BASE, LIMITS_NOT_THE_DOCUMENT or LIMITS_UNCHANGED; nothing was changed.
            ConfigurationError: it is no document of this desk.
            LedgerError: it could not be written, so it is not in force.
        """
        async with self._one:
            now = self._in_force()
            limits = await self._signed(command, now)
            if document_of(limits) == now.document:
                raise InvalidValue(
                    f"these limits are in force already, as version {now.version}", code="LIMITS_UNCHANGED"
                )
            policy = await self._adopt(limits, f"operator:{command.by}", command.reason, envelope)
        return f"limits version {policy.version} are in force ({policy.digest[:16]})"

    async def _signed(self, command: LimitsCommand, now: Policy) -> RiskLimits:
        if digest(command.document.encode()) != command.digest:
            raise InvalidValue("the digest is not the document's", code="LIMITS_DIGEST")
        limits = parse_stored(command.document)
        if document_of(limits) != command.document:
            raise InvalidValue("the document is not in its canonical form", code="LIMITS_DIGEST")
        if command.base_version != now.version:
            raise InvalidValue(
                f"signed against version {command.base_version}, but version {now.version} is in force",
                code="LIMITS_BASE",
                suggestion="look at `grekko limits diff`, then sign again",
            )
        if self._source is not None:
            document = await asyncio.to_thread(self._source.read)
            if document_of(document.limits) != command.document:
                raise InvalidValue(
                    f"what was signed is not what {document.origin} says", code="LIMITS_NOT_THE_DOCUMENT"
                )
        return limits

    async def _take(self, document: Document) -> None:
        now = self._in_force()
        if document.path is None and self._had_file:
            await self._report(ConfigurationError("the limits file is gone", code="LIMITS_FILE_MISSING"))
            return
        self._had_file = document.path is not None
        self.note = waits(loosening(compare(now.limits, document.limits)))
        if self.note:
            log.warning("%s", self.note)
        elif document_of(document.limits) != now.document:
            await self._adopt(document.limits, FILE, document.origin)

    async def _adopt(self, limits: RiskLimits, by: str, reason: str, envelope: str = "") -> Policy:
        version, is_new = self._in_force().version + 1, True
        newest = await newest_row(self._ledger)
        if newest is not None and newest[0] >= version:  # a commit whose answer was lost
            is_new = newest[1] != document_of(limits)
            version = newest[0] + is_new
        policy = policy_of(limits, version=version)
        now_ms = self._clock.now_ms()
        await self._ledger.commit(
            policy_unit(policy, is_new=is_new, now_ms=now_ms, by=by, reason=reason, envelope=envelope)
        )
        self._follow(policy)
        self.note = ""
        log.warning("limits version %d are in force, by %s", policy.version, by[:80])
        await self._announce()
        return policy

    async def _report(self, error: ConfigurationError) -> None:
        self.note = f"the document is refused, the limits in force stay: {error.code}: {error}"[:_NOTE_MAX]
        log.error("%s", self.note)
        alarm = AlarmRaised(code=error.code, message=str(error)[:_NOTE_MAX], subject="limits")
        await self._ledger.commit(Unit(events=(EventDraft(alarm),)))
