"""The one serializer: domain values to JSON and back.

Decimals travel as plain decimal strings, enums as their values, named tuples as arrays. ``canonical`` gives the
RFC 8785 form that is signed and hashed. Decoding checks shape and types; whether bytes may be trusted is decided
before, by whoever verified them.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar, cast

import orjson
import rfc8785
from pydantic import TypeAdapter, ValidationError

from trading.domain.errors import InvalidValue
from trading.domain.events import EVENT_TYPES, DomainEvent, EventEnvelope, EventMetadata
from trading.domain.money import plain

T = TypeVar("T")

_SAFE_INTEGER = 2**53 - 1  # RFC 8785 section 3.2.2.3: I-JSON integers


def encode(value: object) -> bytes:
    """Return compact JSON of a domain value or of plain JSON data; fields in definition order.

    Raises:
        InvalidValue: it holds something that has no JSON form here, a float included.
    """
    try:
        return orjson.dumps(value, default=_default)
    except TypeError as error:
        raise InvalidValue(f"cannot be serialized: {error}", code="NOT_SERIALIZABLE") from error


def _default(value: object) -> object:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, tuple):  # a named one; str, int and enum subclasses need no help
        return list(cast("tuple[object, ...]", value))
    if isinstance(value, (frozenset, set)):
        return sorted(cast("frozenset[str]", value))
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    raise TypeError(f"no JSON form for {type(value).__name__}")


def canonical(value: object) -> bytes:
    """Return the RFC 8785 (JCS) form of a domain value: sorted keys, no spaces, minimal escapes.

    With ASCII keys, no floats and integers below 2**53 the fast encoder writes exactly that form (a property test
    compares the two); anything else goes through the reference implementation.
    """
    data = orjson.loads(encode(value))
    if _is_simple(data):
        return orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
    return canonical_json(data)


def canonical_json(data: Any) -> bytes:
    """Return the RFC 8785 form of plain JSON data by the reference implementation.

    Raises:
        InvalidValue: a number or string outside I-JSON.
    """
    try:
        return rfc8785.dumps(data)
    except rfc8785.CanonicalizationError as error:
        raise InvalidValue(f"has no canonical form: {error}", code="NOT_CANONICAL") from error


def _is_simple(data: Any) -> bool:
    kind = cast("type[object]", type(data))  # what orjson parsed, so exactly one of the six JSON types
    if kind is dict:
        for key, value in data.items():
            if not key.isascii() or (type(value) is not str and not _is_simple(value)):
                return False
        return True
    if kind is list:
        return all(_is_simple(value) for value in data)
    if kind is int:
        return -_SAFE_INTEGER <= data <= _SAFE_INTEGER
    return kind is not float


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def decode(kind: type[T], data: bytes | str) -> T:
    """Return the domain value that JSON text spells.

    Args:
        kind: the dataclass to build.
        data: JSON text; its origin has been checked already.

    Raises:
        InvalidValue: not JSON, a missing or wrong field, or a value the type itself refuses.
    """
    try:
        return _adapter(kind).validate_json(data)
    except ValidationError as error:
        raise _invalid(kind, error) from error


def decode_data(kind: type[T], data: Any) -> T:
    """Return the domain value that parsed JSON data spells; raises as ``decode`` does."""
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        raise _invalid(kind, error) from error


def _invalid(kind: type[object], error: ValidationError) -> InvalidValue:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "value"
    return InvalidValue(f"{kind.__name__}: {where}: {first['msg']}", code="MALFORMED")


def decode_event(event_type: str, payload: bytes | str) -> DomainEvent:
    """Return the event of a stored type.

    Raises:
        InvalidValue: unknown type or malformed payload.
    """
    kind = EVENT_TYPES.get(event_type)
    if kind is None:
        raise InvalidValue(f"unknown event type {event_type[:64]!r}", code="UNKNOWN_EVENT")
    return decode(kind, payload)


def encode_envelope(event: EventEnvelope) -> bytes:
    """Return the wire form ``{event_id, event_type, seq, timestamp, source_service, payload, metadata}``."""
    return encode(
        {
            "event_id": event.event_id,
            "event_type": event.event_type,
            "seq": event.seq,
            "timestamp": event.timestamp_ms,
            "source_service": event.source_service,
            "payload": event.payload,
            "metadata": event.metadata,
        }
    )


def decode_envelope(data: bytes | str) -> EventEnvelope:
    """Return the event that ``encode_envelope`` wrote.

    Raises:
        InvalidValue: malformed, or of an unknown type.
    """
    try:
        raw = cast("dict[str, Any]", orjson.loads(data))
        kind = EVENT_TYPES.get(str(raw["event_type"]))
        if kind is None:
            raise InvalidValue("unknown event type", code="UNKNOWN_EVENT")
        return EventEnvelope(
            event_id=str(raw["event_id"]),
            seq=int(raw["seq"]),
            timestamp_ms=int(raw["timestamp"]),
            source_service=str(raw["source_service"]),
            payload=decode_data(kind, raw["payload"]),
            metadata=decode_data(EventMetadata, raw["metadata"]),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue("malformed event envelope", code="MALFORMED") from error
