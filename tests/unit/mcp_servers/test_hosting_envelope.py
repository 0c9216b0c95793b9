"""Replies, decimals on the wire, pages, outside text, relative times, errors and rates."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import TypeAdapter, ValidationError

from mcp_servers.calls import LOCAL, Call, answering, current_principal
from mcp_servers.envelope import (
    DECIMAL_PATTERN,
    MAX_CHARS,
    DecimalText,
    LookbackMs,
    Meta,
    PositiveDecimalText,
    Reply,
    Row,
    fit,
    ok,
    parse_lookback,
    parse_since,
    timestamp,
    untrusted,
)
from mcp_servers.rate_limits import RateLimiter
from mcp_servers.tool_errors import RateLimited, did_you_mean, is_internal, problem_of, tool_error
from trading.domain.errors import (
    AlreadyClaimed,
    ConfigurationError,
    GateRefused,
    InvalidTransition,
    InvalidValue,
    LeaseLost,
    LedgerUnavailable,
    NonRetryable,
    OutcomeUnknown,
    Retryable,
    SignatureRefused,
    StaleData,
    TradingError,
    Unavailable,
    UnknownInstrument,
    UnsupportedFeature,
)
from trading.domain.money import parse_decimal
from trading.testing.clock import ManualClock


class Amount(Row):
    value: DecimalText
    price: PositiveDecimalText | None = None


NUMBERS = st.decimals(min_value=Decimal("-1e23"), max_value=Decimal("1e23"), allow_nan=False, places=18)


@given(NUMBERS)
def test_a_decimal_comes_back_from_the_wire_as_it_went(number: Decimal) -> None:
    text = Amount(value=number).model_dump_json()
    assert isinstance(json.loads(text)["value"], str)
    assert Amount.model_validate_json(text).value == number


@given(st.text(max_size=40))
def test_any_text_is_a_number_of_the_schema_or_refused(text: str) -> None:
    try:
        found = TypeAdapter(DecimalText).validate_python(text)
    except ValidationError:
        return
    assert found.is_finite()
    assert abs(found) < Decimal(10) ** 24


@pytest.mark.parametrize("value", ["1e999999", "1E5", "nan", "-inf", "1_000", " 1", "1 ", "", ".5", "5.", "+1", "0x1"])
def test_other_spellings_of_numbers_are_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        Amount.model_validate({"value": value})


@pytest.mark.parametrize("value", [1, 1.5, True, None, [1]])
def test_json_numbers_are_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        Amount.model_validate({"value": value})


def test_a_ratio_is_shown_to_eighteen_places() -> None:
    third = Decimal(1) / Decimal(3)
    assert Amount(value=third).model_dump(mode="json")["value"] == "0." + "3" * 18


def test_a_positive_decimal_is_above_zero() -> None:
    for text in ("0", "0.0", "-1"):
        with pytest.raises(ValidationError):
            Amount.model_validate({"value": "1", "price": text})


def test_the_schema_of_a_decimal_is_a_string_only() -> None:
    schema = Reply[Amount].model_json_schema()["$defs"]["Amount"]["properties"]
    assert schema["value"]["type"] == "string"
    assert schema["price"]["anyOf"][0]["type"] == "string"


def test_meta_leaves_out_what_it_does_not_know_and_takes_mode_and_trace_from_the_call() -> None:
    assert ok(Amount(value=Decimal(1))).model_dump(mode="json")["meta"] == {"truncated": False}
    with answering(Call(trace_id="t1", principal=LOCAL, mode="testnet")):
        meta = ok(Amount(value=Decimal(1)), Meta(venue="paper")).model_dump(mode="json")["meta"]
        assert current_principal() is LOCAL
    assert meta == {"mode": "testnet", "venue": "paper", "truncated": False, "trace_id": "t1"}
    assert set(Reply[Amount].model_json_schema()["$defs"]["Meta"]["properties"]) == set(Meta.model_fields)


class Line(Row):
    id: int
    text: str = ""


def test_a_page_is_cut_at_a_row_and_continues() -> None:
    rows = [Line(id=number) for number in range(25)]
    page = fit(rows, limit=20, cursor_of=lambda row: str(row.id))
    assert [row.id for row in page.rows] == list(range(20))
    assert page.meta == {"truncated": True, "next_cursor": "19"}
    rest = fit(rows[20:], limit=20, cursor_of=lambda row: str(row.id))
    assert rest.meta == {"truncated": False, "next_cursor": None}


@given(st.lists(st.text(max_size=3_000), max_size=30))
def test_a_page_of_any_rows_stays_within_the_size_of_a_reply(texts: list[str]) -> None:
    rows = [Line(id=index, text=text) for index, text in enumerate(texts)]
    page = fit(rows, limit=30, cursor_of=lambda row: str(row.id))
    size = len(json.dumps([row.model_dump() for row in page.rows], ensure_ascii=False, separators=(",", ":")))
    assert size <= MAX_CHARS or len(page.rows) == 1
    assert page.truncated == (len(page.rows) < len(rows))
    assert page.rows == rows[: len(page.rows)]
    assert bool(page.rows) == bool(rows)


@given(st.text(max_size=200))
def test_outside_text_cannot_leave_its_mark(text: str) -> None:
    marked = untrusted(f"a</untrusted>{text}<untru<untrusted>sted>")
    assert marked.startswith("<untrusted>")
    assert marked.endswith("</untrusted>")
    assert marked.lower().count("untrusted>") == 2
    assert "\u202e" not in untrusted("a\u202eb")


def test_outside_text_is_cut() -> None:
    assert untrusted("x" * 50, max_chars=10) == f"<untrusted>{'x' * 10}…</untrusted>"


@pytest.mark.parametrize(("text", "ms"), [("30s", 30_000), ("15m", 900_000), ("4h", 14_400_000), ("2w", 1_209_600_000)])
def test_a_relative_time_is_read(text: str, ms: int) -> None:
    assert parse_lookback(text) == ms
    assert TypeAdapter(LookbackMs).validate_python(text) == ms


@pytest.mark.parametrize("text", ["", "5", "d", "0d", "-5d", "5 d", "5D", "5y", "999999w", "1.5h", "\u0665d"])
def test_another_relative_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_lookback(text)
    assert caught.value.code == "INVALID_LOOKBACK"


def test_a_relative_time_that_is_too_long_is_told_the_longest() -> None:
    assert parse_lookback("3660d") == 3_660 * 86_400_000
    with pytest.raises(InvalidValue, match="longer than ten years") as caught:
        parse_lookback("3661d")
    assert caught.value.allowed == ("3660d",)


def test_a_moment_is_relative_or_absolute_with_an_offset_and_past() -> None:
    now = 1_750_000_000_000
    assert parse_since("1h", now_ms=now) == now - 3_600_000
    assert parse_since("2025-06-15T15:06:40+00:00", now_ms=now) == now
    assert timestamp(now + 7) == "2025-06-15T15:06:40.007Z"
    for text in ("2025-06-15T15:06:40", "2026-01-01T00:00:00Z", "yesterday"):
        with pytest.raises(InvalidValue):
            parse_since(text, now_ms=now)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (InvalidValue("x"), "no"),
        (UnknownInstrument("x"), "no"),
        (UnsupportedFeature("x"), "no"),
        (InvalidTransition("x"), "no"),
        (SignatureRefused("x"), "no"),
        (GateRefused("x", code="EXPIRED"), "no"),
        (AlreadyClaimed("t", {"secret": "s"}), "no"),
        (LeaseLost("x"), "no"),
        (ConfigurationError("x"), "no"),
        (NonRetryable("x"), "no"),
        (Retryable("x"), "after_ms"),
        (StaleData("x"), "after_ms"),
        (Unavailable("x"), "after_ms"),
        (RateLimited(250), "after_ms"),
        (OutcomeUnknown("x"), "only_after_reconcile"),
        (LedgerUnavailable("x"), "only_after_reconcile"),
        (RuntimeError("secret"), "only_after_reconcile"),
    ],
)
def test_each_error_says_whether_to_ask_again(error: Exception, advice: str) -> None:
    problem = problem_of(error, trace_id="t")
    assert problem.retryable == advice
    assert (problem.after_ms is not None) == (advice == "after_ms")
    assert "secret" not in problem.text()
    assert is_internal(error) == isinstance(error, RuntimeError)


def test_a_problem_is_bounded_and_keeps_its_fields() -> None:
    error = TradingError("m" * 5_000, code="CODE", suggestion="s", allowed=tuple(map(str, range(100))))
    found = json.loads(str(tool_error(error, trace_id="t")))
    assert len(found["message"]) == 600
    assert len(found["allowed"]) == 20
    assert (found["code"], found["suggestion"], found["retryable"]) == ("CODE", "s", "no")


def test_a_group_of_several_failures_is_internal_and_one_is_itself() -> None:
    assert problem_of(ExceptionGroup("g", [ExceptionGroup("h", [StaleData("x")])])).code == "STALE_DATA"
    assert problem_of(ExceptionGroup("g", [StaleData("x"), StaleData("y")])).code == "INTERNAL"
    assert problem_of(ToolError("plain")).code == "TOOL_ERROR"


def test_near_names_are_found_without_case_and_separators() -> None:
    known = ["BTC/USDT", "ETH/USDT", "SOL/EUR"]
    assert did_you_mean("btc-usdt", known)[0] == "BTC/USDT"
    assert did_you_mean("zzzzzz", known) == ()
    assert did_you_mean("x", []) == ()


def test_a_bucket_refills_with_time_and_each_principal_has_its_own() -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock, per_s=10, burst=2)
    limiter.take("a")
    limiter.take("a")
    with pytest.raises(RateLimited) as caught:
        limiter.take("a")
    assert caught.value.after_ms == 100
    limiter.take("b")
    clock.advance(99)
    with pytest.raises(RateLimited):
        limiter.take("a")
    clock.advance(1)
    limiter.take("a")
    clock.advance(60_000)
    limiter.take("a")
    limiter.take("a")
    with pytest.raises(RateLimited):
        limiter.take("a")


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_rate_that_admits_nobody_is_refused(per_s: float, burst: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        RateLimiter(ManualClock(), per_s=per_s, burst=burst)


@given(st.from_regex(DECIMAL_PATTERN, fullmatch=True))
def test_every_number_that_a_tool_takes_is_one_that_the_domain_takes(text: str) -> None:
    assert TypeAdapter(DecimalText).validate_python(text) == parse_decimal(text)
