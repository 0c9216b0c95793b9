"""What a ledger does when the database, the disk, the process or a release fails it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import SIGNER, MemoryDesk, PostgresDesk, SqlDesk, SqliteDesk
from trading.adapters.sql import verify_room
from trading.adapters.sql.plan import Work
from trading.adapters.sql.store import Store
from trading.adapters.sql.tables import Shape, Values
from trading.domain.errors import AlreadyClaimed, ConfigurationError, LeaseLost, LedgerUnavailable
from trading.domain.events import OrderSubmitted
from trading.domain.identifiers import OrderId
from trading.ports.ledger import EventDraft, Insert, Unit


def unit(name: str) -> Unit:
    claim = Insert("approval_fates", {"approval_id": name, "fate": "consumed", "order_id": name, "at_ms": 1})
    return Unit(events=(EventDraft(OrderSubmitted(order_id=OrderId(name))),), claims=(claim,))


class FlakyStore:
    """Passes everything on, but loses the next answers, before or after the work is done."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lose_before = self.lose_after = self.heads_down = 0

    async def write(self, work: Work) -> None:
        if self.lose_before:
            self.lose_before -= 1
            raise LedgerUnavailable("cut before the commit")
        await self.store.write(work)
        if self.lose_after:
            self.lose_after -= 1
            raise LedgerUnavailable("cut after the commit")

    async def head(self) -> tuple[int, bytes | None]:
        if self.heads_down:
            self.heads_down -= 1
            raise LedgerUnavailable("still down")
        return await self.store.head()

    async def take_lease(self, holder: str, now_ms: int) -> int:
        return await self.store.take_lease(holder, now_ms)

    async def lookup(self, shape: Shape, key: tuple[int, ...], wanted: Sequence[Values]) -> list[Values]:
        return await self.store.lookup(shape, key, wanted)

    def hashes(self) -> AsyncIterator[list[bytes]]:
        return self.store.hashes()

    async def close(self) -> None:
        await self.store.close()


def make_flaky(ledger: Any) -> FlakyStore:
    ledger._store = FlakyStore(ledger._store)
    return ledger._store


async def names(ledger: Any) -> list[str]:
    events = await ledger.events_after(0)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [event.payload.order_id for event in events]


async def assert_verified(desk: SqlDesk, events: int) -> None:
    async with desk.reader() as reader:
        path = desk.checkpointing.path
        report = await verify_room(reader, checkpoints=path if path.exists() else None, public_key=SIGNER.public_key)
    assert report.verified, report.findings
    assert report.events == events


async def test_a_failed_commit_fails_everybody_who_waits_and_the_next_one_works(sql_desk: SqlDesk) -> None:
    async with sql_desk.writer(checkpoint=sql_desk.checkpointing) as ledger:
        await ledger.commit(unit("a"))
        store = make_flaky(ledger)
        store.lose_before = 1
        first = asyncio.gather(*(ledger.commit(unit(f"b{i}")) for i in range(5)), return_exceptions=True)
        outcomes = await first
        assert [type(outcome) for outcome in outcomes] == [LedgerUnavailable] * 5
        assert len({id(outcome) for outcome in outcomes}) == 5
        await asyncio.gather(*(ledger.commit(unit(f"b{i}")) for i in range(5)))
        assert await names(ledger) == ["a", "b0", "b1", "b2", "b3", "b4"]
    await assert_verified(sql_desk, 6)


async def test_a_commit_whose_answer_was_lost_is_recognised_as_written(sql_desk: SqlDesk) -> None:
    async with sql_desk.writer(checkpoint=sql_desk.checkpointing) as ledger:
        store = make_flaky(ledger)
        store.lose_after = 1
        committed = await asyncio.gather(*(ledger.commit(unit(f"a{i}")) for i in range(3)))
        assert [event.seq for (event,) in committed] == [1, 2, 3]
        await ledger.commit(unit("b"))
        assert await names(ledger) == ["a0", "a1", "a2", "b"]
    await assert_verified(sql_desk, 4)


async def test_an_outcome_that_stays_unknown_is_settled_before_the_next_commit(sql_desk: SqlDesk) -> None:
    async with sql_desk.writer(checkpoint=sql_desk.checkpointing) as ledger:
        store = make_flaky(ledger)
        store.lose_after, store.heads_down = 1, 2
        with pytest.raises(LedgerUnavailable):
            await ledger.commit(unit("a"))
        with pytest.raises(LedgerUnavailable):
            await ledger.commit(unit("b"))
        with pytest.raises(AlreadyClaimed):  # "a" was written after all: asking again doubles nothing
            await ledger.commit(unit("a"))
        await ledger.commit(unit("b"))
        assert await names(ledger) == ["a", "b"]
    await assert_verified(sql_desk, 2)


async def test_a_ledger_that_moved_without_its_writer_stops_it(sqlite_desk: SqliteDesk) -> None:
    async with sqlite_desk.writer() as ledger:
        await ledger.commit(unit("a"))
        await sqlite_desk.tamper("INSERT INTO events SELECT 2, 'x', event_type, 1, payload, metadata, hash FROM events")
        with pytest.raises(LeaseLost):
            await ledger.commit(unit("b"))
        with pytest.raises(LeaseLost):
            await ledger.commit(unit("c"))
        assert await ledger.last_seq() == 2


async def test_a_full_disk_refuses_and_room_lets_it_go_on(sqlite_desk: SqliteDesk) -> None:
    async with sqlite_desk.writer(checkpoint=sqlite_desk.checkpointing) as ledger:
        await ledger.commit(unit("a"))
        pages = ledger._store._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._store._connection.execute(f"PRAGMA max_page_count = {pages}")
        written, refusal = 1, None
        while refusal is None and written < 200:
            (outcome,) = await asyncio.gather(ledger.commit(unit(f"{written}" + "x" * 500)), return_exceptions=True)
            refusal = outcome if isinstance(outcome, LedgerUnavailable) else None
            written += refusal is None
        assert "full" in str(refusal)
        assert await ledger.last_seq() == written
        ledger._store._connection.execute("PRAGMA max_page_count = 100000")
        await ledger.commit(unit("after"))
        assert (await names(ledger))[-1] == "after"
    await assert_verified(sqlite_desk, written + 1)


async def test_a_session_that_was_cut_is_made_again(postgres_desk: PostgresDesk) -> None:
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    async with postgres_desk.writer() as ledger, postgres_desk.reader() as reader:
        await ledger.commit(unit("a"))
        assert await reader.last_seq() == 1
        await postgres_desk._run(cut)
        (outcome,) = await asyncio.gather(ledger.commit(unit("b")), return_exceptions=True)
        await ledger.commit(unit("c"))
        # Whether the writer notices the cut before or while it writes, it says the truth about "b".
        expected = ["a", "c"] if isinstance(outcome, LedgerUnavailable) else ["a", "b", "c"]
        assert await names(reader) == expected
    await assert_verified(postgres_desk, len(expected))


async def test_a_second_writer_is_refused_while_the_first_lives(sql_desk: SqlDesk) -> None:
    async with sql_desk.writer() as first:
        with pytest.raises(ConfigurationError) as refused:
            async with sql_desk.writer():
                pass
        assert refused.value.code == "LEDGER_IN_USE"
        await first.commit(unit("still"))
    async with sql_desk.writer() as second:
        assert second.generation == first.generation + 1


async def test_a_closed_ledger_refuses_and_finishes_what_waited(sql_desk: SqlDesk) -> None:
    async with sql_desk.writer() as ledger:
        waiting = asyncio.create_task(ledger.commit(unit("last")))
        await asyncio.sleep(0)
    assert [event.seq for event in await waiting] == [1]
    with pytest.raises(LedgerUnavailable) as refused:
        await ledger.commit(unit("late"))
    assert refused.value.code == "LEDGER_CLOSED"


@pytest.mark.parametrize("turns", [0, 1, 2, 10, 40, 100, 200, 400])
async def test_stopping_the_batcher_leaves_nobody_waiting(sql_desk: SqlDesk, turns: int) -> None:
    async with sql_desk.writer() as ledger:
        waiting = [asyncio.create_task(ledger.commit(unit(f"a{i}"))) for i in range(3)]
        for _ in range(turns + 1):  # the cut comes at the beginning, in the middle or after the end of the transaction
            await asyncio.sleep(0)
        if ledger._pump is not None:
            ledger._pump.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        written = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert all(isinstance(outcome, (list, LedgerUnavailable)) for outcome in outcomes)
        assert await ledger.last_seq() == len(written)
        await ledger.commit(unit("next"))
    await assert_verified(sql_desk, len(written) + 1)


async def test_more_units_than_the_queue_holds_are_refused(sqlite_desk: SqliteDesk, monkeypatch) -> None:
    monkeypatch.setattr("trading.adapters.sql.writer._WAITING_MAX", 5)
    async with sqlite_desk.writer() as ledger:
        outcomes = await asyncio.gather(*(ledger.commit(unit(f"a{i}")) for i in range(8)), return_exceptions=True)
        assert [getattr(outcome, "code", "ok") for outcome in outcomes] == ["ok"] * 5 + ["LEDGER_BUSY"] * 3


async def test_a_ledger_of_a_later_release_is_not_touched(sql_desk: SqlDesk) -> None:
    async with sql_desk.writer() as ledger:
        await ledger.commit(unit("a"))
    await sql_desk.tamper("UPDATE alembic_version SET version_num = 'execution_9999'")
    with pytest.raises(ConfigurationError) as refused:
        async with sql_desk.writer():
            pass
    assert refused.value.code == "LEDGER_TOO_NEW"


async def test_a_database_that_was_not_prepared_says_what_to_do(postgres_server: str, tmp_path: Path) -> None:
    bare = PostgresDesk(f"postgresql:///postgres?{postgres_server}", tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        async with bare.writer():
            pass
    assert refused.value.code == "LEDGER_NOT_PROVISIONED"
    nowhere = PostgresDesk(f"postgresql:///nowhere?{postgres_server}", tmp_path)
    with pytest.raises(LedgerUnavailable, match="nowhere"):
        async with nowhere.writer():
            pass


async def test_the_memory_ledger_fails_when_told() -> None:
    async with MemoryDesk().writer() as ledger:
        ledger.fail_next_commit()  # type: ignore[attr-defined]
        ledger.fail_next_commit(written=True)  # type: ignore[attr-defined]
        for _ in range(2):
            with pytest.raises(LedgerUnavailable):
                await ledger.commit(unit("a"))
        with pytest.raises(AlreadyClaimed):
            await ledger.commit(unit("a"))
        assert await ledger.last_seq() == 1


_CHILD = """
import asyncio, sys
from pathlib import Path
from tests.contract.conftest import SqlDesk, ROOM
from tests.contract.test_ledger_failures import unit
from trading.adapters.sql import LedgerLocation

async def main():
    kind, where, directory, prefix = sys.argv[1:]
    location = LedgerLocation.sqlite(Path(where)) if kind == "sqlite" else LedgerLocation.postgres(where)
    desk = SqlDesk(location, Path(directory))
    async with desk.writer(checkpoint=desk.checkpointing) as ledger:
        async def write(worker):
            for number in range(100_000):
                committed = await ledger.commit(unit(f"{prefix}-{worker}-{number}"))
                print(committed[0].seq, flush=True)
        await asyncio.gather(*(write(worker) for worker in range(16)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 57, 400])
async def test_a_killed_writer_loses_nothing_that_it_confirmed(sql_desk: SqlDesk, tmp_path, lines: int) -> None:
    sqlite = isinstance(sql_desk, SqliteDesk)
    where = str(sql_desk.location.directory) if sqlite else sql_desk.url  # type: ignore[attr-defined]
    confirmed: list[int] = []
    for life in range(2):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CHILD, "sqlite" if sqlite else "postgres", where, str(tmp_path), f"life{life}",
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
        assert child.stdout is not None
        for _ in range(lines):
            confirmed.append(int(await child.stdout.readline()))
        child.send_signal(signal.SIGKILL)
        rest = await child.stdout.read()
        confirmed += [int(line) for line in rest.split(b"\n")[:-1]]
        assert await child.wait() == -signal.SIGKILL
    async with sql_desk.writer(checkpoint=sql_desk.checkpointing) as ledger:
        assert ledger.generation == 3
        found = await ledger.last_seq()
        assert len(set(confirmed)) == len(confirmed)
        assert found >= max(confirmed)
        assert len(await ledger.rows("approval_fates")) == found
    await assert_verified(sql_desk, found)


async def test_readers_keep_up_while_the_writer_writes(sql_desk: SqlDesk) -> None:
    async with sql_desk.writer() as ledger, sql_desk.reader() as reader:
        writing = asyncio.create_task(_write_many(ledger, 60))
        seen: list[int] = []
        while len(seen) < 60:
            seen += [event.seq for event in await reader.events_after(seen[-1] if seen else 0, limit=7)]
        await writing
        assert seen == list(range(1, 61))


async def _write_many(ledger: Any, count: int) -> None:
    for number in range(count):
        await ledger.commit(unit(f"n{number}"))


def test_a_sqlite_ledger_is_durable_by_its_settings(tmp_path) -> None:
    from trading.adapters.sql.sqlite_store import connect

    with contextlib.closing(connect(tmp_path / "x.sqlite")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
