"""The audit names what was done to a desk's files, whatever it was, and never passes what it could not check."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from grekko.audit import audit_desk
from grekko.initialization import initialize
from grekko.run import show_verdict
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskSettings
from trading.adapters.signing_keys import load_signer
from trading.adapters.sql import Checkpointing, LedgerLocation, open_writer
from trading.domain.events import ServiceStopped
from trading.ports.ledger import EventDraft, Unit


async def build_desk(home: Path) -> DeskSettings:
    """Return a desk whose execution room wrote five events and stopped in order."""
    settings = DeskSettings(home=home)
    initialize(settings)
    signer = load_signer(settings.desk_home.keys("execution") / "checkpoint.key", "checkpoint")
    checkpoint = Checkpointing(
        path=settings.desk_home.checkpoints("execution"), signer=signer, public_key=signer.public_key
    )
    location = LedgerLocation.of(settings)
    async with open_writer(
        "execution", location, clock=SystemClock(), ids=Uuid7Factory(), checkpoint=checkpoint
    ) as ledger:
        for _ in range(5):
            await ledger.commit(Unit(events=(EventDraft(ServiceStopped(generation=1, reason="a test")),)))
    return settings


def tamper(settings: DeskSettings, statement: str) -> None:
    """Change the execution ledger as somebody who owns the file can."""
    with closing(sqlite3.connect(settings.desk_home.ledger("execution"))) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute(statement)
        database.commit()


async def test_a_desk_that_nobody_touched_is_verified(tmp_path: Path) -> None:
    settings = await build_desk(tmp_path / "desk")
    assert (await audit_desk(settings)).kept


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "emptied"])
async def test_a_ledger_without_its_checkpoints_does_not_pass(tmp_path: Path, deleted: bool) -> None:
    settings = await build_desk(tmp_path / "desk")
    notes = settings.desk_home.checkpoints("execution")
    if deleted:
        notes.unlink()
    else:
        notes.write_bytes(b"")
    audit = await audit_desk(settings)
    assert not audit.kept
    assert [(finding.room, finding.what.partition(":")[0]) for finding in audit.findings] == [("execution", "unsigned")]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET payload = '{not json' WHERE seq = 3",
        "UPDATE events SET event_type = 'x[/y].z' WHERE seq = 3",
        "UPDATE events SET metadata = '[]' WHERE seq = 3",
        "UPDATE events SET payload = x'00ff' WHERE seq = 3",
    ],
)
async def test_an_event_that_cannot_be_read_is_named_and_the_rest_is_still_audited(
    tmp_path: Path, statement: str
) -> None:
    settings = await build_desk(tmp_path / "desk")
    tamper(settings, statement)
    audit = await audit_desk(settings)
    assert not audit.kept
    assert {(finding.room, finding.seq) for finding in audit.findings} == {("execution", 3)}
    assert audit.rooms["execution"].events == 5
    screen = Console(file=io.StringIO(), width=200)
    show_verdict(audit, screen)
    assert "execution#3 cannot be read" in screen.file.getvalue()  # type: ignore[attr-defined]
