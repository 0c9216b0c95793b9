"""Keys for tests: derived from a name, so that a test can forge with another name."""

from __future__ import annotations

import hashlib

from trading.adapters.signing_keys import Ed25519Signer


def make_test_signer(name: str) -> Ed25519Signer:
    """Return the same key for the same name. Never use one outside tests."""
    return Ed25519Signer(hashlib.sha256(f"grekko test key {name}".encode()).digest())
