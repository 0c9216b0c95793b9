"""Audit heads across rooms: what others saw of our ledger counts at our start, and we embed what they have signed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from trading.adapters.config import DeskHome
from trading.adapters.signing import load_public_key
from trading.adapters.sql.checkpoints import origin_of, parse_checkpoint
from trading.domain.errors import ConfigurationError, InvalidValue, SignatureRefused
from trading.domain.events import HeadWitnessed
from trading.ports.ledger import LedgerReader

#: Newest events of each room that are searched at a start; older heads are covered by newer ones.
_SEARCHED: Final = 2_000
#: Only the end of a checkpoint file is read: it grows for ever, and the audit verifies all of it.
_TAIL: Final = 8_192


async def recent_witnesses(readers: Iterable[LedgerReader], service: str) -> list[HeadWitnessed]:
    """Return the heads of ``service`` that other rooms have embedded lately."""
    found: list[HeadWitnessed] = []
    for reader in readers:
        start = max(0, await reader.last_seq() - _SEARCHED)
        found += [
            event.payload
            for event in await reader.events_after(start, limit=_SEARCHED)
            if isinstance(event.payload, HeadWitnessed) and event.payload.service == service
        ]
    return found


def newest_head(home: DeskHome, room: str) -> HeadWitnessed | None:
    """Return the newest head a room has signed; None while it has signed none, or the last note does not verify."""
    try:
        public_key = load_public_key(home.public_keys / f"checkpoint-{room}.pub")
        tail = _end_of(home.checkpoints(room))
        origin = origin_of(room)
        whole = tail[: tail.rfind("\n\n") + 1]
        start = whole.rfind(f"{origin}\n")
        if start < 0:
            return None
        head = parse_checkpoint(whole[start:], origin, public_key)
    except (OSError, ConfigurationError, SignatureRefused, InvalidValue):
        return None
    return HeadWitnessed(service=room, size=head.size, root=head.root.hex())


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read().decode("utf-8", "replace")
