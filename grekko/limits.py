"""`grekko limits`: what is in force, what the document says, and the operator's signature on a looser one.

Everything but `sign` reads the ledger and the document, so it works whether the desk runs or not.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import orjson
from rich.console import Console
from rich.table import Table

from grekko.control import deliver
from grekko.ledgers import open_ledgers, read_events
from grekko.limits_file import changed_text, write_whole
from grekko.processes import running
from mcp_servers.envelope import timestamp
from mcp_servers.risk.adoption import LIMITS_PAYLOAD_TYPE, LimitsCommand, newest_row
from mcp_servers.risk.document import NAMES, SECTION, Document, LimitsSource, parse, parse_stored, read_data, read_file
from mcp_servers.risk.document import schema as document_schema
from mcp_servers.risk.limits import DEFAULTS, Policy, RiskLimits, SymbolLimits, document_of, policy_of
from mcp_servers.risk.settings import limits_source, load_risk_settings
from mcp_servers.risk.tightness import Change, compare, loosening, text_of
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskSettings, SectionModel
from trading.adapters.signing import ENVELOPE_MAX, digest
from trading.domain.errors import ConfigurationError, InvalidValue, TradingError
from trading.domain.events import LimitsLoaded

_SHORT: Final = 16  # characters of a digest
_BY_ITSELF: Final = "tighter: takes effect by itself"
_BY_SIGNATURE: Final = "needs the operator's signature"


@dataclass(frozen=True, slots=True)
class Version:
    """One line of the history: what came into force, when, and by whom."""

    version: int
    digest: str
    at_ms: int
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeskLimits:
    """Limits of a desk as its files and its ledger tell.

    Attributes:
        policy: in force, or what the last run had in force; None before the first start.
        document: what the file or the config says; None when it cannot be read.
        problem: why it cannot.
    """

    source: LimitsSource
    policy: Policy | None
    document: Document | None
    problem: TradingError | None = None

    def written(self) -> Document:
        """Return the document; raises why it cannot be read."""
        if self.document is None:
            raise self.problem or ConfigurationError("there is no document", code="LIMITS_UNREADABLE")
        return self.document


async def read_limits(settings: DeskSettings) -> DeskLimits:
    """Return what is in force and what the document says.

    Raises:
        ConfigurationError: the ledger holds limits that this release cannot read.
    """
    source = limits_source(settings, load_risk_settings)
    async with open_ledgers(settings) as ledgers:
        newest = await newest_row(ledgers.risk)
    policy = None if newest is None else policy_of(parse_stored(newest[1]), version=newest[0])
    try:
        return DeskLimits(source, policy, source.read())
    except ConfigurationError as error:
        return DeskLimits(source, policy, None, error)


async def read_history(settings: DeskSettings) -> list[Version]:
    """Return every version that was in force, oldest first, from the audit log."""
    found: dict[int, Version] = {}
    async with open_ledgers(settings) as ledgers:
        async for event in read_events(ledgers.risk):
            loaded = event.payload
            if isinstance(loaded, LimitsLoaded) and loaded.version not in found:
                found[loaded.version] = Version(
                    loaded.version, loaded.digest, event.timestamp_ms, loaded.by or "start", loaded.reason
                )
    return list(found.values())


# -- the commands -----------------------------------------------------------------------------------------------------


async def show_limits(settings: DeskSettings, console: Console, *, as_json: bool, origin: bool) -> None:
    """Print the limits in force; of a desk that never ran, what its first start would take."""
    desk = await read_limits(settings)
    limits = desk.policy.limits if desk.policy is not None else desk.written().limits
    policy = desk.policy or policy_of(limits, version=0)
    waiting = _changes(desk)
    if as_json:
        facts = {
            "version": policy.version,
            "digest": policy.digest,
            "limits": orjson.Fragment(policy.document),
            "document": None if desk.document is None else desk.document.origin,
            "problem": "" if desk.problem is None else f"{desk.problem.code}: {desk.problem}",
            "differences": [_change_data(change) for change in waiting],
        }
        _plain(console, orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode())
        return
    if desk.policy is None:
        _plain(console, f"the desk never ran; its first start takes {desk.written().origin}")
    else:
        _plain(console, f"limits version {policy.version}, digest {policy.digest}")
    for path, value, chosen in flat(limits):
        _plain(console, f"  {path} = {value}" + (f"    ({'document' if chosen else 'default'})" if origin else ""))
    if desk.problem is not None:
        _plain(console, f"the document is refused: {desk.problem.code}: {desk.problem}")
    _tell(console, desk, waiting)


def show_schema(console: Console) -> None:
    """Print the JSON Schema of the document."""
    _plain(console, orjson.dumps(document_schema(), option=orjson.OPT_INDENT_2).decode())


async def show_history(settings: DeskSettings, console: Console) -> None:
    """Print every version with its digest, when it came into force, and by whom."""
    table = Table("version", "digest", "in force since", "by", "reason", box=None)
    for item in await read_history(settings):
        table.add_row(str(item.version), item.digest[:_SHORT], timestamp(item.at_ms), item.by, item.reason)
    console.width = max(console.width, 120)
    console.print(table if table.row_count else "no limits were ever in force", markup=False)


async def diff_limits(settings: DeskSettings, console: Console, file: Path | None) -> bool:
    """Print what a document would change; True when nothing of it waits for a signature."""
    desk = await read_limits(settings)
    if file is not None:
        desk = DeskLimits(desk.source, desk.policy, Document(_checked(desk, file), file))
    document = desk.written()
    if desk.policy is None:
        _plain(console, f"the desk never ran; its first start takes {document.origin} as it is")
        return True
    changes = compare(desk.policy.limits, document.limits)
    _plain(console, f"version {desk.policy.version} in force, against {document.origin}:")
    _print_changes(console, changes)
    if loosening(changes) and len(loosening(changes)) < len(changes):
        _plain(console, "a document is taken whole: nothing of it takes effect before it is signed")
    return not loosening(changes)


async def set_limits(settings: DeskSettings, console: Console, assignments: Sequence[str]) -> None:
    """Change values of the document, and say what takes effect by itself.

    Raises:
        ConfigurationError: the result would be no document, or the limits are in the config file; nothing was written.
    """
    desk = await read_limits(settings)
    path = _writable(desk)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    base = desk.policy.limits if desk.policy is not None else RiskLimits()
    changed = changed_text(text, path.name, base, assignments)
    limits = parse(_loaded(changed, path), path.name)
    desk.source.check(limits)
    write_whole(path, changed)
    _plain(console, f"written to {path}")
    if desk.policy is None:
        _plain(console, "the first start of the desk takes it as it is")
        return
    changes = compare(desk.policy.limits, limits)
    _print_changes(console, changes)
    if loosening(changes):
        _plain(console, "nothing of it takes effect before `grekko limits sign --reason ...`")
    elif changes:
        when = "within a second" if running(settings.desk_home, "risk") else "with the next start"
        _plain(console, f"it takes effect {when}")


async def sign_limits(
    settings: DeskSettings, console: Console, file: Path | None, reason: str, agree: Callable[[], bool]
) -> bool:
    """Show what a document changes, sign it as the operator, and print what risk answered.

    Args:
        settings: the desk's.
        console: to print to.
        file: a document that becomes the desk's; None signs the one it has.
        reason: kept in the audit log.
        agree: asks the operator, after the differences were shown.

    Returns:
        Whether it is in force now, or will be without a signature.

    Raises:
        Unavailable: the desk does not run, or risk did not answer.
        TradingError: risk refused; the code is risk's.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise InvalidValue("say why: the reason is kept in the audit log", code="REASON_REQUIRED")
    desk = await read_limits(settings)
    limits = desk.written().limits if file is None else _checked(desk, file)
    if desk.policy is None:
        raise InvalidValue("the desk never ran; its first start takes the document as it is", code="LIMITS_UNCHANGED")
    changes = compare(desk.policy.limits, limits)
    _print_changes(console, changes)
    if not loosening(changes):
        if file is not None:
            _install(desk, file)
        _plain(console, "nothing in it needs a signature; the desk takes it by itself")
        return True
    if not agree():
        _plain(console, "not signed; nothing was changed")
        return False
    if file is not None:
        _install(desk, file)
    command = _command(settings, desk.policy.version, document_of(limits), reason)
    not_done = "risk is not running, so nothing was loosened; the document waits for the signature"
    result = await deliver(settings, command, LIMITS_PAYLOAD_TYPE, name="limits", not_done=not_done)
    _plain(console, result.message)
    return True


# -- inside -----------------------------------------------------------------------------------------------------------


def flat(model: SectionModel, default: SectionModel = DEFAULTS, prefix: str = "") -> Iterable[tuple[str, str, bool]]:
    """Yield path, text and whether somebody chose it, of every value."""
    for name in type(model).model_fields:
        value, usual = getattr(model, name), getattr(default, name, None)
        if isinstance(value, SectionModel):
            yield from flat(value, cast("SectionModel", usual), f"{prefix}{name}.")
        elif isinstance(value, dict):
            for key, part in cast("dict[str, SectionModel]", value).items():
                plain = SymbolLimits() if isinstance(part, SymbolLimits) else type(part)()
                yield from flat(part, plain, f"{prefix}{name}.{key}.")
        else:
            yield f"{prefix}{name}", text_of(value), value != usual


def _command(settings: DeskSettings, base_version: int, document: str, reason: str) -> LimitsCommand:
    if len(document) > ENVELOPE_MAX // 2:
        raise InvalidValue("the document is too long to be signed", code="LIMITS_TOO_LONG")
    return LimitsCommand(
        command_id=Uuid7Factory().new_id(),
        desk=settings.desk,
        account_id=settings.account_id,
        reason=reason,
        by=getpass.getuser(),
        issued_ms=SystemClock().now_ms(),
        document=document,
        digest=digest(document.encode()),
        base_version=base_version,
    )


def _checked(desk: DeskLimits, file: Path) -> RiskLimits:
    limits = read_file(file)
    desk.source.check(limits)
    return limits


def _writable(desk: DeskLimits) -> Path:
    """Return the file to write; refuse when the config holds the limits."""
    path = desk.source.path()
    if path is None and desk.source.in_config():
        raise ConfigurationError(
            f"the limits are in {SECTION}",
            code="LIMITS_IN_CONFIG",
            suggestion=f"move that section into {NAMES[0]} in the desk's home, or edit it there",
        )
    return path or desk.source.home / NAMES[0]


def _install(desk: DeskLimits, file: Path) -> None:
    """Make a file the desk's document."""
    path = _writable(desk)
    if path.exists() and path.samefile(file):
        return
    if (path.suffix == ".json") != (file.suffix == ".json"):
        raise ConfigurationError(
            f"{file.name} and {path.name} are of different kinds", code="LIMITS_UNREADABLE", allowed=(path.suffix,)
        )
    write_whole(path, file.read_text(encoding="utf-8"))


def _loaded(text: str, path: Path) -> dict[str, Any]:
    """Return what new text says, read as risk will read it."""
    part = path.with_name(f".{path.stem}.checked{path.suffix}")
    write_whole(part, text)
    try:
        return read_data(part)
    finally:
        part.unlink(missing_ok=True)


def _changes(desk: DeskLimits) -> tuple[Change, ...]:
    if desk.policy is None or desk.document is None:
        return ()
    return compare(desk.policy.limits, desk.document.limits)


def _tell(console: Console, desk: DeskLimits, changes: Sequence[Change]) -> None:
    if loosening(changes) and desk.document is not None:
        _plain(console, f"{desk.document.origin} says something looser, which waits for the operator's signature:")
        _print_changes(console, changes)


def _print_changes(console: Console, changes: Sequence[Change]) -> None:
    if not changes:
        _plain(console, "  no difference")
    for change in changes:
        verdict = _BY_SIGNATURE if change.needs_signature else _BY_ITSELF
        kind = f"{change.tightness}, " if change.needs_signature else ""
        _plain(console, f"  {change.path}: {change.old} -> {change.new}    ({kind}{verdict})")


def _change_data(change: Change) -> dict[str, object]:
    return {
        "path": change.path,
        "old": change.old,
        "new": change.new,
        "tightness": change.tightness.value,
        "needs_signature": change.needs_signature,
    }


def _plain(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
