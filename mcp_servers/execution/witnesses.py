"""Audit heads across rooms: what others saw of our ledger counts at our start, and we embed what risk has signed.

A head that another room has in its own chain cannot be rolled back unnoticed, even by whoever holds our files.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mcp_servers.execution.service import ExecutionService
from trading.adapters.config import DeskHome
from trading.adapters.signing import load_public_key
from trading.adapters.sql.checkpoints import Checkpoint, origin_of, parse_checkpoint
from trading.domain.errors import InvalidValue, SignatureRefused
from trading.domain.events import HeadWitnessed
from trading.ports.ledger import LedgerReader

#: Newest events of each room that are searched at a start; older heads are covered by newer ones.
_SEARCHED = 2_000
_TAIL = 8_192  # bytes; a note is about 250


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


async def witness_risk(service: ExecutionService, home: DeskHome) -> None:
    """Embed the newest head that risk has signed in our own chain, if it is a new one."""
    newest = last_checkpoint(home.checkpoints("risk"), home.public_keys / "checkpoint-risk.pub", "risk")
    if newest is not None and newest.size > service.witnessed_size:
        service.witnessed_size = newest.size
        service.lifecycle.record(HeadWitnessed(service="risk", size=newest.size, root=newest.root.hex()))
        await service.lifecycle.flush()


def last_checkpoint(notes: Path, public_key_file: Path, room: str) -> Checkpoint | None:
    """Return the last whole note of a checkpoint file; None if there is none or it does not verify.

    Only the end of the file is read: it grows for ever and is verified in full by the audit.
    """
    if not notes.exists() or not public_key_file.exists():
        return None
    with notes.open("rb") as file:
        file.seek(max(0, notes.stat().st_size - _TAIL))
        tail = file.read().decode("utf-8", "replace")
    origin = origin_of(room)
    whole = tail[: tail.rfind("\n\n") + 1]
    start = whole.rfind(f"{origin}\n")
    if start < 0:
        return None
    try:
        return parse_checkpoint(whole[start:], origin, load_public_key(public_key_file))
    except (SignatureRefused, InvalidValue):
        return None
