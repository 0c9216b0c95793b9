"""Re-checks the history of the limits: nothing was loosened without the operator's signature.

Rules kept here:

- A version stands for one document, and versions rise by one.
- What loosens anything carries a command that verifies with the operator's pinned key, over that document and the
  version it replaced.
- An approval names a version that was in force, with its digest.

Ledgers of the release before limits were signed did loosen by a restart; their events name nobody and are passed over,
but only before the first event that does.
"""

from __future__ import annotations

from pathlib import Path

from grekko.exit_proofs import require
from mcp_servers.risk.adoption import LIMITS_PAYLOAD_TYPE, LimitsCommand
from mcp_servers.risk.document import parse_stored
from mcp_servers.risk.tightness import compare, loosening
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, digest, load_public_key, open_envelope
from trading.domain.approvals import Approval
from trading.domain.events import LimitsLoaded


class LimitProofs:
    """Follows the policies as they came into force.

    Args:
        public_keys: the directory of the pinned keys.
    """

    def __init__(self, public_keys: Path) -> None:
        self._public_keys = public_keys
        self._newest: LimitsLoaded | None = None
        self._digests: dict[int, str] = {}
        self._signs = False

    def loaded(self, event: LimitsLoaded) -> None:
        """Check one policy; raises ``TradingError`` for what is not proven."""
        require(digest(event.document.encode()) == event.digest, "the digest is of other limits")
        before, self._newest = self._newest, event
        self._signs |= bool(event.by)
        same_version = before is not None and before.version == event.version
        known = self._digests.setdefault(event.version, event.digest)
        require(known == event.digest, "one version stands for two documents")
        if before is None or same_version:
            return
        require(event.version == before.version + 1, "a version is missing or came back")
        if self._signs and loosening(compare(parse_stored(before.document), parse_stored(event.document))):
            self._check_signed(event, before)

    def _check_signed(self, event: LimitsLoaded, before: LimitsLoaded) -> None:
        require(bool(event.envelope), "limits were loosened without the operator's signature")
        operator = Ed25519Verifier.of(load_public_key(self._public_keys / "operator.pub"))
        command = codec.decode(LimitsCommand, open_envelope(event.envelope, operator, LIMITS_PAYLOAD_TYPE))
        require(command.document == event.document, "the operator signed other limits")
        require(command.base_version == before.version, "the operator signed against another version")

    def approved(self, approval: Approval) -> None:
        """Check what an approval says of the limits it was judged by; raises as :meth:`loaded` does."""
        if self._newest is not None:
            known = self._digests.get(approval.policy_version)
            require(known == approval.policy_digest, "approved by limits that were never in force")
