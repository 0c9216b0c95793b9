"""The ``[execution]`` section: how strict the gate is and how patient the room."""

from __future__ import annotations

from decimal import Decimal

from pydantic import Field

from trading.adapters.config import DeskSettings, SectionModel, load_section
from trading.domain.errors import ConfigurationError
from trading.domain.proposals import Mode


class ProtectionSettings(SectionModel):
    """The ``[execution.protection]`` section: how stops are carried out; where they lie is risk's to say.

    Attributes:
        native: let a stop order rest at the venue where it takes one.
        step_bps: a resting stop is replaced once the level lies so far from it.
        close_blind_after_s: without any price for so long, close at the exit's floor; left out, wait for a price.
    """

    native: bool = True
    step_bps: Decimal = Field(default=Decimal(5), ge=0, le=100)
    close_blind_after_s: int | None = Field(default=None, ge=1, le=86_400)


class ExecutionSettings(SectionModel):
    """What may be tuned; none of it can open the gate to something unsigned.

    Attributes:
        max_clock_skew_ms: how far risk's clock may be ahead of ours.
        ttl_max_ms: the longest life an approval may claim.
        heartbeat_age_max_ms: silence of risk after which nothing may add risk.
        price_age_max_ms: age after which a book no longer prices an order.
        answer_timeout_ms: how long the venue's answer is waited for before an order counts as unknown.
        absent_spacing_ms: least time between two "not found" answers that both count.
        reconcile_every_s: how often ledger and venue are compared when nothing calls for it sooner.
        venue_fsync: the paper venue waits for the disk after each batch.
        venue_latency_ms: median one-way latency of the paper venue's messages, 0 for none.
        venue_seed: of that latency.
        protection: how stops are carried out.
    """

    max_clock_skew_ms: int = Field(default=250, ge=0, le=5_000)
    ttl_max_ms: int = Field(default=120_000, ge=1_000, le=120_000)
    heartbeat_age_max_ms: int = Field(default=3_000, ge=500, le=10_000)
    price_age_max_ms: int = Field(default=2_000, ge=100, le=10_000)
    answer_timeout_ms: int = Field(default=3_000, ge=10, le=30_000)
    absent_spacing_ms: int = Field(default=500, ge=100, le=60_000)
    reconcile_every_s: int = Field(default=30, ge=1, le=3_600)
    venue_fsync: bool = False
    venue_latency_ms: int = Field(default=0, ge=0, le=1_000)
    venue_seed: int = 0
    protection: ProtectionSettings = ProtectionSettings()


def load_execution_settings() -> ExecutionSettings:
    """Read the section.

    Raises:
        ConfigurationError: unknown key or illegal value.
    """
    return load_section(ExecutionSettings, "execution")


def check_allowed(desk: DeskSettings) -> None:
    """Refuse a mode for which no venue is connected.

    Raises:
        ConfigurationError: testnet or live, or another venue than the paper one.
    """
    if desk.mode is not Mode.PAPER:
        raise ConfigurationError(
            f"mode {desk.mode.value} has no venue in this release; only the paper venue is connected",
            code="MODE_UNSUPPORTED",
            suggestion='set mode = "paper"',
            allowed=(Mode.PAPER.value,),
        )
    if desk.venue != "paper":
        raise ConfigurationError(
            f"venue {desk.venue} is not connected in this release",
            code="VENUE_UNSUPPORTED",
            suggestion='set venue = "paper"',
            allowed=("paper",),
        )
