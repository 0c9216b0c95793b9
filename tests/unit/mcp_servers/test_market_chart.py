"""The chart's tool, its picture and the marks on it, over a market and a ledger that stand still."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import talib
from mcp import Client
from mcp.types import ImageContent, TextContent
from PIL import Image

from mcp_servers.envelope import MAX_CHARS, timestamp
from mcp_servers.hosting import ToolFailure, call, open_client
from mcp_servers.market.chart import picture
from mcp_servers.market.chart.drawing import Drawing, FillMark, Marks, OrderMark, moving_average
from mcp_servers.market.chart.picture import BUY, DOWN, HEIGHT, MAX_BYTES, MAX_CANDLES, SELL, UP, WIDTH, Painter, paint
from mcp_servers.market.tools.chart import VIEW_KEY
from tests.market_chart_support import BTC, MINUTE, START, ChartRoom
from tests.mcp_harness import ROOT, check_conventions
from trading.domain.errors import Unavailable
from trading.domain.market_data import Candle, Feed, Side
from trading.domain.orders import OrderStatus
from trading.ports.ledger import Insert, Unit

NOW = START + 120 * MINUTE + 20_000
ASKED: dict[str, Any] = {"symbol": "BTC/USDT", "timeframe": "1m", "lookback": "2h"}


def drawing(count: int = 60, *, scale: float = 1, **more: Any) -> Drawing:
    dice = random.Random(7)
    candles: list[Candle] = []
    price = 60_000 * scale
    for minute in range(count):
        after = price + dice.gauss(0, 25) * scale
        low, high = min(price, after) - 5 * scale, max(price, after) + 5 * scale
        top, bottom, first, last = (Decimal(f"{value:.8f}") for value in (high, low, price, after))
        volume = Decimal(f"{dice.random():.5f}")
        candles.append(Candle(BTC, MINUTE, START + minute * MINUTE, first, top, bottom, last, volume, 3, closed=True))
        price = after
    return Drawing(
        **{
            "symbol": "BTC/USDT",
            "venue": "binance",
            "timeframe": "1m",
            "interval_ms": MINUTE,
            "candles": candles,
            "since_ms": START,
            "until_ms": START + max(count, 1) * MINUTE,
            "decimals": 2,
            "last": candles[-1].close if candles else None,
            **more,
        }
    )


def marked(plain: Drawing) -> Drawing:
    low, high = min(c.low for c in plain.candles), max(c.high for c in plain.candles)
    some = Decimal("0.05")

    def order(side: Side, price: Decimal, minutes: int | None) -> OrderMark:
        until = None if minutes is None else START + minutes * MINUTE
        return OrderMark(side=side, price=price, quantity=some, status="?", since_ms=START, until_ms=until)

    orders = (order(Side.BUY, low, None), order(Side.SELL, high * 2, None), order(Side.SELL, high, 20))
    fills = (
        FillMark(side=Side.BUY, price=low, quantity=some, at_ms=START + 10 * MINUTE),
        FillMark(side=Side.SELL, price=high, quantity=some, at_ms=START + 30 * MINUTE),
    )
    return replace(plain, marks=Marks(orders=orders, fills=fills))


def count(png: bytes, color: str) -> int:
    """Return how many pixels of a picture have exactly a colour."""
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.size) == ("PNG", (WIDTH, HEIGHT))
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.asarray(image.convert("RGB")) == wanted).all(axis=2).sum())


# ---- the picture


def test_the_picture_shows_candles_of_both_kinds_and_marks_of_both_sides() -> None:
    plain = drawing()
    without, having = paint(plain), paint(marked(plain))
    for png in (without, having):
        assert len(png) < MAX_BYTES
        assert min(count(png, UP), count(png, DOWN)) > 300
    assert (count(without, BUY), count(without, SELL)) == (0, 0)
    assert min(count(having, BUY), count(having, SELL)) > 60


def test_an_average_is_not_drawn_across_a_gap() -> None:
    whole = drawing(60, last=None)

    def columns(*gap: int) -> int:
        """Return over how many columns of pixels an average reaches when some candles are missing."""
        shown = replace(whole, candles=[candle for at, candle in enumerate(whole.candles) if at not in gap])
        line = [float(whole.candles[30].close)] * len(shown.candles)
        with_line, without = (
            np.asarray(Image.open(io.BytesIO(paint(one))).convert("RGB"))[90:350]  # the prices, without the legend
            for one in (replace(shown, ema={9: line}), shown)
        )
        return int((with_line != without).any(axis=(0, 2)).sum())

    full = columns()
    assert full > WIDTH * 0.8
    assert columns(20) == full  # one interval without a trade is no gap
    assert abs(columns(*range(20, 40)) - full * 2 / 3) < full * 0.05


def test_the_picture_of_nothing_has_words_and_no_candle() -> None:
    png = paint(drawing(0))
    assert (count(png, UP), count(png, DOWN)) == (0, 0)
    assert count(png, "#ffffff") < WIDTH * HEIGHT - 1_000


@pytest.mark.parametrize("scale", [1e-8, 1, 1e9])
def test_the_fullest_picture_is_small_enough_at_any_price(scale: float) -> None:
    full = drawing(
        MAX_CANDLES, scale=scale, decimals=8, notes=("a note " * 40,) * 8, badges=("REPLAY", "STALE 3 h", "9 GAPS")
    )
    averages = {period: moving_average([c.close for c in full.candles], period) for period in (9, 20, 50)}
    assert len(paint(marked(replace(full, ema=averages)))) < MAX_BYTES


@pytest.mark.parametrize("text", ["$\\frac{1}{0}$ $", "\u202e\x00\x1b[31m\n", "\U0001f4a5 漢字", "<script>" * 50, ""])
def test_no_text_reaches_the_fonts_as_markup(text: str) -> None:
    hostile = OrderMark(
        side=Side.BUY,
        price=Decimal(60_000),
        quantity=Decimal(1),
        status=text,
        since_ms=START,
        until_ms=None,
        reason=text,
    )
    shown = drawing(
        5, symbol=text, venue=text, timeframe=text, badges=(text,), notes=(text,), marks=Marks(orders=(hostile,))
    )
    assert count(paint(shown), UP) > 0  # a warning, as of a missing glyph, would be an error here


def test_averages_are_those_of_the_reference_library() -> None:
    closes = [candle.close for candle in drawing(200).candles]
    theirs = talib.EMA(np.array([float(close) for close in closes]), timeperiod=20)
    ours = moving_average(closes, 20)
    assert ours[:19] == [None] * 19
    assert ours[19:] == pytest.approx(list(theirs[19:]))
    assert moving_average(closes[:19], 20) == [None] * 19


async def test_a_picture_that_takes_too_long_is_given_up_and_few_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    drawn: list[str] = []

    def slowly(asked: Drawing) -> bytes:
        gate.wait(10)
        drawn.append(asked.symbol)
        return b"png" if asked.symbol == "small" else bytes(MAX_BYTES + 1)

    monkeypatch.setattr(picture, "paint", slowly)
    painter = Painter(budget_s=0.05)
    try:
        waiting = [asyncio.create_task(painter.paint(drawing(1))) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="too many"):
            await painter.paint(drawing(1))
        for task in waiting:
            with pytest.raises(Unavailable, match="too long"):
                await task
    finally:
        gate.set()
    patient = Painter()
    assert await patient.paint(drawing(1, symbol="small")) == b"png"
    with pytest.raises(Unavailable, match="too large"):
        await patient.paint(drawing(1))


def test_the_server_starts_without_the_drawing_library() -> None:
    code = "import sys, mcp_servers.market.tools.chart; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---- the tool


@pytest.fixture(params=["auto", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[ChartRoom]:
    async with ChartRoom(tmp_path, now_ms=NOW) as made:
        made.walk(120)
        made.trade(START + 120 * MINUTE, 60_480)
        made.book()
        yield made


async def chart(
    client: Client, **arguments: Any
) -> tuple[dict[str, Any], dict[str, Any], bytes | None, dict[str, Any]]:
    """Return data, meta, picture and the page's own data."""
    result = await client.call_tool("market_get_chart", {**ASKED, **arguments})
    text = result.content[0]
    assert isinstance(text, TextContent)
    assert not result.is_error, text.text
    assert len(text.text) <= MAX_CHARS
    assert json.loads(text.text) == result.structured_content
    assert result.structured_content is not None
    images = [block for block in result.content if isinstance(block, ImageContent)]
    png = base64.b64decode(images[0].data) if images else None
    return result.structured_content["data"], result.structured_content["meta"], png, (result.meta or {})[VIEW_KEY]


async def test_the_tool_keeps_the_conventions_and_its_share_of_the_budget(room: ChartRoom) -> None:
    async with open_client(room.server()) as client:
        await check_conventions(client, "market")
        (tool,) = (await client.list_tools()).tools
        told = [[tool.name, tool.description, tool.input_schema], tool.output_schema]
        spent = [len(json.dumps(part, separators=(",", ":"))) // 4 for part in told]
        assert spent[0] <= 190
        assert spent[1] <= 320


async def test_one_answer_has_the_picture_the_numbers_and_the_page_s_data(era: str, room: ChartRoom) -> None:
    async with open_client(room.server(), era) as client:
        data, meta, png, view = await chart(client, ema=[5, 20])
    assert png is not None
    assert min(count(png, UP), count(png, DOWN)) > 300
    assert (meta["venue"], meta["source"], meta["as_of"]) == ("binance", "live", timestamp(NOW))
    assert (data["symbol"], data["timeframe"]) == ("BTC/USDT", "1m")
    last = {name: column[-1] for name, column in data["candles"].items()}
    assert last == {"open": "60480", "high": "60480", "low": "60480", "close": "60480", "volume": "0.1"}
    assert data["start"] == timestamp(START + (121 - len(data["at"])) * MINUTE)
    assert data["at"] == list(range(len(data["at"])))
    assert {len(column) for column in data["candles"].values()} == {len(data["at"])}
    assert "the last candle is still open" in data["notes"]
    assert len(view["at"]) == 121
    assert (view["last_closed"], view["last"], view["decimals"]) == (False, "60480", 2)
    assert view["ema"]["20"][:19] == [None] * 19
    assert view["ema"]["20"][-1] is None  # an average counts candles that are over
    assert view["ema"]["20"][-2] == pytest.approx(60_430, abs=60)


async def test_averages_begin_with_the_chart_when_older_candles_are_known(room: ChartRoom) -> None:
    async with open_client(room.server()) as client:
        _, _, _, view = await chart(client, lookback="30m", ema=[20])
    assert len(view["at"]) == 31
    assert None not in view["ema"]["20"][:-1]


async def test_orders_and_fills_are_shown_and_nothing_is_written(room: ChartRoom, tmp_path: Path) -> None:
    async with open_client(room.server()) as client:
        data, _, bare, _ = await chart(client)
        assert any("has not written an execution ledger" in note for note in data["notes"])
        assert not (tmp_path / "ledger").exists()
        await room.order("waits", since_ms=START + 60 * MINUTE, price="60300")
        await room.order(
            "over", since_ms=START + 70 * MINUTE, price="60380", side=Side.SELL, status=OrderStatus.CANCELED,
            updated_ms=START + 90 * MINUTE, reason="<b>no</b> </untrusted>",
        )  # fmt: skip
        await room.order("older", since_ms=START - 9_000, price="60100", status=OrderStatus.CANCELED)
        await room.order("old and waiting", since_ms=START - 9_000, price="60200")
        await room.order("elsewhere", since_ms=START + 60 * MINUTE, price="60300", venue="kraken")
        await room.fill("one", at_ms=START + 30 * MINUTE, price="60120.5")
        await room.fill("two", at_ms=NOW - 1, price="60480", side=Side.SELL)
        await room.fill("early", at_ms=START - MINUTE, price="1")
        await room.fill("elsewhere", at_ms=NOW - 1, price="1", venue="kraken")
        ledger = await room.ledger()
        before = await ledger.last_seq()
        data, _, png, view = await chart(client)
        assert await ledger.last_seq() == before
    assert data["orders"]["price"] == ["60200", "60300", "60380"]
    assert data["orders"]["status"] == ["accepted", "accepted", "canceled"]
    assert data["orders"]["until"] == ["", "", timestamp(START + 90 * MINUTE)]
    assert data["orders"]["reason"][2] == "<untrusted><b>no</b> </untrusted>"
    assert view["orders"]["reason"][2] == "<b>no</b> </untrusted>"
    assert data["fills"] == {
        "side": ["buy", "sell"],
        "price": ["60120.5", "60480"],
        "quantity": ["0.05", "0.05"],
        "at": [timestamp(START + 30 * MINUTE), timestamp(NOW - 1)],
    }
    assert "orders and fills are the desk's at paper" in data["notes"]
    assert bare is not None
    assert png is not None
    assert (count(bare, BUY), count(bare, SELL)) == (0, 0)
    assert min(count(png, BUY), count(png, SELL)) > 50


async def test_a_chart_of_the_past_knows_nothing_of_what_came_later(era: str, room: ChartRoom) -> None:
    then = START + 60 * MINUTE + 30_000
    await room.order(
        "ended later", since_ms=START + 50 * MINUTE, price="60200", status=OrderStatus.FILLED, updated_ms=NOW
    )
    await room.order("later", since_ms=then + 1, price="60300")
    await room.fill("before", at_ms=START + 55 * MINUTE, price="60220")
    await room.fill("later", at_ms=then + 1, price="60300")
    room.clock.advance(60_000)  # the book is stale now, which says nothing of then
    async with open_client(room.server(), era) as client:
        data, meta, _, view = await chart(client, as_of=timestamp(then), lookback="1h")
        assert meta["as_of"] == timestamp(then)
        assert "age_ms" not in meta
        assert (data["orders"]["status"], data["orders"]["until"]) == (["working"], [""])
        assert data["fills"]["price"] == ["60220"]
        assert view["badges"] == ["AS OF"]
        highest = max(Decimal(price) for price in view["candles"]["high"])
        assert highest <= Decimal(60_000 + 4 * 60 + 20)
        assert Decimal(view["last"]) <= highest
        assert Decimal(view["candles"]["low"][-1]) > 60_230  # the half of that minute's trades which had happened
        with pytest.raises(ToolFailure) as refused:
            await chart_data(client, as_of=timestamp(room.clock.now_ms() + 1))
        assert refused.value.code == "LOOK_AHEAD"
        with pytest.raises(ToolFailure) as refused:
            await chart_data(client, as_of="yesterday")
        assert refused.value.code == "INVALID_TIME"


async def chart_data(client: Client, **arguments: Any) -> dict[str, Any]:
    return await call(client, "market_get_chart", **{**ASKED, **arguments})


async def test_an_empty_history_says_so_and_has_a_picture_all_the_same(era: str, tmp_path: Path) -> None:
    async with ChartRoom(tmp_path, now_ms=NOW) as room, open_client(room.server(), era) as client:
        data, meta, png, view = await chart(client, ema=[20])
        assert "no candles in this window" in data["notes"]
        assert any("there is no book" in note for note in data["notes"])
        assert (data["at"], data["candles"]["close"], view["badges"]) == ([], [], ["NO BOOK"])
        assert "source" not in meta
        assert png is not None
        assert (count(png, UP), count(png, DOWN)) == (0, 0)


async def test_a_replay_that_has_given_nothing_yet_has_an_empty_chart(tmp_path: Path) -> None:
    async with ChartRoom(tmp_path, now_ms=NOW, feed=Feed.REPLAY) as room, open_client(room.server()) as client:
        data, meta, png, _ = await chart(client)
        assert "the market has not given anything yet" in data["notes"]
        assert "as_of" not in meta
        assert png is not None


async def test_stale_prices_and_gaps_are_on_the_chart(room: ChartRoom) -> None:
    for minute in (125, 126):
        room.trade(START + minute * MINUTE, 60_500)
    room.clock.advance(6 * MINUTE + 40_000)
    async with open_client(room.server()) as client:
        data, _, _, view = await chart(client)
    assert view["badges"] == ["STALE 6 m", "4 GAPS"]
    assert any("do not price an order from this" in note for note in data["notes"])
    assert any(note.startswith("4 intervals") for note in data["notes"])


async def test_in_a_replay_marks_lie_where_the_recording_was(tmp_path: Path) -> None:
    desk_now = NOW + 500 * 86_400_000  # the desk's clock is far from the recording's
    async with ChartRoom(tmp_path, now_ms=desk_now, feed=Feed.REPLAY) as room:
        room.walk(60)
        await room.fill("before this replay", at_ms=desk_now - 1, price="1")
        room.clock.advance(10 * MINUTE)
        await room.fill("on the way", at_ms=room.clock.now_ms() - 5 * MINUTE, price="60200")
        await room.order("waits", since_ms=room.clock.now_ms() - 2 * MINUTE, price="60100")
        async with open_client(room.server()) as client:
            data, _, _, view = await chart(client)
            assert any("no steady clock" in note for note in data["notes"])  # before the first book
            room.book(at_ms=START + 59 * MINUTE)
            data, _, _, view = await chart(client)
    assert data["fills"]["at"] == [timestamp(START + 54 * MINUTE)]
    assert data["orders"]["since"] == [timestamp(START + 57 * MINUTE)]
    assert view["badges"] == ["REPLAY"]


async def test_a_ledger_that_cannot_be_read_costs_the_marks_only(room: ChartRoom, tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "execution.sqlite").write_bytes(b"no database" * 100)
    async with open_client(room.server()) as client:
        data, _, png, _ = await chart(client)
    assert "no orders or fills shown: the execution ledger does not answer" in data["notes"]
    assert data["at"]
    assert png is not None


async def test_a_damaged_row_is_passed_over_and_counted(room: ChartRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    await room.fill("good", at_ms=NOW - 1, price="60480")
    damaged = [("orders", {"order_json": "{}", "created_ms": 1, "order_id": "x"}), ("fills", {"side": "up"})]
    ledger = room.service.overlay._ledger
    honest = ledger.rows_between

    async def tampered(table: str, *args: Any, **options: Any) -> list[Any]:
        return [*await honest(table, *args, **options), *(row for name, row in damaged if name == table)]

    monkeypatch.setattr(ledger, "rows_between", tampered)
    async with open_client(room.server()) as client:
        data, _, _, _ = await chart(client)
    assert data["fills"]["price"] == ["60480"]
    assert "2 orders or fills of the ledger could not be read" in data["notes"]


async def test_a_busy_desk_s_chart_is_bounded_and_says_so(room: ChartRoom) -> None:
    ledger = await room.ledger()
    await room.fill("first", at_ms=START, price="60480.12345678")
    (row,) = await ledger.rows("fills")
    inserts = [
        Insert("fills", {**row, "trade_id": f"t{number}", "venue_ts_ms": START + number * 1_000})
        for number in range(1, 600)
    ]
    await ledger.commit(Unit(writes=tuple(inserts)))
    long = "0.123456789012345678"
    for minute in range(121):
        room.candles.add(BTC, START + minute * MINUTE + 59_500, Decimal(60_000) + Decimal(long), Decimal(long))
    async with open_client(room.server()) as client:
        data, meta, png, view = await chart(client)
    assert "only the newest 200 orders and fills are shown" in data["notes"]
    assert len(view["fills"]["at"]) == 200
    assert view["fills"]["at"][-1] == timestamp(START + 599_000)
    assert 0 < len(data["fills"]["at"]) < 200
    assert meta["truncated"] is True
    assert 0 < len(data["at"]) < len(view["at"])
    assert png is not None


async def test_without_a_picture_the_numbers_are_answered(room: ChartRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Drawing) -> bytes:
        raise Unavailable("the picture took too long to draw", code="CHART_BUSY")

    monkeypatch.setattr(picture, "paint", broken)
    async with open_client(room.server()) as client:
        data, _, png, _ = await chart(client)
    assert png is None
    assert data["notes"][0] == "no picture: the picture took too long to draw"
    assert data["at"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"symbol": "<script>alert(1)</script>"}, "UNKNOWN_INSTRUMENT"),
        ({"venue": "nowhere"}, "UNKNOWN_VENUE"),
        ({"timeframe": "7m"}, "INVALID_TIMEFRAME"),
        ({"lookback": "99999w"}, "INVALID_LOOKBACK"),
        ({"ema": [1]}, "INVALID_ARGUMENTS"),
        ({"ema": [5, 6, 7, 8]}, "INVALID_ARGUMENTS"),
        ({"overlay": "x"}, "INVALID_ARGUMENTS"),
    ],
)
async def test_wrong_arguments_are_named(room: ChartRoom, arguments: dict[str, Any], code: str) -> None:
    async with open_client(room.server()) as client:
        with pytest.raises(ToolFailure) as refused:
            await chart_data(client, **arguments)
    assert refused.value.code == code
