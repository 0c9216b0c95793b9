"""The approval key: the only thing that can say yes. Importable by the risk room alone (import-linter)."""

from __future__ import annotations

from trading.adapters.config import DeskHome
from trading.adapters.signing_keys import Ed25519Signer, read_key, write_key

PURPOSE = "approval"


def create_approval_key(home: DeskHome) -> Ed25519Signer:
    """Make risk's approval key and publish its public half.

    Raises:
        FileExistsError: there is one already.
    """
    return write_key(
        home.keys("risk") / "approval.key",
        PURPOSE,
        public_path=home.public_keys / "risk-approval.pub",
    )


def load_approval_signer(home: DeskHome) -> Ed25519Signer:
    """Load risk's approval key.

    Raises:
        ConfigurationError: missing, readable by others, or not an approval key.
    """
    return read_key(home.keys("risk") / "approval.key", PURPOSE)
