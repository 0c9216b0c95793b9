"""The private half of signing for agents, the coordinator's leader, audit checkpoints and the operator.

A key file is JSON of mode 0600 that names its purpose; a key made for one purpose cannot be loaded for another.
The approval key has a module of its own, ``trading.adapters.approval_signer``, which only the risk room may import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

import orjson
from nacl.bindings import crypto_sign, crypto_sign_BYTES, crypto_sign_seed_keypair
from nacl.signing import SigningKey

from trading.adapters.config import check_private, write_private
from trading.adapters.signing import key_id_of
from trading.domain.errors import ConfigurationError
from trading.domain.identifiers import KeyId

PURPOSES: Final = ("agent", "leader", "checkpoint", "operator")


class Ed25519Signer:
    """One private key in memory (libsodium)."""

    def __init__(self, seed: bytes) -> None:
        public, self._secret = crypto_sign_seed_keypair(seed)
        self._public = public.hex()
        self._id = key_id_of(self._public)

    @property
    def key_id(self) -> KeyId:
        """First 16 hexadecimal digits of SHA-256 over the public key."""
        return self._id

    @property
    def public_key(self) -> str:
        """The public key, 64 hexadecimal digits."""
        return self._public

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature."""
        return crypto_sign(message, self._secret)[:crypto_sign_BYTES]

    def __repr__(self) -> str:
        return f"Ed25519Signer({self._id})"


def create_key(path: Path, purpose: str, *, public_path: Path | None = None) -> Ed25519Signer:
    """Make a key, write it to a file of mode 0600 and, if asked, its public half beside the others.

    Raises:
        FileExistsError: there is a key already; it is never overwritten.
    """
    if purpose not in PURPOSES:
        raise ConfigurationError(f"unknown key purpose {purpose!r}", allowed=PURPOSES)
    return write_key(path, purpose, public_path=public_path)


def load_signer(path: Path, purpose: str) -> Ed25519Signer:
    """Load a key made for ``purpose``.

    Raises:
        ConfigurationError: missing, readable by others, malformed, or made for something else.
    """
    if purpose not in PURPOSES:
        raise ConfigurationError(f"unknown key purpose {purpose!r}", allowed=PURPOSES)
    return read_key(path, purpose)


def write_key(path: Path, purpose: str, *, public_path: Path | None) -> Ed25519Signer:
    """Write a fresh key; the purposes of this module are enforced by its public functions."""
    key = SigningKey.generate()
    write_private(path, orjson.dumps({"purpose": purpose, "seed": bytes(key).hex()}) + b"\n")
    signer = Ed25519Signer(bytes(key))
    if public_path is not None:
        public_path.unlink(missing_ok=True)
        write_private(public_path, signer.public_key.encode() + b"\n")
    return signer


def read_key(path: Path, purpose: str) -> Ed25519Signer:
    """Read a key file and check what it was made for."""
    try:
        check_private(path)
        raw = cast("dict[str, Any]", orjson.loads(path.read_bytes()))
        if raw["purpose"] != purpose:
            raise ConfigurationError(f"{path.name} is not a key for {purpose}", code="KEY_PURPOSE")
        return Ed25519Signer(bytes.fromhex(raw["seed"]))
    except ConfigurationError:
        raise
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        # The text of the error could hold part of the key, so it is not shown.
        raise ConfigurationError(
            f"{path.name}: no usable {purpose} key",
            code="KEY_MISSING",
            suggestion="run `grekko init`",
        ) from error
