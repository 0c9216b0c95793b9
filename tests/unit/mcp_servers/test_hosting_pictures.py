"""Tools that answer with more than text, and pages that show their results, in both protocol eras."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID, Apps, ResourceCsp
from mcp.types import CallToolResult, ImageContent, TextContent, TextResourceContents
from pydantic import ConfigDict

from mcp_servers.calls import Principal
from mcp_servers.envelope import DecimalText, Meta, Reply, Row, ok
from mcp_servers.hosting import DeskServer, ToolFailure, build_server, call, call_reply, illustrated, open_client, tool
from tests.mcp_harness import QUICK_WAYS, Way, check_conventions, reach
from trading.domain.errors import StaleData
from trading.domain.proposals import Mode

PAGE = "ui://grekko/sample/page.html"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(12_000)  # 16,000 characters on the wire: more than a text may have
HINTS: dict[str, Any] = {"read_only": True, "destructive": False, "idempotent": True, "open_world": False}


class Point(Row):
    price: DecimalText


class Loose(Row):
    model_config = ConfigDict(extra="allow")


def apps() -> Apps:
    found = Apps()
    found.add_html_resource(PAGE, "<!doctype html><title>Page</title>", csp=ResourceCsp(connect_domains=[]))
    return found


def build(**options: Any) -> DeskServer[None]:
    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[None]:
        yield None

    options.setdefault("extensions", [apps()])
    server = build_server(
        "grekko-sample", title="Sample", instructions="x", lifespan=lifespan, mode=Mode.PAPER, **options
    )

    @tool(server, title="Draw a point", scope="sample:read", app=PAGE, **HINTS)
    async def sample_draw_point(price: DecimalText) -> Annotated[CallToolResult, Reply[Point]]:
        """Draw a price."""
        if price < 0:
            raise StaleData("no such price")
        picture = ImageContent(type="image", data=base64.b64encode(PNG).decode(), mime_type="image/png")
        stray = TextContent(type="text", text="a second text")
        return illustrated(ok(Point(price=price), Meta(age_ms=3)), picture, stray, view={"grekko/point": [1, 2]})

    @tool(server, title="Draw wrongly", scope="sample:read", **HINTS)
    async def sample_draw_wrongly() -> Annotated[CallToolResult, Reply[Point]]:
        """Answer with data of another form than promised."""
        return illustrated(ok(Loose.model_validate({"price": 1.5})))

    return server


@pytest.mark.parametrize("way", QUICK_WAYS, ids=str)
async def test_a_picture_travels_beside_the_envelope_and_its_compact_text(way: Way) -> None:
    async with reach(way, build, room="sample") as client:
        result = await client.call_tool("sample_draw_point", {"price": "1.50"})
        text, picture = result.content
        assert isinstance(text, TextContent)
        assert json.loads(text.text) == result.structured_content
        assert len(text.text) < 200
        assert isinstance(picture, ImageContent)
        assert (picture.mime_type, base64.b64decode(picture.data)) == ("image/png", PNG)
        assert result.meta is not None
        assert result.meta["grekko/point"] == [1, 2]
        reply = await call_reply(client, "sample_draw_point", price="1.50")
        assert reply["data"] == {"price": "1.5"}
        assert (reply["meta"]["mode"], reply["meta"]["age_ms"]) == ("paper", 3)
        assert len(reply["meta"]["trace_id"]) == 36


@pytest.mark.parametrize("way", QUICK_WAYS, ids=str)
async def test_the_tool_names_its_page_and_the_page_is_served_with_its_policy(way: Way) -> None:
    async with reach(way, build, room="sample") as client:
        listed = {item.name: item for item in (await client.list_tools()).tools}
        assert (listed["sample_draw_point"].meta or {})["ui"] == {"resourceUri": PAGE}
        assert "ui" not in (listed["sample_draw_wrongly"].meta or {})
        page = (await client.read_resource(PAGE)).contents[0]
        assert isinstance(page, TextResourceContents)
        assert (page.mime_type, page.meta) == (APP_MIME_TYPE, {"ui": {"csp": {"connectDomains": []}}})
        await check_conventions(client, "sample")


async def test_the_newest_protocol_says_that_pages_are_served() -> None:
    async with open_client(build()) as client:
        assert EXTENSION_ID in (client.server_capabilities.extensions or {})


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_arguments_errors_and_the_promised_form_hold_for_pictures_too(era: str) -> None:
    async with open_client(build(), era) as client:
        for arguments, code in (
            ({"price": 1.5}, "INVALID_NUMBER"),
            ({"price": "1", "prise": "1"}, "INVALID_ARGUMENTS"),
            ({"price": "-1"}, "STALE_DATA"),
        ):
            with pytest.raises(ToolFailure) as refused:
                await call(client, "sample_draw_point", **arguments)
            assert refused.value.code == code
        with pytest.raises(ToolFailure):
            await call(client, "sample_draw_wrongly")


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_page_needs_the_scope_that_its_tool_needs(era: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = Principal(name="oauth:stranger", scopes=frozenset({"other:read"}), local=False)
    monkeypatch.setattr("mcp_servers.desk_server.principal_now", lambda: stranger)
    async with open_client(build(), era) as client:
        assert (await client.list_tools()).tools == []
        with pytest.raises(Exception, match="sample:read"):
            await client.read_resource(PAGE)
        with pytest.raises(ToolFailure):
            await call(client, "sample_draw_point", price="1")


def test_a_tool_cannot_name_a_page_that_is_not_served() -> None:
    with pytest.raises(TypeError, match=re.escape(PAGE)):
        build(extensions=[])


async def test_a_picture_without_an_envelope_is_not_registered() -> None:
    server = build()

    async def sample_draw_freely() -> CallToolResult:
        """Answer with anything."""
        return CallToolResult(content=[])

    async def sample_draw_loosely() -> Annotated[CallToolResult, Point]:
        """Answer without the envelope."""
        return CallToolResult(content=[])

    for fn in (sample_draw_freely, sample_draw_loosely):
        with pytest.raises(TypeError, match="Reply"):
            tool(server, title="Draw", scope="sample:read", **HINTS)(fn)
