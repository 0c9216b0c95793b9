"""The public half of signing: DSSE envelopes and their verification.

Rules kept here:

- Verify first, parse afterwards; the signature covers the exact bytes (DSSE pre-authentication encoding).
- One signature an envelope, by a key pinned by id. Any unknown field, non-canonical base64 or second signature is
  refused, so that an envelope has exactly one spelling.
- Failures say that the signature was refused and nothing more.

Source: DSSE v1.0.2 (secure-systems-lab/dsse, protocol.md), RFC 8032 Ed25519 through libsodium.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import orjson
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from trading.domain.errors import ConfigurationError, SignatureRefused
from trading.domain.identifiers import KeyId
from trading.ports.signing import Signer, Verifier

ENVELOPE_MAX = 64 * 1024  # bytes of JSON text


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
    """A signed payload, not yet verified."""

    payload: bytes
    payload_type: str
    key_id: KeyId
    signature: bytes

    def to_json(self) -> str:
        """Return the one JSON spelling of this envelope."""
        payload, signature = _base64(self.payload), _base64(self.signature)
        return (
            f'{{"payload":"{payload}","payloadType":{_quoted(self.payload_type)},'
            f'"signatures":[{{"keyid":{_quoted(self.key_id)},"sig":"{signature}"}}]}}'
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

    @classmethod
    def of(cls, *public_keys_hex: str) -> Ed25519Verifier:
        """Return a verifier that pins these keys under their own ids."""
        return cls({key_id_of(key): key for key in public_keys_hex})

    def verify(self, key_id: KeyId, message: bytes, signature: bytes) -> None:
        """Return if the signature is good; see ``trading.ports.signing.Verifier``."""
        key = self._keys.get(key_id)
        if key is None:
            raise SignatureRefused("the key is not known here", code="KEY_UNKNOWN")
        try:
            key.verify(message, signature)
        except (BadSignatureError, ValueError, TypeError) as error:
            raise SignatureRefused("the signature does not verify") from error


def seal(payload: bytes, payload_type: str, signer: Signer) -> Envelope:
    """Sign a payload and put it in an envelope."""
    return Envelope(payload, payload_type, signer.key_id, signer.sign(pae(payload_type, payload)))


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
    verifier.verify(
        envelope.key_id,
        pae(envelope.payload_type, envelope.payload),
        envelope.signature,
    )
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
