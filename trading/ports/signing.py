"""Signing and verifying bytes. The private half is held by risk, agents, the leader and the audit only."""

from __future__ import annotations

from typing import Protocol

from trading.domain.identifiers import KeyId


class Signer(Protocol):
    """Holds one private key."""

    @property
    def key_id(self) -> KeyId:
        """Name of the key: the first 16 hexadecimal digits of SHA-256 over the public key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of exactly these bytes."""
        ...


class Verifier(Protocol):
    """Holds public keys, pinned by id."""

    def verify(self, key_id: KeyId, message: bytes, signature: bytes) -> None:
        """Return if the signature is good.

        Raises:
            SignatureRefused: unknown key id, malformed or wrong signature; nothing else is revealed.
        """
        ...
