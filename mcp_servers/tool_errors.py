"""What a model reads when a tool fails: one JSON object that says what to do next.

::

    {"code": "UNKNOWN_INSTRUMENT", "message": "binance has no BTC/USD", "retryable": "no",
     "suggestion": "did you mean BTC/USDT?", "allowed": ["BTC/USDT"], "trace_id": "…"}

A room raises :class:`~trading.domain.errors.TradingError` and writes no try/except: the server maps it here.

Rules kept here:

- ``retryable`` is ``no``, ``after_ms`` (then ``after_ms`` says how long) or ``only_after_reconcile``: what was asked
  may have happened, so look before asking again.
- An exception that nobody foresaw becomes INTERNAL with a trace id; its text stays in the log.
- A rejected argument is named, its value is not repeated.
- Nothing here tells how to get around a refusal.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent
from pydantic import ValidationError

from trading.domain.errors import (
    InvalidValue,
    LedgerUnavailable,
    OutcomeUnknown,
    Retryable,
    StaleData,
    TradingError,
    Unavailable,
)

RetryAdvice = Literal["no", "after_ms", "only_after_reconcile"]

#: When to come back if the error itself does not say, in milliseconds.
DEFAULT_AFTER_MS: Final = 1_000
_MAX_MESSAGE: Final = 600
_MAX_ALLOWED: Final = 20
_MAX_FIELDS: Final = 8

_AFTER: Final = (Retryable, StaleData, Unavailable)
_RECONCILE: Final = (OutcomeUnknown, LedgerUnavailable)


class RateLimited(TradingError):
    """The caller asks more often than it may; nothing was done.

    Attributes:
        after_ms: when one more request will be accepted.
    """

    code = "RATE_LIMITED"

    def __init__(self, after_ms: int) -> None:
        super().__init__("too many requests", suggestion="wait, or use the batch form of the tool")
        self.after_ms = after_ms


class ScopeMissing(TradingError):
    """The caller's token does not allow this tool; nothing was done."""

    code = "SCOPE_MISSING"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One failure as the model sees it.

    Attributes:
        code: stable, upper-case.
        message: what happened, at most 600 characters.
        retryable: whether and when the same call may be sent again.
        after_ms: with ``after_ms`` only: milliseconds to wait.
        suggestion: the next step, or an empty string.
        allowed: legal values near the one that was refused.
        trace_id: names the call in the server's log.
    """

    code: str
    message: str
    retryable: RetryAdvice = "no"
    after_ms: int | None = None
    suggestion: str = ""
    allowed: tuple[str, ...] = ()
    trace_id: str | None = None

    def text(self) -> str:
        """Return the JSON that the model reads."""
        fields: dict[str, Any] = {
            "code": self.code,
            "message": self.message[:_MAX_MESSAGE],
            "retryable": self.retryable,
            "after_ms": self.after_ms,
            "suggestion": self.suggestion,
            "allowed": list(self.allowed[:_MAX_ALLOWED]),
            "trace_id": self.trace_id,
        }
        return json.dumps({key: value for key, value in fields.items() if value is not None}, ensure_ascii=False)


def problem_of(error: BaseException, *, trace_id: str | None = None) -> Problem:
    """Return what a caller may know about ``error``.

    Args:
        error: anything a tool raised. A group with one failure in it counts as that failure.
        trace_id: the call's id.
    """
    while isinstance(error, BaseExceptionGroup):
        inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
        if len(inner) != 1:
            break
        error = inner[0]
    if isinstance(error, ValidationError):
        return _bad_arguments(error, trace_id)
    if isinstance(error, TradingError):
        return _anticipated(error, trace_id)
    if isinstance(error, ToolError):
        return Problem(code="TOOL_ERROR", message=str(error), trace_id=trace_id)
    return Problem(
        code="INTERNAL",
        message="the server failed; what was asked may or may not have been done",
        retryable="only_after_reconcile",
        suggestion="read the state before asking again, and give the trace id to whoever runs the desk",
        trace_id=trace_id,
    )


def is_internal(error: BaseException) -> bool:
    """Return whether ``error`` is one that nobody foresaw, so that its details belong in the log."""
    return problem_of(error).code == "INTERNAL"


def tool_error(error: TradingError, *, trace_id: str | None = None) -> ToolError:
    """Return the SDK's exception for ``error``, for code that runs outside a desk server."""
    return ToolError(problem_of(error, trace_id=trace_id).text())


def failure(problem: Problem) -> CallToolResult:
    """Return the tool result that carries ``problem``."""
    return CallToolResult(content=[TextContent(type="text", text=problem.text())], is_error=True)


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 3) -> tuple[str, ...]:
    """Return the known names nearest to ``name``, best first, for an error's ``allowed``.

    Args:
        name: what the caller wrote.
        known: legal names; compared without regard to case and separators.
        limit: names at most.
    """
    by_key: dict[str, str] = {}
    for candidate in known:
        by_key.setdefault(_key(candidate), candidate)
    near = difflib.get_close_matches(_key(name[:80]), by_key, n=limit, cutoff=0.5)
    return tuple(by_key[key] for key in near)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _anticipated(error: TradingError, trace_id: str | None) -> Problem:
    after_ms: int | None = getattr(error, "after_ms", None)
    advice: RetryAdvice = "no"
    if isinstance(error, _RECONCILE):
        advice, after_ms = "only_after_reconcile", None
    elif after_ms is not None or isinstance(error, _AFTER):
        advice, after_ms = "after_ms", DEFAULT_AFTER_MS if after_ms is None else after_ms
    return Problem(
        code=error.code,
        message=str(error),
        retryable=advice,
        after_ms=after_ms,
        suggestion=error.suggestion,
        allowed=error.allowed,
        trace_id=trace_id,
    )


def _bad_arguments(error: ValidationError, trace_id: str | None) -> Problem:
    """Name each wrong argument and what it should be; never its value."""
    parts: list[str] = []
    suggestion, code, allowed = "", "INVALID_ARGUMENTS", ()
    found = error.errors(include_url=False, include_input=False)
    for detail in found[:_MAX_FIELDS]:
        where = ".".join(str(step)[:40] for step in detail["loc"]) or "arguments"
        context = detail.get("ctx", {})
        cause = context.get("error")
        if isinstance(cause, InvalidValue):
            parts.append(f"{where}: {cause}")
            suggestion, allowed = suggestion or cause.suggestion, allowed or cause.allowed
            code = cause.code if len(found) == 1 else code
            continue
        parts.append(f"{where}: {detail['msg']}")
        allowed = allowed or tuple(re.findall(r"'([^']*)'", str(context.get("expected", ""))))
    if len(found) > _MAX_FIELDS:
        parts.append(f"and {len(found) - _MAX_FIELDS} more")
    return Problem(
        code=code,
        message="; ".join(parts),
        suggestion=suggestion or "correct the named arguments and call again",
        allowed=allowed,
        trace_id=trace_id,
    )
