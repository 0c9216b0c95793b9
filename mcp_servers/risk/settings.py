"""The ``[risk]`` section: the limits, and how the room keeps itself current."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from mcp_servers.risk.document import Configured, LimitsSource
from mcp_servers.risk.limits import RiskLimits
from trading.adapters.bounded_http import check_url
from trading.adapters.config import DeskSettings, SectionModel, load_section
from trading.domain.errors import ConfigurationError, InvalidValue


def _may_be_told(url: str) -> str:
    try:
        return check_url(url, what="notify_url") if url else ""
    except InvalidValue as error:
        raise ValueError(str(error)) from None


class RiskSettings(SectionModel):
    """What an operator sets for the risk room.

    Attributes:
        limits: ``[risk.limits]``, see ``limits.py``; signed approvals name their version and digest.
        limits_file: the document, if it is not ``limits.toml`` or ``limits.json`` in the home; relative to the home.
        notify_url: told of every change of the breaker by POST; ``https``, or ``http`` on this machine. A secret.
        score_model: a model file of ``grekko risk train``; counts only if the limits name its digest
            (``score_model_digest``). None: the one that ships with the room.
        witness_every_s: how often other rooms' audit heads are embedded in our chain.
    """

    limits: RiskLimits = RiskLimits()
    limits_file: Path | None = None
    score_model: Path | None = None
    witness_every_s: int = Field(default=30, ge=1, le=3_600)
    notify_url: Annotated[str, AfterValidator(_may_be_told)] = Field(default="", repr=False)


def load_risk_settings() -> RiskSettings:
    """Read the section.

    Raises:
        ConfigurationError: unknown key or illegal value.
    """
    return load_section(RiskSettings, "risk")


def limits_source(desk: DeskSettings, settings: Callable[[], RiskSettings]) -> LimitsSource:
    """Return where the desk's limits are read from.

    Args:
        desk: its home, and what its symbols are quoted in.
        settings: reads the ``[risk]`` section as it is now.
    """

    def configured() -> Configured:
        risk = settings()
        return Configured(risk.limits if "limits" in risk.model_fields_set else None, risk.limits_file)

    home = desk.desk_home
    return LimitsSource(home.path, home.config_file, configured, lambda limits: check_limits(desk, limits))


def check_allowed(desk: DeskSettings, risk: RiskSettings) -> None:
    """Refuse a section that cannot work on this desk; raises as :func:`check_limits` does."""
    check_limits(desk, risk.limits)


def check_limits(desk: DeskSettings, limits: RiskLimits) -> None:
    """Refuse limits that cannot work on this desk.

    Raises:
        ConfigurationError: a symbol is quoted in another currency than the account counts in.
    """
    for symbol in (*desk.symbols, *limits.symbols):
        if symbol.partition("/")[2] != desk.quote:
            raise ConfigurationError(
                f"{symbol} is not quoted in {desk.quote}, the currency the limits are in",
                suggestion=f"trade symbols quoted in {desk.quote}, or change quote",
            )
