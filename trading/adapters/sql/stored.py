r"""How an event is stored and hashed.

The hash chain: ``hash(0) = SHA-256("grekko-ledger-v1\n" + room)`` and ``hash(n) = SHA-256(hash(n-1) + row(n))``, where
``row(n)`` is the ASCII line ``"<seq> <timestamp_ms> <a> <b> <c> <d>\n"`` followed by the UTF-8 bytes of event_id (a
bytes), event_type (b), metadata (c) and payload (d) exactly as they are stored. The lengths make the preimage
unambiguous, so no byte can move from one field to the next unnoticed.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from trading.adapters import codec
from trading.domain.events import EventEnvelope, EventMetadata
from trading.ports.ledger import WireEvent

#: seq, event_id, event_type, timestamp_ms, payload, metadata, hash: the columns of ``events`` in order.
EventRow = tuple[int, str, str, int, str, str, bytes]

EVENT_COLUMNS = ("seq", "event_id", "event_type", "timestamp_ms", "payload", "metadata", "hash")


def genesis(room: str) -> bytes:
    """Return the hash that the first event of a room is chained to."""
    return hashlib.sha256(b"grekko-ledger-v1\n" + room.encode()).digest()


def chain_hash(
    previous: bytes, seq: int, event_id: str, event_type: str, timestamp_ms: int, payload: str, metadata: str
) -> bytes:
    """Return the hash of a row, 32 bytes; see the module's description of the preimage."""
    text = (
        f"{seq} {timestamp_ms} {len(event_id)} {len(event_type)} {len(metadata)} {len(payload)}\n"
        f"{event_id}{event_type}{metadata}{payload}"
    )
    if text.isascii():  # then characters are bytes, and one encoding does for all
        return hashlib.sha256(previous + text.encode()).digest()
    a, b, c, d = event_id.encode(), event_type.encode(), metadata.encode(), payload.encode()
    head = b"%d %d %d %d %d %d\n" % (seq, timestamp_ms, len(a), len(b), len(c), len(d))
    return hashlib.sha256(b"".join((previous, head, a, b, c, d))).digest()


@lru_cache(maxsize=1024)  # four events of each order in a batch of 256
def encode_metadata(metadata: EventMetadata) -> str:
    """Return the stored form of metadata; the events of one unit usually share it."""
    return codec.encode(metadata).decode()


@lru_cache(maxsize=256)
def decode_metadata(text: str) -> EventMetadata:
    """Return stored metadata; raises InvalidValue."""
    return codec.decode(EventMetadata, text)


def decode_row(room: str, row: EventRow) -> EventEnvelope:
    """Return the event of a stored row.

    Raises:
        InvalidValue: unknown type or malformed payload.
    """
    seq, event_id, event_type, timestamp_ms, payload, metadata, _ = row
    return EventEnvelope(
        event_id=event_id,
        seq=seq,
        timestamp_ms=timestamp_ms,
        source_service=room,
        payload=codec.decode_event(event_type, payload),
        metadata=decode_metadata(metadata),
    )


def _quoted(text: str) -> str:
    return codec.encode(text).decode()


def wire_row(room: str, row: EventRow) -> WireEvent:
    """Return a stored row in the form that the bus carries, without reading its payload: it is JSON already."""
    seq, event_id, event_type, timestamp_ms, payload, metadata, _ = row
    data = (
        f'{{"event_id":{_quoted(event_id)},"event_type":{_quoted(event_type)},"seq":{seq},'
        f'"timestamp":{timestamp_ms},"source_service":"{room}","payload":{payload},"metadata":{metadata}}}'
    )
    return WireEvent(seq, event_type, data.encode())
