"""The chart's page in a real browser: a real host's bridge on one side, the real server behind it."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from mcp import Client

from mcp_servers.hosting import open_client
from mcp_servers.market.tools.chart import VIEW_KEY
from tests.browser_support import open_browser, serve_site
from tests.market_chart_support import MINUTE, START, ChartRoom
from tests.mcp_app_host import AppHost, app_of, open_host, wire
from trading.domain.market_data import Side
from trading.domain.orders import OrderStatus

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = START + 60 * MINUTE + 20_000
ASKED: dict[str, Any] = {"symbol": "BTC/USDT", "timeframe": "1m", "lookback": "1h", "ema": [9]}
UP, DOWN, BUY, SELL, NIGHT_UP, NIGHT_DOWN = "#0072b2", "#d55e00", "#00795c", "#a3266e", "#56b4e9", "#f0803c"
SCRIPT = "<script>parent.pwned=pwned=1</script>"
IMAGE = '"><img src=http://127.0.0.1:9/x onerror="pwned=1">'
PIXELS = """(color) => {
  const canvas = document.getElementById("canvas");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const wanted = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  let [count, x, y] = [0, 0, 0];
  for (let i = 0; i < data.length; i += 4) {
    if (wanted.some((value, part) => data[i + part] !== value) || data[i + 3] !== 255) continue;
    count += 1;
    x += (i / 4) % canvas.width;
    y += Math.floor(i / 4 / canvas.width);
  }
  const box = canvas.getBoundingClientRect();
  const scale = box.width / canvas.width / count;
  return { count, x: box.left + x * scale, y: box.top + y * scale };
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AppHost]:
    async with ChartRoom(tmp_path_factory.mktemp("host")) as room, open_client(room.server()) as client:
        tool, page = await app_of(client, "market_get_chart")
    async with open_browser() as browser, open_host(browser, tool, page) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def room(tmp_path: Path) -> AsyncIterator[ChartRoom]:
    async with ChartRoom(tmp_path, now_ms=NOW) as made:
        made.walk(60)
        made.trade(START + 60 * MINUTE, 60_240)
        made.book(60_240)
        yield made


@asynccontextmanager
async def hosted(host: AppHost, room: ChartRoom, **options: Any) -> AsyncGenerator[Client]:
    async with open_client(room.server()) as client, host.serving(client, **options):
        yield client


async def pixels(host: AppHost, color: str, *, least: int = 1) -> dict[str, float]:
    """Wait until so many pixels of the canvas have a colour; return their number and their middle on the page."""
    await host.frame.wait_for_function(f"([color, least]) => ({PIXELS})(color).count >= least", arg=[color, least])
    return await host.frame.evaluate(PIXELS, color)


async def text(host: AppHost, selector: str) -> str:
    return await host.frame.locator(selector).inner_text()


async def told(host: AppHost, selector: str, wanted: str) -> str:
    """Wait until an element's text holds some words; return all of it."""
    where = host.frame.locator(selector, has_text=wanted)
    await where.wait_for()
    return await where.inner_text()


async def hover(host: AppHost, x: float, y: float) -> str:
    await host.page.mouse.move(x, y)
    await host.frame.locator("#tip").wait_for(state="visible")
    return await text(host, "#tip")


async def test_the_page_introduces_itself_and_draws_what_the_server_sent(host: AppHost, room: ChartRoom) -> None:
    async with hosted(host, room):
        await host.show(ASKED)
        await host.until("ready")
        assert (await pixels(host, UP))["count"] > 200
        assert (await pixels(host, DOWN))["count"] > 200
        assert await text(host, "h1") == "BTC/USDT"
        assert "has not written an execution ledger" in await text(host, "#notes")
        label = await host.frame.locator("#chart").get_attribute("aria-label")
        assert label == "BTC/USDT on binance, 61 candles of 1m, 0 orders, 0 fills"
        newest = "2025-06-15 01:00 UTC (open)  O 60240  H 60240  L 60240  C 60240  V 0.1"
        assert await told(host, "#readout", "O ") == newest
        await host.page.wait_for_function("() => window.seen.sizes.some((size) => size.height > 380)")
        seen = await host.seen()
        assert seen["app"]["version"] == {"name": "grekko-market-chart", "version": "1.0.0"}
        assert all(size["width"] <= 760 for size in seen["sizes"])
        assert host.watched.errors == []
        assert [url for url in host.watched.requests if "/npm/" not in url and url.endswith("/chart")] != []
        assert {url.split(":")[1] for url in host.watched.requests} <= {"//127.0.0.1", ","}


async def test_the_pointer_shows_candles_orders_and_fills(host: AppHost, room: ChartRoom) -> None:
    await room.fill("bought", at_ms=START + 20 * MINUTE + 30_000, price="60020")
    await room.order(
        "waits", since_ms=START + 35 * MINUTE, price="60190", side=Side.SELL, status=OrderStatus.PENDING_CANCEL,
        reason="too late",
    )  # fmt: skip
    await room.order("far", since_ms=START + 36 * MINUTE, price="70000", side=Side.SELL)
    async with hosted(host, room):
        await host.show(ASKED)
        await host.until("ready")
        fill = await pixels(host, BUY, least=30)
        assert await hover(host, fill["x"], fill["y"]) == "Bought 0.05 at 60020\n2025-06-15 00:20:30 UTC"
        box = await host.frame.locator("#canvas").bounding_box()
        assert box is not None
        at = await hover(host, box["x"] + 30, box["y"] + 200)
        assert at.splitlines()[0].startswith("2025-06-15 00:0")
        assert [line[:2] for line in at.splitlines()[1:]] == ["O ", "H ", "L ", "C ", "V "]
        assert await told(host, "#readout", "O ") == at.replace("\n", "  ")
        found = ""
        for y in range(
            int(box["y"]) + 10, int(box["y"]) + 250, 3
        ):  # the line of the waiting order is up here somewhere
            if (found := await hover(host, box["x"] + box["width"] * 0.7, y)).startswith("Order"):
                break
        assert found == "Order: sell 0.05 at 60190, pending_cancel\nsince 2025-06-15 00:35:00 UTC\ntoo late"
        assert (await pixels(host, SELL))["count"] > 100
        await host.frame.click("#numbers summary")
        await host.frame.locator("#marks tr").nth(2).wait_for()
        rows = [await row.inner_text() for row in await host.frame.locator("#marks tr").all()]
        assert [row.split("\t")[1:4] for row in rows] == [
            ["sell order", "0.05", "60190"],
            ["sell order", "0.05", "70000"],
            ["bought", "0.05", "60020"],
        ]


async def test_keys_wheel_and_drag_move_through_the_candles(host: AppHost, room: ChartRoom) -> None:
    async with hosted(host, room):
        await host.show(ASKED)
        await host.until("ready")
        await host.frame.click("#numbers summary")
        rows = host.frame.locator("#candles tr")
        await rows.first.wait_for()
        assert await rows.count() == 61
        await host.frame.focus("#chart")
        await host.page.keyboard.press("ArrowLeft")
        await told(host, "#readout", "01:00 UTC (open)")
        await host.page.keyboard.press("ArrowLeft")
        await told(host, "#readout", "2025-06-15 00:59 UTC  O 60236")
        await host.page.keyboard.press("Home")
        await told(host, "#readout", "2025-06-15 00:00 UTC  O 60000")
        await host.page.keyboard.press("0")
        for _ in range(4):
            await host.page.keyboard.press("+")
        assert 5 <= await rows.count() <= 12
        newest = (await rows.first.inner_text()).split("\t")[0]
        assert newest == "2025-06-15 01:00"
        box = await host.frame.locator("#canvas").bounding_box()
        assert box is not None
        middle = (box["x"] + box["width"] / 2, box["y"] + 100)
        await host.page.mouse.move(*middle)
        await host.page.mouse.down()
        await host.page.mouse.move(middle[0] + 300, middle[1], steps=3)
        await host.page.mouse.up()
        dragged = (await rows.first.inner_text()).split("\t")[0]
        assert dragged < newest
        near = await rows.count()
        await host.page.mouse.wheel(0, 400)  # the chart has the focus
        await host.frame.wait_for_function(
            "(near) => document.querySelectorAll('#candles tr').length > near + 3", arg=near
        )
        await host.frame.click("#all")
        assert await rows.count() == 61
        await host.page.keyboard.press("Escape")
        await host.frame.evaluate("() => document.activeElement.blur()")
        await host.page.mouse.move(*middle)
        await host.page.mouse.wheel(0, -400)  # without it, the wheel is the conversation's
        assert await rows.count() == 61


async def test_the_chart_wears_the_colours_of_its_host(host: AppHost, room: ChartRoom) -> None:
    async with hosted(host, room):
        await host.show(ASKED, theme="dark", styles={"variables": {"--color-background-primary": "rgb(1, 2, 3)"}})
        await host.until("ready")
        assert (await pixels(host, NIGHT_UP))["count"] > 200
        assert (await pixels(host, NIGHT_DOWN))["count"] > 200
        back = "() => getComputedStyle(document.body).backgroundColor"
        assert await host.frame.evaluate(back) == "rgb(1, 2, 3)"
        change = (
            "() => bridge.sendHostContextChange({ theme: 'light', availableDisplayModes: ['inline', 'fullscreen'] })"
        )
        await host.page.evaluate(change)
        assert (await pixels(host, UP))["count"] > 200
        await host.frame.click("#full")
        await host.frame.locator("#full", has_text="Close").wait_for()
        assert (await host.seen())["modes"] == ["fullscreen"]
        await host.page.evaluate("() => bridge.teardownResource({})")  # it lets go when it is asked to


async def test_refresh_and_another_timeframe_ask_the_server_through_the_host(host: AppHost, room: ChartRoom) -> None:
    async with hosted(host, room):
        await host.show(ASKED)
        await host.until("ready")
        room.trade(START + 60 * MINUTE + 10_000, 60_333)
        await host.frame.click("#refresh")
        await told(host, "#readout", "C 60333")
        await host.frame.select_option("#timeframe", "5m")
        await told(host, "#where", "5m")
        assert (await host.seen())["calls"] == [
            {"name": "market_get_chart", "arguments": ASKED},
            {"name": "market_get_chart", "arguments": {**ASKED, "timeframe": "5m", "lookback": "600m"}},
        ]
        host.refuse = "the user said <b>no</b>"
        await host.frame.click("#refresh")
        await host.until("failed")
        assert "the user said <b>no</b>" in await text(host, "#readout")
        host.refuse = ""
        await host.frame.click("#refresh")
        await host.until("ready")


async def test_a_host_that_calls_no_tools_has_no_button_for_it(host: AppHost, room: ChartRoom) -> None:
    async with hosted(host, room):
        await host.show(ASKED, capabilities={})
        await host.until("ready")
        assert await host.frame.locator("#refresh").is_hidden()
        assert await host.frame.locator("#timeframe").is_hidden()
        assert await host.frame.locator("#in").is_visible()


async def test_a_refusal_is_told_in_words_and_so_is_a_cancelled_call(host: AppHost, room: ChartRoom) -> None:
    async with open_client(room.server()) as client:
        refused = wire(await client.call_tool("market_get_chart", {**ASKED, "symbol": "BTCUSDT"}))
        async with host.serving(client):
            await host.show(ASKED, refused)
            await host.until("failed")
            assert "did you mean BTC/USDT?" in await text(host, "#readout")
            await host.show(ASKED, {"content": [{"type": "text", "text": "a host's own words"}], "isError": True})
            await host.until("failed")
            assert await text(host, "#readout") == "No chart: a host's own words"
            await host.show(ASKED, {"content": []})
            await host.until("failed")
            assert await text(host, "#readout") == "No chart: the result holds none."
            for nothing in ("text", 7, [], {}, {"at": {"length": 3}, "candles": 5, "orders": "x", "ema": "ab"}):
                await host.show(ASKED, {"content": [], "structuredContent": {"data": nothing}})
                await host.frame.wait_for_selector("html:not([data-state=waiting])", state="attached")
                assert await text(host, "#readout") in (
                    "No chart: the result holds none.",
                    "No chart: the result cannot be read.",
                    "No candles in this window.",
                )


async def test_without_the_page_s_own_data_the_numbers_are_drawn(host: AppHost, room: ChartRoom) -> None:
    await room.fill("bought", at_ms=START + 20 * MINUTE, price="60100")
    async with open_client(room.server(), "legacy") as client:
        result = wire(await client.call_tool("market_get_chart", ASKED))
        assert VIEW_KEY in result.pop("_meta")
        async with host.serving(client):
            await host.show(ASKED, result)
            await host.until("ready")
            assert (await pixels(host, UP))["count"] > 200
            assert (await pixels(host, BUY, least=30))["count"] > 30
            assert "2025-06-15 01:00" in await text(host, "#readout")


def hostile(sent: dict[str, Any]) -> dict[str, Any]:
    """Return a result all of whose texts are scripts and some of whose numbers are none."""
    made = copy.deepcopy(sent)
    for chart in (made["_meta"][VIEW_KEY], made["structuredContent"]["data"]):
        chart.update(symbol=SCRIPT, notes=[IMAGE, SCRIPT], timeframe=IMAGE, venue=SCRIPT, badges=[SCRIPT, IMAGE])
        chart["orders"] = {
            "side": ["sell", SCRIPT], "price": ["60100", "60110"], "quantity": [IMAGE, SCRIPT],
            "status": [SCRIPT, IMAGE], "since": [chart["start"], IMAGE], "until": ["", SCRIPT],
            "reason": [IMAGE, SCRIPT],
        }  # fmt: skip
        chart["fills"] = {"side": [SCRIPT], "price": ["60150"], "quantity": [IMAGE], "at": [SCRIPT]}
        chart["ema"] = {SCRIPT: [IMAGE, 60_100, None], "__proto__": 7}
        chart["candles"]["volume"][0] = IMAGE
        chart["candles"]["open"][1] = "1e999"
        chart["candles"]["high"][2] = {"toString": SCRIPT}
        chart["at"][3] = SCRIPT
    return made


async def test_hostile_text_is_shown_and_never_run(host: AppHost, room: ChartRoom) -> None:
    await room.order("real", since_ms=START, price="60100", reason=IMAGE)
    async with open_client(room.server()) as client:
        result = wire(await client.call_tool("market_get_chart", ASKED))
        assert IMAGE in json.dumps(result).replace('\\"', '"').replace('\\\\"', '"')
        async with host.serving(client):
            await host.show(ASKED, hostile(result))
            await host.until("ready")
            before = len(host.watched.requests)
            await host.frame.click("#numbers summary")
            assert await text(host, "h1") == SCRIPT
            assert await text(host, "#notes") == f"{IMAGE}\n{SCRIPT}"
            await host.frame.locator("#marks tr").first.wait_for()
            assert IMAGE in await text(host, "#marks")
            box = await host.frame.locator("#canvas").bounding_box()
            assert box is not None
            for x in range(5, int(box["width"]), 40):
                await host.page.mouse.move(box["x"] + x, box["y"] + 120)
            assert await host.frame.locator("img, main script").count() == 0
            await host.frame.click("#refresh")  # the arguments are the host's, not the hostile result's
            await told(host, "h1", "BTC/USDT")
            assert (await host.seen())["calls"] == [{"name": "market_get_chart", "arguments": ASKED}]
            for frame in host.page.frames:
                assert await frame.evaluate("() => typeof pwned") == "undefined"
            assert host.watched.requests[before:] == []
            assert host.watched.errors == []


async def test_what_gets_into_the_page_still_cannot_run_or_reach_out(host: AppHost, room: ChartRoom) -> None:
    hits: list[str] = []

    async def hit(request: web.Request) -> web.Response:
        hits.append(request.path)
        return web.Response()

    async with serve_site([web.get("/{path}", hit)]) as trap, hosted(host, room):
        await host.show(ASKED)
        await host.until("ready")
        broken = await host.frame.evaluate(
            """async (trap) => {
              const broken = [];
              document.addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
              const script = document.createElement("script");
              script.textContent = "window.pwned = 1";
              const button = document.createElement("button");
              document.body.append(script, button);
              button.setAttribute("onclick", "window.pwned = 2");
              button.click();
              const image = new Image();
              image.src = `${trap}/image`;
              await fetch(`${trap}/fetch`).catch(() => null);
              const turn = () => new Promise((resolve) => setTimeout(resolve, 5));
              for (let i = 0; i < 400 && new Set(broken).size < 4; i++) await turn();
              return [typeof window.pwned, ...new Set(broken)].sort();
            }""",
            trap,
        )
        assert broken == ["connect-src", "img-src", "script-src-attr", "script-src-elem", "undefined"]
        assert hits == []
        await host.page.evaluate("(trap) => fetch(`${trap}/host`, { mode: 'no-cors' })", trap)
        assert hits == ["/host"]  # the trap works


async def test_only_the_host_is_listened_to(host: AppHost, room: ChartRoom) -> None:
    async with hosted(host, room):
        await host.show(ASKED)
        await host.until("ready")
        await host.frame.evaluate(
            """() => {
              window.states = [];
              const note = () => states.push(document.documentElement.dataset.state);
              new MutationObserver(note).observe(document.documentElement, { attributeFilter: ["data-state"] });
            }"""
        )
        message = {"method": "ui/notifications/tool-result", "params": {"content": [], "isError": True}}
        await host.page.evaluate(
            """(message) => {
              const other = document.createElement("iframe");
              document.body.append(other);
              const script = other.contentDocument.createElement("script");
              script.textContent = `parent.frames.app.postMessage(${JSON.stringify(message)}, "*")`;
              other.contentDocument.body.append(script);
            }""",
            {"jsonrpc": "2.0", **message},
        )
        await host.frame.click("#refresh")  # messages are taken in order: the stranger's came before this answer
        await host.frame.wait_for_function("() => states.length > 0")
        assert await host.frame.evaluate("() => states") == ["ready"]
        await host.page.evaluate("(params) => bridge.sendToolResult(params)", message["params"])
        await host.until("failed")  # the same words from the host are believed


async def test_an_average_is_not_drawn_across_a_gap_and_narrow_charts_have_times(host: AppHost, tmp_path: Path) -> None:
    async with ChartRoom(tmp_path, now_ms=NOW) as room, hosted(host, room, width=340):
        room.walk(20)
        room.walk(25, start=35)
        room.book(60240)
        await host.show({**ASKED, "ema": [2]})
        await host.until("ready")
        await pixels(host, UP)
        await host.frame.evaluate(
            """() => {
              const pen = CanvasRenderingContext2D.prototype, { moveTo, lineTo, fillText } = pen;
              const seen = window.drawn = { steps: [], texts: [] };
              let last = null;
              pen.moveTo = function (x, y) { last = x; moveTo.call(this, x, y); };
              pen.lineTo = function (x, y) {
                if (this.lineWidth === 1.5 && this.strokeStyle === "#3d3d3d") seen.steps.push(x - last);
                last = x;
                lineTo.call(this, x, y);
              };
              pen.fillText = function (text, ...where) { seen.texts.push(text); fillText.call(this, text, ...where); };
            }"""
        )
        await host.frame.press("#chart", "0")
        await host.frame.wait_for_function("() => drawn.steps.length > 30")
        drawn = await host.frame.evaluate("() => drawn")
        assert max(drawn["steps"]) < 10  # pixels; the gap is fifteen candles of four
        assert "00:30" in drawn["texts"]


async def test_a_narrow_chat_and_an_empty_history_have_a_page_too(host: AppHost, tmp_path: Path) -> None:
    async with ChartRoom(tmp_path, now_ms=NOW) as room, hosted(host, room, width=340):
        await host.show(ASKED)
        await host.until("ready")
        assert await text(host, "#readout") == "No candles in this window."
        assert await text(host, "#badges") == "NO BOOK"
        assert await host.frame.evaluate("() => document.documentElement.scrollWidth") <= 340
        for key in ("ArrowLeft", "End", "+", "-", "0"):
            await host.frame.press("#chart", key)
        room.walk(60)
        await host.frame.click("#refresh")
        assert (await pixels(host, UP))["count"] > 100
        assert host.watched.errors == []
