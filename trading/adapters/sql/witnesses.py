"""Audit heads across rooms: what one has signed, others embed in their own chains.

A head that another room has in its chain cannot be rolled back unnoticed, not even by whoever holds this room's files
and its checkpoint key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from trading.adapters.config import DeskHome
from trading.adapters.signing import load_public_key
from trading.adapters.sql.checkpoints import latest_head
from trading.domain.errors import ConfigurationError
from trading.domain.events import HeadWitnessed
from trading.ports.ledger import LedgerReader

_PAGE: Final = 2_000
#: Newest events of each room that are searched at the most. The audit reads them all; this is to start in time.
_SEARCHED_MAX: Final = 20_000


def newest_head(home: DeskHome, room: str) -> HeadWitnessed | None:
    """Return the newest head a room has signed, to be embedded elsewhere.

    None while it has signed none, or when its notes or its public key cannot be read: witnessing is tried again and
    again, and never keeps a room from working.
    """
    try:
        public_key = load_public_key(home.public_keys / f"checkpoint-{room}.pub")
        return latest_head(home.checkpoints(room), room, public_key)
    except (OSError, ConfigurationError):
        return None


async def recent_witnesses(readers: Iterable[LedgerReader], room: str) -> list[HeadWitnessed]:
    """Return the heads of ``room`` that other rooms have embedded lately: its ledger must not be older than those.

    Each ledger is searched backwards until a page has some, for the newest head covers all before it.

    Raises:
        LedgerUnavailable: a ledger does not answer.
        InvalidValue: an event that this release does not know or cannot read.
    """
    found: list[HeadWitnessed] = []
    for reader in readers:
        found += await _newest_page(reader, room)
    return found


async def _newest_page(reader: LedgerReader, room: str) -> list[HeadWitnessed]:
    end = await reader.last_seq()
    oldest = max(0, end - _SEARCHED_MAX)
    while end > oldest:
        start = max(oldest, end - _PAGE)
        page = await reader.events_after(start, limit=end - start)
        heads = [event.payload for event in page if isinstance(event.payload, HeadWitnessed)]
        if ours := [head for head in heads if head.service == room]:
            return ours
        end = start
    return []
