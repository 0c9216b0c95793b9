"""The ``[risk]`` section: the limits, and how the room keeps itself current."""

from __future__ import annotations

from pydantic import Field

from mcp_servers.risk.limits import RiskLimits
from trading.adapters.config import DeskSettings, SectionModel, load_section
from trading.domain.errors import ConfigurationError


class RiskSettings(SectionModel):
    """What an operator sets for the risk room.

    Attributes:
        limits: ``[risk.limits]``, see ``limits.py``; signed approvals name their version and digest.
        witness_every_s: how often other rooms' audit heads are embedded in our chain.
    """

    limits: RiskLimits = RiskLimits()
    witness_every_s: int = Field(default=30, ge=1, le=3_600)


def load_risk_settings() -> RiskSettings:
    """Read the section.

    Raises:
        ConfigurationError: unknown key or illegal value.
    """
    return load_section(RiskSettings, "risk")


def check_allowed(desk: DeskSettings, risk: RiskSettings) -> None:
    """Refuse limits that cannot work on this desk.

    Raises:
        ConfigurationError: a symbol of the desk is quoted in another currency than the account counts in.
    """
    for symbol in (*desk.symbols, *risk.limits.symbols):
        if symbol.partition("/")[2] != desk.quote:
            raise ConfigurationError(
                f"{symbol} is not quoted in {desk.quote}, the currency the limits are in",
                suggestion=f"trade symbols quoted in {desk.quote}, or change quote",
            )
