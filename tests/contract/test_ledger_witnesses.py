"""What rooms know of each other's heads."""

from __future__ import annotations

from pathlib import Path

import pytest

from trading.adapters.clock import Uuid7Factory
from trading.adapters.config import DeskHome
from trading.adapters.sql import latest_head, newest_head, recent_witnesses
from trading.adapters.sql.checkpoints import Checkpoint, Refused, origin_of, read_checkpoints, sign_checkpoint
from trading.domain.events import HeadWitnessed, OrderSubmitted
from trading.domain.identifiers import OrderId
from trading.ports.ledger import EventDraft, Unit
from trading.testing.clock import ManualClock
from trading.testing.keys import make_test_signer
from trading.testing.ledger import InMemoryLedger

SIGNER = make_test_signer("checkpoint")


def note(size: int) -> str:
    checkpoint = Checkpoint(origin_of("risk"), size, bytes(range(32)), 1)
    return sign_checkpoint(checkpoint, SIGNER, SIGNER.public_key) + "\n"


def desk_home(directory: Path, *, key: str = SIGNER.public_key) -> DeskHome:
    home = DeskHome(directory / "desk").ensure()
    (home.public_keys / "checkpoint-risk.pub").write_text(f"{key}\n")
    return home


def head(size: int, service: str = "risk") -> HeadWitnessed:
    return HeadWitnessed(service=service, size=size, root=bytes(range(32)).hex())


def test_the_newest_head_of_a_room_is_found_in_the_desks_home(tmp_path: Path) -> None:
    home = desk_home(tmp_path)
    assert newest_head(home, "risk") is None  # it has signed none
    home.checkpoints("risk").write_text(note(3) + note(7))
    assert newest_head(home, "risk") == head(7)
    assert newest_head(home, "execution") is None  # its key is not known


@pytest.mark.parametrize("key", ["no key", make_test_signer("thief").public_key])
def test_a_head_is_not_taken_on_trust(tmp_path: Path, key: str) -> None:
    home = desk_home(tmp_path, key=key)
    home.checkpoints("risk").write_text(note(3))
    assert newest_head(home, "risk") is None


def test_notes_that_cannot_be_read_are_no_head(tmp_path: Path) -> None:
    home = desk_home(tmp_path)
    home.checkpoints("risk").mkdir()
    assert newest_head(home, "risk") is None


def test_an_older_head_that_was_appended_again_is_not_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "risk.note"
    path.write_text(note(9) + note(3))
    assert latest_head(path, "risk", SIGNER.public_key) == head(9)


def test_a_size_of_thousands_of_digits_is_refused_and_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "risk.note"
    huge = note(3).replace("\n3\n", f"\n{'9' * 5000}\n")
    path.write_text(note(5) + huge)
    assert latest_head(path, "risk", SIGNER.public_key) == head(5)
    refused = list(read_checkpoints(path, origin_of("risk"), SIGNER.public_key))[1]
    assert isinstance(refused, Refused)
    assert (refused.index, refused.size) == (2, 0)


async def ledger_of(*batches: HeadWitnessed | int) -> InMemoryLedger:
    """Return a ledger of heads and, for each number, so many other events."""
    ledger = InMemoryLedger("execution", ManualClock(), Uuid7Factory())
    for batch in batches:
        several = [OrderSubmitted(order_id=OrderId("o"))] * batch if isinstance(batch, int) else [batch]
        await ledger.commit(Unit(events=tuple(EventDraft(event) for event in several)))
    return ledger


async def test_witnesses_of_one_room_are_gathered_from_all_others() -> None:
    first = await ledger_of(head(4), 3, head(8), head(5, "coordinator"))
    second = await ledger_of(head(6))
    empty = await ledger_of()
    assert await recent_witnesses([first, second, empty], "risk") == [head(4), head(8), head(6)]
    assert await recent_witnesses([first, second], "execution") == []


async def test_a_witness_behind_thousands_of_events_is_still_found() -> None:
    busy = await ledger_of(head(4), 7_000, head(5, "coordinator"))
    assert await recent_witnesses([busy], "risk") == [head(4)]


async def test_the_search_for_witnesses_has_an_end() -> None:
    endless = await ledger_of(head(4), 20_000)
    assert await recent_witnesses([endless], "risk") == []
