"""The public half of signing: DSSE envelopes and their verification.

Rules kept here:

- Verify first, parse afterwards; the signature covers the exact bytes (DSSE pre-authentication encoding).
- One signature an envelope, by a key pinned by id. Any unknown field, non-canonical base64 or second signature is
  refused, so that an envelope has exactly one spelling.
- A signature may stand for several payloads at once: it then covers the root of a Merkle tree over them, under a
  payload type of its own, and each envelope carries its place in that tree. It is verified alone, like any other.
- Failures say that the signature was refused and nothing more.

Source: DSSE v1.0.2 (secure-systems-lab/dsse, protocol.md), RFC 8032 Ed25519 through libsodium.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

import orjson
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from trading.adapters.inclusion import Place, plant, root_from
from trading.domain.errors import ConfigurationError, SignatureRefused
from trading.domain.identifiers import KeyId
from trading.ports.signing import Signer, Verifier

ENVELOPE_MAX = 64 * 1024  # bytes of JSON text

#: What is signed for several payloads together: the number of leaves and the root of the tree over them.
BATCH_PAYLOAD_TYPE: Final = "application/vnd.grekko.batch+merkle;v=1"
_ROOTS_KEPT: Final = 1_024  # signatures over roots remembered as good
_ROOT_MAX: Final = 128  # bytes of such a message; everything else that is signed is longer


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the DSSE pre-authentication encoding: what is really signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def digest(data: bytes) -> str:
    """Return SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def key_id_of(public_key_hex: str) -> KeyId:
    """Return the key's name: the first 16 hexadecimal digits of SHA-256 over the raw public key."""
    return KeyId(hashlib.sha256(bytes.fromhex(public_key_hex)).hexdigest()[:16])


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed payload, not yet verified.

    Attributes:
        place: where the payload stands among those that were signed together; None when it was signed alone.
    """

    payload: bytes
    payload_type: str
    key_id: KeyId
    signature: bytes
    place: Place | None = None

    def message(self) -> bytes:
        """Return the bytes that the signature has to cover.

        Raises:
            SignatureRefused: (code ENVELOPE_MALFORMED) its place is in no tree.
        """
        own = pae(self.payload_type, self.payload)
        if self.place is None:
            return own
        try:
            return _batch_message(self.place.size, root_from(own, self.place))
        except ValueError as error:
            raise SignatureRefused("the envelope is malformed", code="ENVELOPE_MALFORMED") from error

    def to_json(self) -> str:
        """Return the one JSON spelling of this envelope."""
        payload, signature, place = _base64(self.payload), _base64(self.signature), ""
        if self.place is not None:
            number, size, path = self.place
            place = f',"batch":{{"number":{number},"path":"{_base64(path)}","size":{size}}}'
        return (
            f'{{"payload":"{payload}","payloadType":{_quoted(self.payload_type)},'
            f'"signatures":[{{"keyid":{_quoted(self.key_id)},"sig":"{signature}"{place}}}]}}'
        )

    @classmethod
    def from_json(cls, text: str) -> Envelope:
        """Split an envelope without trusting it.

        Raises:
            SignatureRefused: (code ENVELOPE_MALFORMED) not exactly the form that ``to_json`` writes.
        """
        try:
            if len(text) > ENVELOPE_MAX:
                raise ValueError("too long")
            raw = cast("dict[str, Any]", orjson.loads(text))
            signatures = cast("list[dict[str, Any]]", raw["signatures"])
            envelope = cls(
                payload=base64.b64decode(raw["payload"], validate=True),
                payload_type=raw["payloadType"],
                key_id=KeyId(signatures[0]["keyid"]),
                signature=base64.b64decode(signatures[0]["sig"], validate=True),
                place=_place(signatures[0].get("batch")),
            )
            if not isinstance(raw["payloadType"], str) or not isinstance(signatures[0]["keyid"], str):
                raise TypeError("not text")
            if envelope.to_json() != text:
                raise ValueError("not the canonical spelling")
        except (
            orjson.JSONDecodeError,
            binascii.Error,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
        ) as error:
            raise SignatureRefused("the envelope is malformed", code="ENVELOPE_MALFORMED") from error
        return envelope


def _place(raw: Any) -> Place | None:
    if raw is None:
        return None
    number, size = raw["number"], raw["size"]
    if type(number) is not int or type(size) is not int:
        raise TypeError("not a number")
    return Place(number, size, base64.b64decode(raw["path"], validate=True))


def _batch_message(size: int, root: bytes) -> bytes:
    return pae(BATCH_PAYLOAD_TYPE, b"%d\n%b" % (size, root))


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


@lru_cache(maxsize=256)  # payload types and keys: a handful
def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


class Ed25519Verifier:
    """Pinned public keys.

    Args:
        keys: public key, 64 hexadecimal digits, by key id.
    """

    def __init__(self, keys: Mapping[KeyId, str]) -> None:
        self._keys = {key_id: VerifyKey(bytes.fromhex(key)) for key_id, key in keys.items()}
        self._good: OrderedDict[tuple[KeyId, bytes, bytes], None] = OrderedDict()

    @classmethod
    def of(cls, *public_keys_hex: str) -> Ed25519Verifier:
        """Return a verifier that pins these keys under their own ids."""
        return cls({key_id_of(key): key for key in public_keys_hex})

    def verify(self, key_id: KeyId, message: bytes, signature: bytes) -> None:
        """Return if the signature is good; see ``trading.ports.signing.Verifier``."""
        key = self._keys.get(key_id)
        if key is None:
            raise SignatureRefused("the key is not known here", code="KEY_UNKNOWN")
        asked = key_id, message, signature
        if asked in self._good:
            return
        try:
            key.verify(message, signature)
        except (BadSignatureError, ValueError, TypeError) as error:
            raise SignatureRefused("the signature does not verify") from error
        if len(message) <= _ROOT_MAX:  # the same root comes with every payload that was signed with it
            self._good[asked] = None
            if len(self._good) > _ROOTS_KEPT:
                self._good.popitem(last=False)


def seal(payload: bytes, payload_type: str, signer: Signer) -> Envelope:
    """Sign a payload and put it in an envelope."""
    return Envelope(payload, payload_type, signer.key_id, signer.sign(pae(payload_type, payload)))


def seal_together(payloads: Sequence[bytes], payload_type: str, signer: Signer) -> list[Envelope]:
    """Sign several payloads with one signature and put each in an envelope of its own; one alone is signed alone."""
    if len(payloads) < 2:
        return [seal(payload, payload_type, signer) for payload in payloads]
    root, places = plant([pae(payload_type, payload) for payload in payloads])
    key_id, signature = signer.key_id, signer.sign(_batch_message(len(payloads), root))
    return [
        Envelope(payload, payload_type, key_id, signature, place)
        for payload, place in zip(payloads, places, strict=True)
    ]


def open_envelope(text: str, verifier: Verifier, payload_type: str) -> bytes:
    """Return the payload of a good envelope; only now may it be parsed.

    Args:
        text: the envelope's JSON.
        verifier: the pinned keys.
        payload_type: the only type acceptable here.

    Raises:
        SignatureRefused: ENVELOPE_MALFORMED, PAYLOAD_TYPE, KEY_UNKNOWN or SIGNATURE_REFUSED.
    """
    envelope = Envelope.from_json(text)
    verifier.verify(envelope.key_id, envelope.message(), envelope.signature)
    if envelope.payload_type != payload_type:
        raise SignatureRefused("the payload is of another type", code="PAYLOAD_TYPE")
    return envelope.payload


def load_public_key(path: Path) -> str:
    """Return the 64 hexadecimal digits in a ``.pub`` file.

    Raises:
        ConfigurationError: missing or not a key.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
        if len(bytes.fromhex(text)) != 32:
            raise ValueError("wrong length")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path.name}: no usable public key",
            code="KEY_MISSING",
            suggestion="run `grekko init`",
        ) from error
    return text.lower()
