"""The audit finds whatever was done to a ledger behind its writer's back, and says which event it was done to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import ROOM, SIGNER, SqlDesk, SqliteDesk
from trading.adapters.sql import AuditReport, latest_head, verify_room
from trading.adapters.sql.checkpoints import Checkpoint, sign_checkpoint
from trading.adapters.sql.merkle import Frontier
from trading.adapters.sql.stored import chain_hash, genesis
from trading.adapters.sql.verify import Kind
from trading.domain.errors import ConfigurationError
from trading.domain.events import HeadWitnessed, OrderSubmitted
from trading.domain.identifiers import OrderId
from trading.ports.ledger import EventDraft, Unit
from trading.testing.keys import make_test_signer


async def fill(desk: SqlDesk, count: int, **options: Any) -> None:
    async with desk.writer(**options) as ledger:
        for number in range(count):
            await ledger.commit(Unit(events=(EventDraft(OrderSubmitted(order_id=OrderId(f"o{number}"))),)))


async def audit(desk: SqlDesk, **options: Any) -> AuditReport:
    async with desk.reader() as reader:
        path = desk.checkpointing.path
        options = {"checkpoints": path if path.exists() else None, "public_key": SIGNER.public_key} | options
        return await verify_room(reader, **options)


def found(report: AuditReport) -> list[tuple[int, Kind]]:
    return [(finding.seq, finding.kind) for finding in report.findings]


async def test_an_untouched_ledger_verifies_up_to_its_last_checkpoint(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 25, checkpoint=sql_desk.checkpointing)
    report = await audit(sql_desk)
    assert report.verified
    assert (report.events, report.unproven) == (25, 0)
    assert report.checkpoints >= 1
    await fill(sql_desk, 3)
    report = await audit(sql_desk)
    assert report.verified
    assert (report.events, report.unproven) == (28, 3)


async def test_without_checkpoints_everything_is_unproven(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 4)
    report = await audit(sql_desk)
    assert report.verified
    assert (report.events, report.unproven, report.checkpoints) == (4, 4, 0)


async def test_an_empty_ledger_verifies(sql_desk: SqlDesk) -> None:
    report = await audit(sql_desk)
    assert report.verified
    assert report.events == 0


@pytest.mark.parametrize(
    "change",
    [
        "payload = replace(payload, 'o6', 'o9')",
        "timestamp_ms = timestamp_ms + 1",
        "event_type = 'order.accepted'",
        "event_id = event_id || 'x'",
        "metadata = '{}'",
    ],
)
async def test_a_changed_event_is_named(sql_desk: SqlDesk, change: str) -> None:
    await fill(sql_desk, 20, checkpoint=sql_desk.checkpointing)
    await sql_desk.tamper(f"UPDATE events SET {change} WHERE seq = 7")
    assert found(await audit(sql_desk)) == [(7, Kind.CHANGED)]


async def test_a_byte_moved_from_one_column_to_the_next_is_a_change(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 3)
    await sql_desk.tamper(
        "UPDATE events SET event_id = event_id || substr(event_type, 1, 1), event_type = substr(event_type, 2)"
        " WHERE seq = 2"
    )
    assert found(await audit(sql_desk)) == [(2, Kind.CHANGED)]


async def test_a_value_of_another_type_is_a_change(sqlite_desk: SqliteDesk) -> None:
    await fill(sqlite_desk, 3)
    await sqlite_desk.tamper("UPDATE events SET payload = CAST(payload AS BLOB) WHERE seq = 2")
    assert found(await audit(sqlite_desk)) == [(2, Kind.CHANGED)]


async def test_a_dropped_event_is_named(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 20, checkpoint=sql_desk.checkpointing)
    await sql_desk.tamper("DELETE FROM events WHERE seq IN (5, 11, 12)")
    report = await audit(sql_desk)
    assert found(report) == [(5, Kind.DROPPED), (11, Kind.DROPPED)]
    assert "11 to 12" in report.findings[1].detail


async def test_a_dropped_event_whose_followers_moved_up_is_seen(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 6)
    await sql_desk.tamper("DELETE FROM events WHERE seq = 3", "UPDATE events SET seq = -(seq - 1) WHERE seq > 3")
    await sql_desk.tamper("UPDATE events SET seq = -seq WHERE seq < 0")
    assert found(await audit(sql_desk))[0] == (3, Kind.CHANGED)


@pytest.mark.parametrize("pair", [(4, 5), (4, 9)])
async def test_two_exchanged_events_are_named(sql_desk: SqlDesk, pair: tuple[int, int]) -> None:
    await fill(sql_desk, 12, checkpoint=sql_desk.checkpointing)
    one, other = pair
    await sql_desk.tamper(
        f"UPDATE events SET seq = -{one} WHERE seq = {one}",
        f"UPDATE events SET seq = {one} WHERE seq = {other}",
        f"UPDATE events SET seq = {other} WHERE seq = -{one}",
    )
    report = await audit(sql_desk)
    assert (other, Kind.REORDERED) in found(report)
    assert min(finding.seq for finding in report.findings) == one


async def test_a_ledger_cut_below_a_checkpoint_is_seen(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 20, checkpoint=sql_desk.checkpointing)
    await sql_desk.tamper("DELETE FROM events WHERE seq > 17")
    report = await audit(sql_desk)
    assert found(report) == [(18, Kind.TRUNCATED)]
    assert "20" in report.findings[0].detail


async def rewrite(desk: SqlDesk, first: int, last: int) -> bytes:
    """Replace events and make the chain fit again; returns the Merkle root of the forged history."""
    async with desk.reader() as reader:
        rows = await reader.event_rows(0, limit=1000)
    previous, frontier, changes = genesis(ROOM), Frontier(), []
    for row in rows:
        payload = row[4].replace('"o', '"x') if first <= row[0] <= last else row[4]
        previous = chain_hash(previous, row[0], row[1], row[2], row[3], payload, row[5])
        frontier.append(previous)
        literal = f"x'{previous.hex()}'" if isinstance(desk, SqliteDesk) else f"'\\x{previous.hex()}'"
        changes.append(f"UPDATE events SET payload = '{payload}', hash = {literal} WHERE seq = {row[0]}")
    await desk.tamper(*changes)
    return frontier.root()


async def test_a_consistently_rewritten_history_is_caught_by_its_checkpoint(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 10, checkpoint=sql_desk.checkpointing)
    await fill(sql_desk, 10, checkpoint=sql_desk.checkpointing)
    await rewrite(sql_desk, 14, 14)
    async with sql_desk.reader() as reader:
        assert (await verify_room(reader)).verified  # the chain alone cannot tell
    report = await audit(sql_desk)
    assert found(report) == [(11, Kind.REWRITTEN)]
    assert report.unproven == 10
    with pytest.raises(ConfigurationError) as refused:
        await fill(sql_desk, 1, checkpoint=sql_desk.checkpointing)
    assert refused.value.code == "LEDGER_REWRITTEN"


async def test_a_rewritten_tail_after_the_last_checkpoint_counts_as_unproven(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 10, checkpoint=sql_desk.checkpointing)
    await fill(sql_desk, 5)
    await rewrite(sql_desk, 12, 15)
    report = await audit(sql_desk)
    assert report.verified
    assert report.unproven == 5


async def test_a_checkpoint_of_another_key_is_no_checkpoint(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 10, checkpoint=sql_desk.checkpointing)
    root = await rewrite(sql_desk, 3, 3)
    thief = make_test_signer("thief")
    forged = sign_checkpoint(Checkpoint(f"grekko.local/{ROOM}", 10, root, 5), thief, thief.public_key)
    sql_desk.checkpointing.path.write_text(forged + "\n")
    report = await audit(sql_desk)
    assert found(report) == [(10, Kind.FORGED_CHECKPOINT)]
    assert report.unproven == 10


async def test_an_altered_checkpoint_is_no_checkpoint(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 10, checkpoint=sql_desk.checkpointing)
    path = sql_desk.checkpointing.path
    path.write_text(path.read_text().replace("\n10\n", "\n9\n"))
    await sql_desk.tamper("DELETE FROM events WHERE seq = 10")
    assert found(await audit(sql_desk)) == [(9, Kind.FORGED_CHECKPOINT)]


async def test_even_the_checkpoint_key_cannot_hide_a_rewrite_from_a_witness(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 10, checkpoint=sql_desk.checkpointing)
    path = sql_desk.checkpointing.path
    witness = latest_head(path, ROOM, SIGNER.public_key)
    assert witness is not None
    assert witness.size == 10
    root = await rewrite(sql_desk, 3, 3)
    path.write_text(sign_checkpoint(Checkpoint(f"grekko.local/{ROOM}", 10, root, 5), SIGNER, SIGNER.public_key) + "\n")
    assert (await audit(sql_desk)).verified
    report = await audit(sql_desk, witnesses=[witness, HeadWitnessed(service="risk", size=99, root="00")])
    assert [kind for _, kind in found(report)] == [Kind.REWRITTEN]
    assert "witness" in report.findings[0].detail
    assert report.witnesses == 1


async def test_a_witness_alone_proves_and_accuses(sql_desk: SqlDesk) -> None:
    await fill(sql_desk, 6, checkpoint=sql_desk.checkpointing)
    witness = latest_head(sql_desk.checkpointing.path, ROOM, SIGNER.public_key)
    assert witness is not None
    sql_desk.checkpointing.path.unlink()
    assert (await audit(sql_desk, witnesses=[witness])).unproven == 0
    await sql_desk.tamper("DELETE FROM events WHERE seq > 4")
    assert found(await audit(sql_desk, witnesses=[witness])) == [(5, Kind.TRUNCATED)]


@pytest.mark.parametrize("by", ["checkpoint", "witness"])
async def test_a_ledger_older_than_a_known_head_is_not_opened_for_writing(sql_desk: SqlDesk, by: str) -> None:
    await fill(sql_desk, 8, checkpoint=sql_desk.checkpointing)
    witness = latest_head(sql_desk.checkpointing.path, ROOM, SIGNER.public_key)
    assert witness is not None
    await sql_desk.tamper("DELETE FROM events WHERE seq > 5")
    options = {"checkpoint": sql_desk.checkpointing} if by == "checkpoint" else {"witnesses": [witness]}
    with pytest.raises(ConfigurationError) as refused:
        await fill(sql_desk, 1, **options)
    assert refused.value.code == "LEDGER_ROLLED_BACK"
    async with sql_desk.reader() as reader:
        assert await reader.last_seq() == 5


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET payload = '{}' WHERE seq = 1",
        "DELETE FROM events WHERE seq = 1",
        "INSERT OR REPLACE INTO events SELECT seq, event_id, event_type, 0, payload, metadata, hash FROM events",
        "REPLACE INTO events SELECT seq, event_id, event_type, 0, payload, metadata, hash FROM events",
        "INSERT INTO events SELECT * FROM events WHERE seq = 1 ON CONFLICT (seq) DO UPDATE SET payload = '{}'",
        "INSERT INTO events SELECT * FROM events WHERE seq = 1 ON CONFLICT DO NOTHING",
    ],
)
async def test_sqlite_guards_committed_events(sqlite_desk: SqliteDesk, statement: str) -> None:
    await fill(sqlite_desk, 2)
    with pytest.raises(Exception, match="append-only"):
        await sqlite_desk.as_writer(statement)
    assert (await audit(sqlite_desk)).verified


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET payload = '{}' WHERE seq = 1",
        "DELETE FROM events WHERE seq = 1",
        "TRUNCATE events",
        "INSERT INTO events SELECT * FROM events WHERE seq = 1 ON CONFLICT (seq) DO UPDATE SET payload = '{}'",
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "DROP TABLE events",
    ],
)
@pytest.mark.parametrize("role", ["grekko_execution", "grekko_risk", "grekko_reader"])
async def test_postgres_roles_cannot_change_committed_events(postgres_desk, statement: str, role: str) -> None:
    await fill(postgres_desk, 2)
    with pytest.raises(Exception, match=r"permission denied|must be owner"):
        await postgres_desk._run(f"SET ROLE {role}", statement.replace("events", "grekko_execution.events"))
    if not statement.startswith(("ALTER", "DROP")):
        with pytest.raises(Exception, match="append-only"):  # not even the owner, by accident
            await postgres_desk._run(statement)
    assert (await audit(postgres_desk)).verified


@pytest.mark.parametrize("role", ["grekko_risk", "grekko_reader"])
async def test_postgres_lets_other_rooms_only_read(postgres_desk, role: str) -> None:
    await fill(postgres_desk, 1)
    insert = "INSERT INTO grekko_execution.epochs VALUES ('main', 1, 1, 'active', 1, 1)"
    with pytest.raises(Exception, match="permission denied"):
        await postgres_desk._run(f"SET ROLE {role}", insert)
    await postgres_desk._run("SET ROLE grekko_reader", "SELECT * FROM epochs")


async def test_sqlite_readers_cannot_write(sqlite_desk: SqliteDesk) -> None:
    await fill(sqlite_desk, 1)
    async with sqlite_desk.reader() as reader:
        with pytest.raises(Exception, match="readonly"):
            await reader._source.fetch("DELETE FROM lease", ())


def test_the_preimage_of_the_chain_is_as_documented() -> None:
    assert genesis("risk") == hashlib.sha256(b"grekko-ledger-v1\nrisk").digest()
    row = b"7 1750000000000 2 4 2 4\n" + b"idtypemdp" + "é".encode() + b"l"
    expected = hashlib.sha256(bytes(32) + row).digest()
    assert chain_hash(bytes(32), 7, "id", "type", 1_750_000_000_000, "pél", "md") == expected
    row = b"7 5 2 4 2 3\nidtypemdpyl"
    assert chain_hash(bytes(32), 7, "id", "type", 5, "pyl", "md") == hashlib.sha256(bytes(32) + row).digest()


async def test_the_checkpoint_file_is_private(sqlite_desk: SqliteDesk) -> None:
    await fill(sqlite_desk, 1, checkpoint=sqlite_desk.checkpointing)
    assert Path(sqlite_desk.checkpointing.path).stat().st_mode & 0o777 == 0o600
    assert sqlite_desk.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("value", ["'text'", "7", "'100000000000'"])
async def test_a_hash_of_another_type_is_a_finding_and_does_not_stop_the_audit(
    sqlite_desk: SqliteDesk, value: str
) -> None:
    await fill(sqlite_desk, 10)
    await sqlite_desk.tamper(f"UPDATE events SET hash = {value} WHERE seq = 4")
    assert found(await audit(sqlite_desk)) == [(4, Kind.CHANGED)]
