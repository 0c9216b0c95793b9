"""The Merkle tree agrees with RFC 6962 and its published vectors; checkpoints are C2SP signed notes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.conftest import ROOM, SIGNER, SqliteDesk
from trading.adapters.sql import latest_head
from trading.adapters.sql.checkpoints import Checkpoint, Refused, parse_checkpoint, read_checkpoints, sign_checkpoint
from trading.adapters.sql.merkle import Frontier
from trading.domain.errors import ConfigurationError, InvalidValue, SignatureRefused
from trading.domain.events import OrderSubmitted
from trading.domain.identifiers import OrderId
from trading.ports.ledger import EventDraft, Unit
from trading.testing.keys import make_test_signer

VECTORS = Path(__file__).parents[1] / "data" / "merkle"
#: The leaves of the reference tree that the vectors were made from.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
KEY = SIGNER.public_key


def published_roots() -> dict[int, str]:
    roots: dict[int, str] = {}
    for path in VECTORS.glob("*.json"):
        vector = json.loads(path.read_text())
        for size, root in (("size1", "root1"), ("size2", "root2"), ("treeSize", "root")):
            if size in vector:
                assert roots.setdefault(vector[size], vector[root]) == vector[root]
    return roots


def test_roots_are_those_of_the_published_vectors() -> None:
    published = published_roots()
    assert sorted(published) == [1, 2, 3, 5, 6, 7, 8]
    frontier = Frontier()
    for leaf in LEAVES:
        frontier.append(leaf)
        if frontier.size in published:
            assert base64.b64encode(frontier.root()).decode() == published[frontier.size]


def merkle_tree_hash(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as written there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + merkle_tree_hash(leaves[:k]) + merkle_tree_hash(leaves[k:])).digest()


@given(st.lists(st.binary(max_size=8), max_size=70))
def test_the_frontier_has_the_root_of_the_definition(leaves: list[bytes]) -> None:
    frontier = Frontier()
    assert frontier.root() == merkle_tree_hash([])
    for count, leaf in enumerate(leaves, start=1):
        frontier.append(leaf)
        assert frontier.size == count
    assert frontier.root() == merkle_tree_hash(leaves)


def make(size: int = 7, time_ms: int = 5) -> Checkpoint:
    return Checkpoint("grekko.local/risk", size, bytes(range(32)), time_ms)


def test_a_checkpoint_is_a_signed_note_of_the_published_form() -> None:
    note = sign_checkpoint(make(), SIGNER, KEY)
    lines = note.split("\n")
    assert lines[:5] == ["grekko.local/risk", "7", base64.b64encode(bytes(range(32))).decode(), "time 5", ""]
    dash, name, blob = lines[5].split(" ")
    assert (dash, name) == ("\u2014", "grekko.local/risk")
    raw = base64.b64decode(blob)
    assert raw[:4] == hashlib.sha256(b"grekko.local/risk\n\x01" + bytes.fromhex(KEY)).digest()[:4]
    assert raw[4:] == SIGNER.sign("\n".join([*lines[:4], ""]).encode())
    assert lines[6:] == [""]
    assert parse_checkpoint(note, "grekko.local/risk", KEY) == make()


def test_every_altered_character_is_refused() -> None:
    note = sign_checkpoint(make(), SIGNER, KEY)
    for index, character in enumerate(note[:-1]):
        altered = note[:index] + ("A" if character != "A" else "B") + note[index + 1 :]
        with pytest.raises((SignatureRefused, InvalidValue)):
            parse_checkpoint(altered, "grekko.local/risk", KEY)


def test_another_origin_or_key_is_refused() -> None:
    note = sign_checkpoint(make(), SIGNER, KEY)
    with pytest.raises(SignatureRefused):
        parse_checkpoint(note, "grekko.local/execution", KEY)
    with pytest.raises(SignatureRefused):
        parse_checkpoint(note, "grekko.local/risk", make_test_signer("other").public_key)


@pytest.mark.parametrize("size", ["07", "-7", "7 ", "0x7", "\u0667"])
def test_a_signed_body_that_is_no_checkpoint_is_refused(size: str) -> None:
    body = f"grekko.local/risk\n{size}\n{base64.b64encode(bytes(32)).decode()}\ntime 5\n"
    key_hash = hashlib.sha256(b"grekko.local/risk\n\x01" + bytes.fromhex(KEY)).digest()[:4]
    blob = base64.b64encode(key_hash + SIGNER.sign(body.encode())).decode()
    with pytest.raises(InvalidValue):
        parse_checkpoint(f"{body}\n\u2014 grekko.local/risk {blob}\n", "grekko.local/risk", KEY)


def test_bad_notes_are_reported_where_they_stand_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "risk.note"
    good = [sign_checkpoint(make(size), SIGNER, KEY) for size in (3, 9)]
    path.write_text(f"{good[0]}\n{good[1].replace('9', '8')}\n\n\nrubbish\n\n\n{good[1]}\n")
    entries = list(read_checkpoints(path, "grekko.local/risk", KEY))
    assert entries[0] == make(3)
    assert entries[-1] == make(9)
    assert [entry.size for entry in entries[:2]] == [3, 8]
    assert all(isinstance(entry, Refused) for entry in entries[1:-1])


def test_no_file_means_no_checkpoints_and_no_head(tmp_path: Path) -> None:
    assert list(read_checkpoints(tmp_path / "none", "grekko.local/risk", KEY)) == []
    assert latest_head(tmp_path / "none", "risk", KEY) is None


def test_the_latest_head_is_the_largest_genuine_one(tmp_path: Path) -> None:
    path = tmp_path / "risk.note"
    thief = make_test_signer("thief")
    notes = [
        sign_checkpoint(make(3), SIGNER, KEY),
        sign_checkpoint(make(9), SIGNER, KEY),
        sign_checkpoint(make(50), thief, thief.public_key),
    ]
    path.write_text("".join(f"{note}\n" for note in notes))
    head = latest_head(path, "risk", KEY)
    assert head is not None
    assert (head.service, head.size, head.root) == ("risk", 9, bytes(range(32)).hex())


@pytest.mark.parametrize("forged", [0, 5, 60])
def test_the_latest_head_is_found_in_a_long_file(tmp_path: Path, forged: int) -> None:
    path = tmp_path / "risk.note"
    thief = make_test_signer("thief")
    good = "".join(sign_checkpoint(make(size), SIGNER, KEY) + "\n" for size in range(1, 101))
    bad = "".join(sign_checkpoint(make(size), thief, thief.public_key) + "\n" for size in range(500, 500 + forged))
    for unfinished in range(0, 60, 7):
        path.write_text(good + bad + sign_checkpoint(make(999), SIGNER, KEY)[:unfinished])
        head = latest_head(path, "risk", KEY)
        assert head is not None
        assert head.size == 100
    assert len(list(read_checkpoints(path, "grekko.local/risk", KEY))) == 100 + forged


async def fill(desk: SqliteDesk, count: int) -> None:
    async with desk.writer(checkpoint=desk.checkpointing) as ledger:
        for number in range(count):
            await ledger.commit(Unit(events=(EventDraft(OrderSubmitted(order_id=OrderId(f"o{number}"))),)))


@pytest.mark.parametrize("cut", [1, 2, 3, 40, 100])
async def test_a_note_cut_by_a_crash_is_mended(sqlite_desk: SqliteDesk, cut: int) -> None:
    path = sqlite_desk.checkpointing.path
    await fill(sqlite_desk, 2)
    first = path.read_bytes()
    await fill(sqlite_desk, 2)
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(list(read_checkpoints(path, f"grekko.local/{ROOM}", KEY))) == 1
    await fill(sqlite_desk, 1)
    assert path.read_bytes().startswith(first)
    entries = list(read_checkpoints(path, f"grekko.local/{ROOM}", KEY))
    assert [entry.size for entry in entries] == [2, 5]
    assert not [entry for entry in entries if isinstance(entry, Refused)]


async def test_heads_are_signed_while_the_ledger_is_open(sqlite_desk: SqliteDesk) -> None:
    async with sqlite_desk.writer(checkpoint=sqlite_desk.checkpointing) as ledger:
        draft = EventDraft(OrderSubmitted(order_id=OrderId("o")))
        await ledger.commit(Unit(events=(draft,) * 10))
        async with asyncio.timeout(10):
            while (head := latest_head(sqlite_desk.checkpointing.path, ROOM, KEY)) is None:
                await asyncio.sleep(0)
        assert head.size == 10


async def test_an_unwritable_checkpoint_file_does_not_stop_the_ledger(sqlite_desk: SqliteDesk, caplog) -> None:
    sqlite_desk.checkpointing.path.mkdir()
    with pytest.raises(ConfigurationError) as refused:
        await fill(sqlite_desk, 1)
    assert refused.value.code == "CHECKPOINTS_UNREADABLE"
    sqlite_desk.checkpointing.path.rmdir()
    async with sqlite_desk.writer(checkpoint=sqlite_desk.checkpointing) as ledger:
        sqlite_desk.checkpointing.path.mkdir()
        await ledger.commit(Unit(events=(EventDraft(OrderSubmitted(order_id=OrderId("o"))),) * 20))
    assert "checkpoint could not be written" in caplog.text
