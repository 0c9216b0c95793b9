"""A risk room whose limits are a file, and the operator who signs documents."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_servers.risk.adoption import LIMITS_PAYLOAD_TYPE, LimitsCommand
from mcp_servers.risk.document import Configured, LimitsSource
from mcp_servers.risk.limits import RiskLimits, document_of
from mcp_servers.risk.operator_commands import CommandResult
from tests.risk_support import Desk, open_desk, wide_limits
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, digest, seal
from trading.domain.events import LimitsLoaded
from trading.testing.builders import ACCOUNT
from trading.testing.keys import make_test_signer

OPERATOR = Ed25519Verifier.of(make_test_signer("operator").public_key)


@dataclass
class LimitsDesk:
    """A desk, the file its limits are in, and where its operator leaves commands."""

    desk: Desk
    file: Path
    directory: Path
    numbers: int = 0

    @property
    def note(self) -> str:
        return self.desk.risk.live.adoption.note

    @property
    def version(self) -> int:
        return self.desk.risk.live.frames.policy.version

    @property
    def limits(self) -> RiskLimits:
        return self.desk.risk.live.frames.policy.limits

    def loaded(self) -> list[LimitsLoaded]:
        """Every policy that came into force, by the audit log."""
        return [event.payload for event in self.desk.ledger.events if isinstance(event.payload, LimitsLoaded)]

    async def put(self, limits: RiskLimits | str, *, looks: int = 2) -> None:
        """Write the file and let the room look at it."""
        self.file.write_text(limits if isinstance(limits, str) else document_of(limits))
        for _ in range(looks):
            await self.desk.risk.live.adoption.look()

    def command(self, limits: RiskLimits, **changes: Any) -> LimitsCommand:
        """What the operator would sign."""
        self.numbers += 1
        document = document_of(limits)
        values: dict[str, Any] = {
            "command_id": f"00000000-0000-4000-8000-{self.numbers:012d}",
            "desk": "desk",
            "account_id": ACCOUNT,
            "reason": "more room",
            "by": "alice",
            "issued_ms": self.desk.clock.now_ms(),
            "document": document,
            "digest": digest(document.encode()),
            "base_version": self.version,
        }
        return LimitsCommand(**{**values, **changes})

    async def send(
        self, command: LimitsCommand, *, key: str = "operator", kind: str = LIMITS_PAYLOAD_TYPE
    ) -> CommandResult | None:
        """Leave a command, let the room take it, and return its answer."""
        return await self.send_text(seal(codec.canonical(command), kind, make_test_signer(key)).to_json(), command)

    async def send_text(self, text: str, command: LimitsCommand) -> CommandResult | None:
        """Leave a file as it is; see :meth:`send`."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        path = self.directory / f"limits-{command.command_id}.json"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        commands = self.desk.risk.live.commands
        assert commands is not None
        await commands.poll()
        answer = self.directory / f"{command.command_id}.result.json"
        if not answer.exists():
            return None
        result = codec.decode(CommandResult, answer.read_bytes())
        answer.unlink()
        return result


async def open_limits_desk(home: Path, limits: RiskLimits | None = None, **parts: Any) -> LimitsDesk:
    """Return a started desk whose limits.json says the same as what it was started with."""
    home.chmod(0o700)
    file, wanted = home / "limits.json", limits or wide_limits()
    file.write_text(document_of(wanted))
    source = LimitsSource(home, home / "config.toml", lambda: Configured(None, None))
    desk = await open_desk(
        limits=wanted, document=source, operator=OPERATOR, operator_directory=home / "operator", **parts
    )
    return LimitsDesk(desk, file, home / "operator")
