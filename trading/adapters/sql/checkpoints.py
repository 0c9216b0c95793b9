"""Signed heads of a ledger, kept outside the database.

Each checkpoint is a C2SP tlog-checkpoint in a C2SP signed note::

    <origin>
    <size>
    <base64 of the RFC 6962 root>
    time <milliseconds since the epoch>

    — <origin> <base64 of key hash (4 bytes) + Ed25519 signature (64 bytes)>

The key hash is the first four bytes of SHA-256(origin + 0x0A 0x01 + public key). ``time`` is an extension line, signed
with the rest. Checkpoints are appended to one file of mode 0600, a blank line after each. Whoever can rewrite the
database cannot make the roots fit without this key; whoever has this key too is caught by other rooms' witnesses.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from trading.adapters.signing import Ed25519Verifier, key_id_of
from trading.domain.errors import InvalidValue, SignatureRefused
from trading.domain.events import HeadWitnessed
from trading.ports.signing import Signer

_DASH: Final = "\N{EM DASH} "
_ED25519: Final = b"\n\x01"
_TAIL: Final = 8192
_SIZE_DIGITS_MAX: Final = 18


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A head that was signed.

    Attributes:
        origin: names the ledger.
        size: number of events covered.
        root: RFC 6962 root over their hashes, 32 bytes.
        time_ms: the writer's clock when it was signed.
    """

    origin: str
    size: int
    root: bytes
    time_ms: int

    def body(self) -> str:
        """Return the text that is signed, its last newline included."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\ntime {self.time_ms}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """How a writer signs its heads.

    Attributes:
        path: the file; its directory exists.
        signer: holds the checkpoint key, which is not the approval key.
        public_key: the signer's public key, 64 hexadecimal digits.
        origin: names the ledger, without spaces or plus signs; ``origin_of(room)`` if empty.
        every_rows: sign at the latest after so many events.
        every_s: sign at the latest so many seconds after an event.
    """

    path: Path
    signer: Signer
    public_key: str
    origin: str = ""
    every_rows: int = 1000
    every_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Refused:
    """A note in the file that is no valid checkpoint.

    Attributes:
        index: its position in the file, from 1.
        size: what it claims to cover, 0 if that cannot be read.
        reason: what is wrong with it.
    """

    index: int
    size: int
    reason: str


def origin_of(room: str) -> str:
    """Return the default origin of a room's ledger."""
    return f"grekko.local/{room}"


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer, public_key: str) -> str:
    """Return the signed note."""
    body = checkpoint.body()
    blob = _key_hash(checkpoint.origin, public_key) + signer.sign(body.encode())
    return f"{body}\n{_DASH}{checkpoint.origin} {base64.b64encode(blob).decode()}\n"


def parse_checkpoint(note: str, origin: str, public_key: str) -> Checkpoint:
    """Return the checkpoint of a signed note whose signature is good.

    Raises:
        SignatureRefused: no good signature of that key over exactly this text.
        InvalidValue: signed, but not a checkpoint of that origin.
    """
    body, separator, signatures = note.partition("\n\n")
    body += "\n"
    prefix = f"{_DASH}{origin} "
    lines = [line for line in signatures.split("\n") if line.startswith(prefix)]
    if not separator or len(lines) != 1:
        raise SignatureRefused("not a signed note of this origin")
    blob = _unbase64(lines[0].removeprefix(prefix))
    if blob is None or len(blob) != 68 or blob[:4] != _key_hash(origin, public_key):
        raise SignatureRefused("the note is signed by another key")
    Ed25519Verifier.of(public_key).verify(key_id_of(public_key), body.encode(), blob[4:])
    return _parse_body(body, origin)


def _parse_body(body: str, origin: str) -> Checkpoint:
    lines = body.split("\n")
    root = _unbase64(lines[2]) if len(lines) == 5 else None
    if root is None or len(root) != 32 or lines[0] != origin or not lines[1].isdecimal():
        raise InvalidValue("malformed checkpoint", code="MALFORMED")
    time_ms = lines[3].removeprefix("time ")
    checkpoint = Checkpoint(origin, int(lines[1]), root, int(time_ms) if time_ms.isdecimal() else -1)
    if checkpoint.body() != body:  # one spelling only: no leading zeros, no other base64
        raise InvalidValue("malformed checkpoint", code="MALFORMED")
    return checkpoint


def _unbase64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _key_hash(origin: str, public_key: str) -> bytes:
    return hashlib.sha256(origin.encode() + _ED25519 + bytes.fromhex(public_key)).digest()[:4]


def read_checkpoints(path: Path, origin: str, public_key: str) -> Iterator[Checkpoint | Refused]:
    """Yield every note of a checkpoint file in order, bad ones as ``Refused``; nothing if there is no file.

    An unfinished last note is what a crash leaves behind and is passed over.
    """
    for index, note in enumerate(_notes(path), start=1):
        try:
            yield parse_checkpoint(note, origin, public_key)
        except (SignatureRefused, InvalidValue) as error:
            yield Refused(index, _claimed_size(note), str(error))


def _claimed_size(note: str) -> int:
    line = "".join(note.split("\n", 2)[1:2])
    return int(line) if line.isdecimal() and len(line) <= _SIZE_DIGITS_MAX else 0


def _notes(path: Path, *, last_bytes: int | None = None) -> Iterator[str]:
    """Yield the finished notes, or only those in the last so many bytes."""
    if not path.exists():
        return
    skip = max(0, path.stat().st_size - last_bytes) if last_bytes is not None else 0
    with path.open("rb") as file:
        file.seek(skip)
        if skip:
            _pass_over_one_note(file)
        note: list[str] = []
        blank_lines = 0
        for raw in file:
            line = raw.decode("utf-8", "replace")
            blank_lines += line == "\n"
            if blank_lines < 2:
                note.append(line)
            else:
                yield "".join(note)
                note, blank_lines = [], 0


def _pass_over_one_note(file: BinaryIO) -> None:
    for raw in file:
        if raw.startswith(_DASH.encode()):
            break
    file.readline()


class CheckpointFile:
    """Appends to the file of checkpoints; used by the one writer of the ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mend(self) -> None:
        """Cut off an unfinished last note, so that the next one starts on a line of its own."""
        if not self._path.exists():
            return
        whole = sum(len(note.encode()) + 1 for note in _notes(self._path))
        if self._path.stat().st_size > whole:
            with self._path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())

    def append(self, note: str) -> None:
        """Add a note durably; raises OSError."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, note.encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def latest_head(path: Path, room: str, public_key: str, *, origin: str = "") -> HeadWitnessed | None:
    """Return the newest good checkpoint of a room as the event with which another room witnesses it.

    Cheap enough to ask again and again: only the end of the file is read, unless nothing there is genuine, and only as
    many signatures are checked as it takes to find a good one.

    Args:
        path: the room's checkpoint file.
        room: whose head it is.
        public_key: of that room's checkpoint key, 64 hexadecimal digits.
        origin: if it is not the default one.
    """
    for last_bytes in (_TAIL, None):  # the newest is nearly always near the end; the file grows for ever
        notes = list(_notes(path, last_bytes=last_bytes))
        for note in sorted(notes, key=_claimed_size, reverse=True):
            try:
                newest = parse_checkpoint(note, origin or origin_of(room), public_key)
            except (SignatureRefused, InvalidValue):
                continue
            return HeadWitnessed(service=room, size=newest.size, root=newest.root.hex())
    return None
