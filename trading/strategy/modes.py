"""Three temperaments as numbers: conservative, balanced, aggressive.

Every number is monotone from one to the next, so that whatever a cautious mode wants a bolder one allows and whatever
a bold mode objects to a more cautious one objects to as well. All modes live under the same hard limits of risk.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeNumbers:
    """The numbers of one temperament. ``+`` means a bolder mode has more of it, ``-`` less.

    Attributes:
        strength_min: (-) weakest signal in [0, 1] that is acted upon.
        edge_to_cost_min: (-) expected edge over the cost of a round trip (fees and spread). 1 breaks even on average;
            below 1 the mode knowingly pays to trade, which only makes sense on paper.
        spread_bps_max: (+) widest spread it trades or consents at.
        volatility_bps_max: (+) largest average true range of a candle it trades or consents at.
        volatility_bps_target: (+) orders shrink in proportion when the range is above this.
        order_equity_bps: (+) largest order, of equity.
        position_equity_bps: (+) largest position, of equity.
        depth_share: (+) largest share of the opposite side's visible quantity.
        objection_strength: (+) how strong a contrary signal must be before it votes no.
        proposal_interval_ms: (-) least time between two proposals of an agent.
    """

    name: str
    strength_min: float
    edge_to_cost_min: float
    spread_bps_max: float
    volatility_bps_max: float
    volatility_bps_target: float
    order_equity_bps: Decimal
    position_equity_bps: Decimal
    depth_share: Decimal
    objection_strength: float
    proposal_interval_ms: int


CONSERVATIVE: Final = ModeNumbers(
    name="conservative",
    strength_min=0.6,
    edge_to_cost_min=1.0,
    spread_bps_max=2.0,
    volatility_bps_max=8.0,
    volatility_bps_target=1.0,
    order_equity_bps=Decimal(50),
    position_equity_bps=Decimal(1_000),
    depth_share=Decimal("0.05"),
    objection_strength=0.75,
    proposal_interval_ms=5_000,
)
BALANCED: Final = ModeNumbers(
    name="balanced",
    strength_min=0.45,
    edge_to_cost_min=0.05,
    spread_bps_max=5.0,
    volatility_bps_max=20.0,
    volatility_bps_target=4.0,
    order_equity_bps=Decimal(150),
    position_equity_bps=Decimal(3_000),
    depth_share=Decimal("0.2"),
    objection_strength=0.85,
    proposal_interval_ms=2_000,
)
AGGRESSIVE: Final = ModeNumbers(
    name="aggressive",
    strength_min=0.3,
    edge_to_cost_min=0.0,
    spread_bps_max=10.0,
    volatility_bps_max=50.0,
    volatility_bps_target=10.0,
    order_equity_bps=Decimal(500),
    position_equity_bps=Decimal(9_000),
    depth_share=Decimal("0.5"),
    objection_strength=0.95,
    proposal_interval_ms=500,
)

#: From the most cautious to the boldest.
MODES: Final = (CONSERVATIVE, BALANCED, AGGRESSIVE)
