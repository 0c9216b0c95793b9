"""What every tool answers: ``{ok, data, meta}``, with decimals as strings and a bounded size.

A room declares its data and returns it with :func:`ok`; the return annotation becomes the tool's outputSchema::

    class Balance(Row):
        currency: str
        total: DecimalText

    class Balances(Row):
        balances: list[Balance]

    async def execution_get_account(...) -> Reply[Balances]:
        page = fit(rows, limit=20, cursor_of=lambda row: row.currency)
        return ok(Balances(balances=page.rows), Meta(venue="paper", age_ms=12, **page.meta))

Rules kept here:

- An amount is a string on the wire, in and out; a JSON number is refused, it has already been a float somewhere.
- No NaN, no infinity, no exponent: ``1e999999`` never reaches the arithmetic.
- A field that is None is left out of ``meta``; a list is cut at a row, never inside one, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from mcp.types import CallToolResult, ContentBlock
from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mcp_servers.calls import current_call
from trading.domain.errors import InvalidValue
from trading.domain.money import MAX_SCALE, ZERO, check_decimal, plain, quantize_nearest

#: Characters of JSON that one reply may take; a model reads all of it.
MAX_CHARS: Final = 10_000
#: Rows of a list unless the caller asks otherwise.
DEFAULT_ROWS: Final = 20
#: Characters of outside text that are passed on.
MAX_UNTRUSTED: Final = 2_000

#: A decimal as text, see :data:`DecimalText`.
DECIMAL_PATTERN: Final = r"^-?[0-9]{1,24}(\.[0-9]{1,18})?$"
_UNSIGNED_PATTERN: Final = r"^[0-9]{1,24}(\.[0-9]{1,18})?$"
_DECIMAL: Final = re.compile(DECIMAL_PATTERN)
_HINT: Final = 'write it as a string of digits, for example "0.015"'


def _read_decimal(value: object) -> Decimal:
    if isinstance(value, Decimal):  # only our own code can get here: JSON has no such type
        finite = value if value.is_finite() else check_decimal(value)
        exponent = finite.as_tuple().exponent
        # Ratios carry 34 digits; a reader of the reply gets the 18 that the schema promises.
        return quantize_nearest(finite, MAX_SCALE) if isinstance(exponent, int) and exponent < -MAX_SCALE else finite
    if not isinstance(value, str):
        raise InvalidValue("must be a decimal string, not a JSON number", code="INVALID_NUMBER", suggestion=_HINT)
    if _DECIMAL.fullmatch(value) is None:
        raise InvalidValue("is not a plain decimal number", code="INVALID_NUMBER", suggestion=_HINT)
    return Decimal(value)  # within the bounds of every number: the pattern has as many digits as they have


def _read_positive(value: object) -> Decimal:
    number = _read_decimal(value)
    if number <= ZERO:
        raise InvalidValue("must be greater than zero", code="INVALID_NUMBER", suggestion=_HINT)
    return number


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidValue("must be text", code="INVALID_VALUE")
    return value


#: A decimal: string on the wire (schema: string with a pattern), ``Decimal`` in Python. For arguments and for data.
DecimalText = Annotated[
    Decimal,
    PlainValidator(_read_decimal),
    PlainSerializer(plain, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DECIMAL_PATTERN}),
]

#: The same, greater than zero: amounts and prices in arguments.
PositiveDecimalText = Annotated[
    Decimal,
    PlainValidator(_read_positive),
    PlainSerializer(plain, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _UNSIGNED_PATTERN}),
]


class Row(BaseModel):
    """Base of everything inside ``data``: frozen, exact field names, nothing extra."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Meta(BaseModel):
    """Where the data is from and how old it is.

    Attributes:
        mode: paper, testnet or live; filled in by :func:`ok`.
        venue: whose data or account it is.
        as_of: when it was true, RFC 3339 UTC with milliseconds (see :func:`timestamp`).
        age_ms: how long ago that was when the reply was made.
        source: the feed, ledger or node that was read.
        truncated: whether rows were left out; ``next_cursor`` continues.
        next_cursor: pass as ``cursor`` to get the next rows.
        trace_id: names this call in the log; filled in by :func:`ok`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: str | None = None
    venue: str | None = None
    as_of: str | None = None
    age_ms: int | None = None
    source: str | None = None
    truncated: bool = False
    next_cursor: str | None = None
    trace_id: str | None = None

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the fields as they are sent: absent instead of null. Every tool of a server repeats this schema."""
        kinds = {"truncated": "boolean", "age_ms": "integer"}
        fields = {name: {"type": kinds.get(name, "string")} for name in cls.model_fields}
        return {"type": "object", "properties": fields, "additionalProperties": False}

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


T = TypeVar("T", bound=BaseModel)


class Reply(BaseModel, Generic[T]):
    """The one shape of a tool's answer; failures are never in here, they are tool errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ok: Literal[True] = True
    data: T
    meta: Meta = Meta()


def ok(data: T, meta: Meta | None = None) -> Reply[T]:
    """Return ``data`` in its envelope, with the desk's mode and this call's trace id filled in."""
    found = meta or Meta()
    call = current_call()
    if call is not None:
        found = found.model_copy(update={"mode": found.mode or call.mode, "trace_id": call.trace_id})
    return Reply[type(data)](data=data, meta=found)


def illustrated(reply: Reply[Any], *blocks: ContentBlock, view: Mapping[str, Any] | None = None) -> CallToolResult:
    """Return a reply with pictures or other content beside its data.

    Args:
        reply: made by :func:`ok`; the server writes its text.
        blocks: what hosts show besides; text among them is dropped, the reply's own is the only one.
        view: ``_meta`` of the result, by key with a prefix: for the page that shows it, not for the model.
    """
    return CallToolResult(
        content=list(blocks),
        structured_content=reply.model_dump(mode="json"),
        _meta=None if view is None else dict(view),
    )


R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[R]):
    """Rows that fit, and where to go on.

    Attributes:
        rows: the first rows of the input, whole.
        truncated: whether there are more.
        next_cursor: names the last row given; None when there are no more.
    """

    rows: list[R]
    truncated: bool
    next_cursor: str | None

    @property
    def meta(self) -> dict[str, Any]:
        """The two fields of :class:`Meta` that this page decides, to be unpacked into it."""
        return {"truncated": self.truncated, "next_cursor": self.next_cursor}


def fit(
    rows: Sequence[R], *, cursor_of: Callable[[R], str], limit: int = DEFAULT_ROWS, max_chars: int = MAX_CHARS - 1_000
) -> Page[R]:
    """Return as many leading rows as a reply may hold.

    Args:
        rows: in the order they are given; may be more than ``limit``, at least ``limit + 1`` if there are more.
        cursor_of: what the caller sends back to continue after a row.
        limit: rows at most, >= 1.
        max_chars: characters of JSON at most; the default leaves room for the rest of the reply. The first row is
            always given, so that a caller makes progress.
    """
    taken: list[R] = []
    used = 0
    for row in rows[:limit]:
        used += len(row.model_dump_json()) + 1
        if taken and used > max_chars:
            break
        taken.append(row)
    truncated = len(taken) < len(rows)
    return Page(rows=taken, truncated=truncated, next_cursor=cursor_of(taken[-1]) if truncated and taken else None)


_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_MARK: Final = re.compile(r"</?\s*untrusted[^>]*>?", re.IGNORECASE)


def untrusted(text: str, *, max_chars: int = MAX_UNTRUSTED) -> str:
    """Return text from outside, marked so that a model reads it as data and not as an instruction.

    Control and invisible characters are dropped, marks inside the text are removed, and it is cut at ``max_chars``.
    """
    clean = _CONTROL.sub("", text)
    while (stripped := _MARK.sub("", clean)) != clean:  # removing one mark may join the halves of another
        clean = stripped
    cut = clean if len(clean) <= max_chars else clean[:max_chars] + "…"
    return f"<untrusted>{cut}</untrusted>"


def one_line(text: str, *, max_chars: int = 200) -> str:
    """Return an argument of a prompt as one line of printable text; a person may have pasted anything."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())[:max_chars]


_UNIT_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_LOOKBACK_PATTERN: Final = r"^[1-9][0-9]{0,5}(s|m|h|d|w)$"
_LOOKBACK: Final = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
#: The longest time a lookback may reach back.
MAX_LOOKBACK_MS: Final = 3_660 * _UNIT_MS["d"]


def parse_lookback(text: str) -> int:
    """Return how many milliseconds a relative time such as ``30s``, ``15m``, ``4h``, ``5d`` or ``2w`` spans.

    Raises:
        InvalidValue: another form, or longer than ten years.
    """
    found = _LOOKBACK.fullmatch(text)
    if found is None:
        raise InvalidValue(
            "is not a relative time",
            code="INVALID_LOOKBACK",
            suggestion="write a whole number from 1 on and a unit, for example 5d",
            allowed=tuple(_UNIT_MS),
        )
    span = int(found[1]) * _UNIT_MS[found[2]]
    if span > MAX_LOOKBACK_MS:
        longest = f"{MAX_LOOKBACK_MS // _UNIT_MS['d']}d"
        raise InvalidValue(
            "is longer than ten years", code="INVALID_LOOKBACK", suggestion=f"at most {longest}", allowed=(longest,)
        )
    return span


def _read_lookback(value: object) -> int:
    return parse_lookback(_read_text(value))


#: An argument such as ``lookback="5d"`` that arrives as milliseconds.
LookbackMs = Annotated[
    int, PlainValidator(_read_lookback), WithJsonSchema({"type": "string", "pattern": _LOOKBACK_PATTERN})
]


def timestamp(ms: int) -> str:
    """Return wall time in milliseconds since the epoch as RFC 3339 UTC text, ``2026-11-22T15:09:00.123Z``."""
    moment = datetime.fromtimestamp(ms // 1_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1_000:03d}Z"


def parse_since(text: str, *, now_ms: int) -> int:
    """Return the moment that ``text`` names, in milliseconds since the epoch.

    Args:
        text: relative (``5d`` before now) or RFC 3339 with an offset.
        now_ms: the present.

    Raises:
        InvalidValue: neither, without an offset, or in the future.
    """
    if _LOOKBACK.fullmatch(text):
        return now_ms - parse_lookback(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidValue(
            "is not a time", code="INVALID_TIME", suggestion="write 5d, or 2026-11-22T15:00:00Z with its offset"
        )
    ms = int(moment.timestamp() * 1_000)
    if ms > now_ms:
        raise InvalidValue("lies in the future", code="INVALID_TIME", suggestion="name a past moment")
    return ms
