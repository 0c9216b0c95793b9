"""The paper venue's memory: cut anywhere, it tells a state that was true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paper_support import BUY, IOC, SELL, D, terms
from trading.adapters.venues.paper.journal import Journal, read_journal
from trading.adapters.venues.paper.venue import PaperVenue
from trading.domain.approvals import ApprovedOrder
from trading.domain.errors import ConfigurationError, NonRetryable
from trading.domain.identifiers import ClientOrderId, TradeId
from trading.domain.market_data import Feed, TradePrint
from trading.domain.money import total
from trading.ports.venue import VenueOrderState as State
from trading.ports.venue import VenueReport
from trading.testing.builders import INSTRUMENT_ID, build_book
from trading.testing.clock import ManualClock
from trading.testing.venue import build_paper_venue


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "paper.journal"


ORDERS: list[ApprovedOrder] = [
    terms("taken", BUY, "0.3", "60001"),
    terms("rests", BUY, "0.5", "60000"),
    terms("refused", BUY, "1", "60001", post_only=True),
    terms("stop", SELL, "0.4", "58900", stop="59000"),
    terms("ioc", BUY, "0.8", "60001", tif=IOC),
    terms("rests-too", SELL, "0.1", "60500"),
]


async def trade_a_little(path: Path) -> list[dict[ClientOrderId, VenueReport]]:
    """Run a small history; return what the venue knew after each line of its journal."""
    venue = build_paper_venue(ManualClock(), journal=path)
    known: list[dict[ClientOrderId, VenueReport]] = []

    def look() -> None:
        while len(known) < len(path.read_bytes().splitlines()):
            known.append({key: order.report() for key, order in venue.exchange.orders.items()})

    look()
    venue.on_book(build_book())
    for order in ORDERS:
        try:
            await venue.send(await venue.prepare(order, deadline_ms=10**14))
        except NonRetryable:
            pass
        look()
    for n, price in enumerate(("59999.5", "59500", "58950")):
        now = 1_750_000_000_001 + n
        venue.on_trade(TradePrint(INSTRUMENT_ID, TradeId("m"), D(price), D("0.2"), SELL, n, now, now, now, Feed.REPLAY))
        look()
    await venue.cancel(ClientOrderId("rests-too"))
    look()
    await venue.aclose()
    return known


def reopen(path: Path) -> PaperVenue:
    return build_paper_venue(ManualClock(1_760_000_000_000), journal=path)


async def test_a_crash_after_any_line_leaves_a_venue_that_knows_exactly_that_much(path: Path, tmp_path: Path) -> None:
    known = await trade_a_little(path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(known) >= 10
    for count in range(1, len(lines) + 1):
        cut = tmp_path / f"cut-{count}"
        cut.write_bytes(b"".join(lines[:count]))
        venue = reopen(cut)
        reports = {key: order.report() for key, order in venue.exchange.orders.items()}
        assert reports == known[count - 1]
        assert venue.exchange.accounts.imbalance() == {}
        assert venue.torn_bytes == 0
        held = total([order.locked for order in venue.exchange.working.values()])
        assert total(list(venue.exchange.accounts.locked.values())) == held
        await venue.aclose()


async def test_a_crash_in_the_middle_of_a_line_loses_that_line_only_and_says_so(path: Path, tmp_path: Path) -> None:
    known = await trade_a_little(path)
    data = path.read_bytes()
    start = data.rindex(b"\n", 0, -1) + 1
    for end in range(start + 1, len(data)):
        cut = tmp_path / "cut"
        cut.write_bytes(data[:end])
        assert read_journal(cut).torn_bytes == end - start
        if end % 25 == 0 or end == len(data) - 1:
            venue = reopen(cut)
            assert venue.torn_bytes == end - start
            assert {key: order.report() for key, order in venue.exchange.orders.items()} == known[-2]
            await venue.aclose()
            assert read_journal(cut).torn_bytes == 0  # the next line starts clean
            assert reopened_lines(cut) == len(known)
        cut.unlink()


def reopened_lines(path: Path) -> int:
    return read_journal(path).lines


async def test_the_journal_tells_orders_and_trades_by_client_order_id(path: Path) -> None:
    await trade_a_little(path)
    content = read_journal(path)
    assert list(content.orders) == [order.client_order_id for order in ORDERS]
    assert content.duplicates == []
    states = {key: order.state for key, order in content.orders.items()}
    assert states == {
        "taken": State.FILLED,
        "rests": State.FILLED,
        "refused": State.REJECTED,
        "stop": State.FILLED,
        "ioc": State.CANCELED,
        "rests-too": State.CANCELED,
    }
    assert content.orders[ClientOrderId("taken")].entry.terms == ORDERS[0]
    assert total([trade.quantity for trade in content.orders[ClientOrderId("rests")].trades]) == D("0.5")
    assert sum(len(order.trades) for order in content.orders.values()) == len(content.trades)


async def test_the_same_inputs_write_the_same_bytes(path: Path, tmp_path: Path) -> None:
    await trade_a_little(path)
    await trade_a_little(tmp_path / "other")
    assert path.read_bytes() == (tmp_path / "other").read_bytes()


async def test_a_damaged_line_that_is_not_the_last_refuses_to_start(path: Path) -> None:
    await trade_a_little(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for broken in (
        [*lines[:3], b"{not json}\n", *lines[4:]],
        [*lines[:3], *lines[4:]],
        [*lines[:4], lines[3], *lines[4:]],
    ):
        path.write_bytes(b"".join(broken))
        with pytest.raises(ConfigurationError) as refused:
            reopen(path)
        assert refused.value.code == "JOURNAL_DAMAGED"


async def test_only_one_venue_has_a_journal_at_a_time_and_its_mode_is_private(path: Path) -> None:
    venue = reopen(path)
    with pytest.raises(ConfigurationError) as refused:
        reopen(path)
    assert refused.value.code == "JOURNAL_LOCKED"
    assert path.stat().st_mode & 0o777 == 0o600
    await venue.aclose()
    await reopen(path).aclose()


async def test_a_batch_is_one_write_and_an_fsync_follows_it_when_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    write, datasync = os.write, os.fdatasync
    monkeypatch.setattr(os, "write", lambda file, data: calls.append("write") or write(file, data))
    monkeypatch.setattr(os, "fdatasync", lambda file: calls.append("sync") or datasync(file))
    venue = build_paper_venue(ManualClock(), journal=path, fsync=True)
    venue.on_book(build_book())
    calls.clear()
    prepared = [await venue.prepare(terms(f"c{n}", BUY, "0.001", "60001"), deadline_ms=10**14) for n in range(20)]
    answers = [venue.send(each) for each in prepared]
    for answer in answers:
        await answer
    assert calls == ["write", "sync"]
    await venue.aclose()


async def test_taking_a_journal_over_reaches_the_disk_before_any_id_of_that_generation_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(path.stat().st_size) or sync(file))
    venue = reopen(path)
    assert synced == [path.stat().st_size]
    await venue.aclose()


async def test_numbers_and_ids_go_on_after_a_restart(path: Path) -> None:
    await trade_a_little(path)
    venue = reopen(path)
    venue.on_book(build_book())
    await venue.send(await venue.prepare(terms("after", BUY, "0.0001", "60001"), deadline_ms=10**14))
    await venue.aclose()
    content = read_journal(path)
    orders = list(content.orders.values())
    assert [order.entry.arrival for order in orders] == list(range(1, len(ORDERS) + 2))
    assert len({order.entry.venue_order_id for order in orders}) == len(orders)
    assert len({trade.trade_id for trade in content.trades}) == len(content.trades)
    assert content.generation == 2


async def test_prints_from_before_the_first_book_after_a_restart_pass_restored_orders_by(path: Path) -> None:
    venue = build_paper_venue(ManualClock(), journal=path)
    venue.on_book(build_book())
    for order in (terms("rests", BUY, "0.5", "60000"), terms("stop", SELL, "0.4", stop="59000")):
        await venue.send(await venue.prepare(order, deadline_ms=10**14))
    await venue.aclose()
    venue = reopen(path)
    orders, seen = venue.exchange.orders, 1_750_000_100_000

    def show(venue_ts_ms: int) -> None:
        args = (TradeId("m"), D("58000"), D("2"), SELL, 1, venue_ts_ms, seen, seen, Feed.REPLAY)
        venue.on_trade(TradePrint(INSTRUMENT_ID, *args))

    show(seen - 1)
    venue.on_book(build_book(now_ms=seen))
    show(seen - 1)
    assert [order.state for order in orders.values()] == [State.OPEN, State.OPEN]
    show(seen + 1)
    assert [order.state for order in orders.values()] == [State.FILLED, State.FILLED]
    await venue.aclose()


async def test_ids_that_a_power_cut_erased_are_not_given_again(path: Path) -> None:
    await trade_a_little(path)
    told = {trade.trade_id for trade in read_journal(path).trades}
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))  # the machine died before the rest reached its disk
    venue = reopen(path)
    venue.on_book(build_book())
    report = await venue.send(await venue.prepare(terms("after", BUY, "0.0001", "60001"), deadline_ms=10**14))
    assert report.trades[0].trade_id not in told
    await venue.aclose()


def test_an_absent_journal_reads_as_empty(path: Path) -> None:
    content = read_journal(path)
    assert (content.lines, content.orders, content.torn_bytes) == (0, {}, 0)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.paper_support import BUY, terms
from trading.testing.builders import build_book
from trading.testing.clock import ManualClock
from trading.testing.venue import build_paper_venue

async def main():
    venue = build_paper_venue(ManualClock(), journal=Path(sys.argv[1]))
    venue.on_book(build_book())
    for n in range(40):
        prepared = await venue.prepare(terms(f"c{n}", BUY, "0.001", "60001"), deadline_ms=10**14)
        report = await venue.send(prepared)
        print(report.client_order_id, report.trades[0].trade_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_killed_process_forgets_nothing_that_it_answered(path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], cwd=root, capture_output=True, text=True, check=False
    )
    answered = [line.split() for line in done.stdout.splitlines()]
    assert (done.returncode, len(answered)) == (-9, 40)
    content = read_journal(path)
    for client_order_id, trade_id in answered:
        assert [trade.trade_id for trade in content.orders[ClientOrderId(client_order_id)].trades] == [trade_id]
    Journal(path).close()  # the lock died with the process
