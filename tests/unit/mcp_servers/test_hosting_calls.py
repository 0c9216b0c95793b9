"""Calls, failures and conventions of a hosted server, in every way a client can reach it."""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from typing import Any

import pytest
from mcp import MCPError
from mcp.types import CallToolResult, TextContent

from mcp_servers.clients import ToolFailure, call, call_reply, open_client
from mcp_servers.envelope import Reply, Row
from mcp_servers.hosting import DeskServer, tool
from tests.hosting_sample import Sample, build
from tests.mcp_harness import QUICK_WAYS, WAYS, Way, check_conventions, reach
from trading.domain.errors import OutcomeUnknown, Unavailable
from trading.testing.clock import ManualClock, SeededIds

COMMAND = [sys.executable, "-m", "tests.hosting_sample"]


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_a_tool_answers_in_its_envelope_and_fails_in_json_in_every_way(way: Way) -> None:
    async with reach(way, build, room="sample", command=COMMAND) as client:
        reply = await call_reply(client, "sample_echo_arguments", amount="1.50", lookback="5d")
        assert reply["ok"] is True
        assert reply["data"] == {"amount": "1.5", "side": "buy", "lookback_ms": 432_000_000, "principal": "local"}
        assert {key: reply["meta"][key] for key in ("mode", "source", "age_ms", "truncated")} == {
            "mode": "paper",
            "source": "sample",
            "age_ms": 0,
            "truncated": False,
        }
        assert len(reply["meta"]["trace_id"]) == 36
        with pytest.raises(ToolFailure) as caught:
            await call(client, "sample_fail_somehow", how="unknown")
        failure = caught.value
        assert (failure.code, failure.retryable) == ("UNKNOWN_INSTRUMENT", "no")
        assert failure.allowed == ("BTC/USDT",)
        assert failure.suggestion == "did you mean BTC/USDT?"
        assert len((await client.list_tools()).tools) == 3
        assert (client.protocol_version == "2025-11-25") == (way.era == "legacy")


@pytest.mark.parametrize("way", QUICK_WAYS, ids=str)
async def test_a_client_that_gives_up_cancels_the_tool(way: Way) -> None:
    sample = Sample()
    async with reach(way, lambda: build(sample), room="sample", read_timeout_s=0.3) as client:
        with pytest.raises(OutcomeUnknown):
            await call(client, "sample_wait_long")
        assert sample.started.is_set()
        async with asyncio.timeout(5):
            await sample.cancelled.wait()


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_every_failure_is_json_with_the_right_advice(era: str) -> None:
    async with open_client(build(), era) as client:
        stale = await _failure(client, "sample_fail_somehow", how="stale")
        assert (stale["code"], stale["retryable"], stale["after_ms"]) == ("STALE_DATA", "after_ms", 1_000)
        maybe = await _failure(client, "sample_fail_somehow", how="maybe")
        assert (maybe["code"], maybe["retryable"]) == ("VENUE_OUTCOME_UNKNOWN", "only_after_reconcile")
        assert "after_ms" not in maybe
        grouped = await _failure(client, "sample_fail_somehow", how="grouped")
        assert grouped["code"] == "STALE_DATA"
        assert set(stale) == {"code", "message", "retryable", "after_ms", "suggestion", "allowed", "trace_id"}


@pytest.mark.parametrize("how", ["crash", "assert"])
async def test_an_unforeseen_failure_keeps_its_details_in_the_log(how: str, caplog: pytest.LogCaptureFixture) -> None:
    async with open_client(build()) as client:
        found = await _failure(client, "sample_fail_somehow", how=how)
    assert found["code"] == "INTERNAL"
    text = json.dumps(found)
    assert "hunter2" not in text
    assert "secret invariant" not in text
    [record] = [entry for entry in caplog.records if entry.exc_info]
    assert found["trace_id"] in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) in ("password=hunter2", "secret invariant")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ({"amount": "1e999999"}, "INVALID_NUMBER", "amount"),
        ({"amount": "NaN"}, "INVALID_NUMBER", "amount"),
        ({"amount": "Infinity"}, "INVALID_NUMBER", "amount"),
        ({"amount": "-1"}, "INVALID_NUMBER", "amount"),
        ({"amount": "0"}, "INVALID_NUMBER", "amount"),
        ({"amount": "1" * 25}, "INVALID_NUMBER", "amount"),
        ({"amount": "٣"}, "INVALID_NUMBER", "amount"),
        ({"amount": 0.5}, "INVALID_NUMBER", "amount"),
        ({"amount": True}, "INVALID_NUMBER", "amount"),
        ({}, "INVALID_ARGUMENTS", "amount"),
        ({"amount": "1", "side": "hold"}, "INVALID_ARGUMENTS", "side"),
        ({"amount": "1", "amonut": "2"}, "INVALID_ARGUMENTS", "amonut"),
        ({"amount": "1", "lookback": "yesterday"}, "INVALID_LOOKBACK", "lookback"),
        ({"amount": "nonsense", "side": "hold"}, "INVALID_ARGUMENTS", "side"),
    ],
)
async def test_bad_arguments_are_named_and_not_repeated(arguments: dict[str, Any], code: str, told: str) -> None:
    async with open_client(build()) as client:
        found = await _failure(client, "sample_echo_arguments", **arguments)
    assert found["code"] == code
    assert told in found["message"]
    assert "hold" not in found["message"]
    assert "nonsense" not in found["message"]
    assert found["suggestion"]


async def test_an_exception_leaves_the_block_of_a_client_as_it_was_raised() -> None:
    for era in ("auto", "legacy"):
        with pytest.raises(ToolFailure) as caught:
            async with open_client(build(), era) as client:
                await call(client, "sample_fail_somehow", how="stale")
        assert caught.value.code == "STALE_DATA"


@pytest.mark.parametrize("target", ["unix:/nowhere.sock", "http://127.0.0.1:9/mcp", ["/nowhere"]], ids=str)
@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_server_that_is_not_there_is_unavailable(target: str | list[str], era: str) -> None:
    with pytest.raises(Unavailable):
        async with open_client(target, era):
            raise AssertionError("connected to nothing")


async def test_near_names_are_offered_for_tools_arguments_and_choices() -> None:
    async with open_client(build()) as client:
        assert (await _failure(client, "sample_echo_argument"))["allowed"][0] == "sample_echo_arguments"
        found = await _failure(client, "sample_echo_arguments", amount="1", amonut="2")
        assert found["allowed"][0] == "amount"
        side = await _failure(client, "sample_echo_arguments", amount="1", side="BUY")
        assert side["allowed"] == ["buy", "sell"]


async def test_a_principal_over_its_rate_is_told_when_to_come_back() -> None:
    clock = ManualClock()
    server = build(requests_per_s=2, burst=6, clock=clock, ids=SeededIds())
    async with open_client(server) as client:
        for _ in range(6):  # finding out about the server takes requests too
            await client.call_tool("sample_echo_arguments", {"amount": "1"})
        limited = await _failure(client, "sample_echo_arguments", amount="1")
        assert (limited["code"], limited["retryable"], limited["after_ms"]) == ("RATE_LIMITED", "after_ms", 500)
        clock.advance(500)
        await call(client, "sample_echo_arguments", amount="1")
        with pytest.raises(MCPError):
            await client.list_prompts()


async def test_the_text_is_the_structured_content_in_compact_json() -> None:
    async with open_client(build()) as client:
        result = await client.call_tool("sample_echo_arguments", {"amount": "1"})
        [block] = result.content
        assert isinstance(block, TextContent)
        assert json.loads(block.text) == result.structured_content
        assert "\n" not in block.text


async def test_the_log_has_one_line_per_call_and_no_argument(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="grekko.mcp")
    async with open_client(build()) as client:
        await call(client, "sample_echo_arguments", amount="1234.5")
        await _failure(client, "sample_echo_arguments", amount="sk-secret")
    lines = [record.getMessage() for record in caplog.records if record.name == "grekko.mcp"]
    assert ["outcome=ok" in line for line in lines] == [True, False]
    assert "outcome=refused" in lines[1]
    assert all("principal='local'" in line and "trace=" in line for line in lines)
    assert not any("1234.5" in line or "sk-secret" in line for line in lines)


async def test_the_sample_keeps_the_conventions_it_is_held_to() -> None:
    async with open_client(build()) as client:
        await check_conventions(client, "sample")


class Data(Row):
    done: bool


@pytest.mark.parametrize("flaw", ["name", "title", "docstring", "scope", "both", "sync", "bare", "twice", "hints"])
def test_a_tool_that_breaks_a_convention_is_not_registered(flaw: str) -> None:
    server = build()
    options: dict[str, Any] = {
        "title": "Do it",
        "read_only": True,
        "destructive": False,
        "idempotent": True,
        "open_world": False,
        "scope": "sample:read",
    }

    async def sample_do_it() -> Reply[Data]:
        """Do it."""
        raise AssertionError

    def sample_do_it_now() -> Reply[Data]:
        """Do it."""
        raise AssertionError

    async def sample_do_bare() -> dict[str, str]:
        """Do it."""
        raise AssertionError

    fn: Any = sample_do_it
    if flaw == "name":
        fn.__name__ = "doIt"
    elif flaw == "title":
        options["title"] = ""
    elif flaw == "docstring":
        fn.__doc__ = None
    elif flaw == "scope":
        options["scope"] = "*"
    elif flaw == "both":
        options["destructive"] = True
    elif flaw == "sync":
        fn = sample_do_it_now
    elif flaw == "bare":
        fn = sample_do_bare
    elif flaw == "twice":
        tool(server, **options)(fn)
    register = tool(server, **options)
    if flaw == "hints":
        register = functools.partial(server.add_tool, title="Do it", meta={"grekko/scope": "sample:read"})
    with pytest.raises(TypeError, match=r"^tool "):
        register(fn)


def test_a_property_called_title_survives_the_pruning_of_schemas() -> None:
    server: DeskServer[Sample] = build()

    class Titled(Row):
        title: str

    async def sample_get_title() -> Reply[Titled]:
        """Get it."""
        raise AssertionError

    sample_get_title.__annotations__["return"] = Reply[Titled]
    tool(
        server,
        title="Get title",
        read_only=True,
        destructive=False,
        idempotent=True,
        open_world=False,
        scope="sample:read",
    )(sample_get_title)
    listed = asyncio.run(server.list_tools())
    schema = next(item.output_schema for item in listed if item.name == "sample_get_title")
    assert schema is not None
    assert schema["$defs"]["Titled"]["properties"] == {"title": {"type": "string"}}
    assert "title" not in schema


async def _failure(client: Any, name: str, **arguments: Any) -> dict[str, Any]:
    result: CallToolResult = await client.call_tool(name, arguments)
    assert result.is_error
    assert result.structured_content is None
    [block] = result.content
    assert isinstance(block, TextContent)
    return json.loads(block.text)
