"""Limits of a run of the risk machine, and which of them the oracle finds passed."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from mcp_servers.risk.limits import RiskLimits
from tests.risk_machine_support import AGENTS, PRICES, STEP, SYMBOLS, ZERO, Oracle
from tests.risk_support import wide_limits
from trading.domain.approvals import Approval
from trading.domain.identifiers import AgentId, Symbol


@dataclass(frozen=True)
class Bounds:
    """Limits of a run; each set of them makes others the ones that bind.

    ``small_`` are those of the agent ``small`` alone, in quote.
    """

    name: str
    position: Decimal = Decimal(1_000_000)  # in quote; each symbol gets its share in base
    gross: Decimal = Decimal(10_000_000)
    net: Decimal = Decimal(10_000_000)
    cash: Decimal = Decimal(10_000_000)
    symbol_orders: int = 100_000
    desk_orders: int = 100_000
    unused: int = 100_000
    reserved: Decimal = Decimal(10_000_000)
    turnover: Decimal = Decimal(10_000_000)
    small_gross: Decimal = Decimal(10_000_000)
    small_unused: int = 100_000
    small_order: Decimal = Decimal(1_000_000)

    def position_max(self, symbol: Symbol) -> Decimal:
        return (self.position / PRICES[symbol][1]).quantize(STEP)

    def limits(self) -> RiskLimits:
        own = {
            symbol: {"position_quantity_max": self.position_max(symbol), "symbol_open_orders_max": self.symbol_orders}
            for symbol in SYMBOLS
        }
        wide: dict[str, Any] = {
            "order_quantity_max": Decimal(1_000_000),
            "order_notional_max": Decimal(10_000_000),
            "spread_bps_max": Decimal(9_000),
            "move_bps_max": Decimal(9_000),
            "symbol_turnover_max": Decimal(100_000_000),
            "symbol_drift_max": Decimal(100_000_000),
        }
        small = {
            "gross_exposure_max": self.small_gross,
            "open_approvals_max": self.small_unused,
            "order_notional_max": self.small_order,
        }
        return wide_limits(
            symbols={symbol: {**wide, **values} for symbol, values in own.items()},
            agents={"small": small},
            gross_exposure_max=self.gross,
            net_exposure_max=self.net,
            desk_open_orders_max=self.desk_orders,
            open_approvals_max=self.unused,
            reserved_notional_max=self.reserved,
            turnover_max=self.turnover,
            daily_loss_max=Decimal(10_000_000),
            undecided_notional_max=Decimal(10_000_000),
        )

    def broken_now(self, oracle: Oracle) -> list[str]:
        """Return the limits that the worst case passes at any moment, whoever asked."""
        found = [f"position {each}" for each in SYMBOLS if oracle.worst(each) > self.position_max(each)]
        found += [f"sold more {each} than there is" for each in SYMBOLS if oracle.held[each] < oracle.sells(each)]
        found += [f"orders {each}" for each in SYMBOLS if len(oracle.increases(symbol=each)) > self.symbol_orders]
        found += [f"unused {each}" for each in AGENTS if oracle.unused(each) > self.unused]
        found += [f"reserved {each}" for each in AGENTS if oracle.reserved(each) > self.reserved]
        checks = {
            "gross": oracle.gross <= self.gross,
            "net": oracle.net <= self.net,
            "cash": oracle.spendable >= 0,
            "orders of the desk": len(oracle.increases()) <= self.desk_orders,
            "unused of small": oracle.unused("small") <= self.small_unused,
        }
        return found + [name for name, holds in checks.items() if not holds]

    def broken_by(self, oracle: Oracle, approval: Approval, now_ms: int) -> list[str]:
        """Return what an approval that adds risk should not have passed; ``oracle`` counts it already."""
        agent, found = approval.agent_id, self.broken_now(oracle)
        if oracle.turnover(agent, now_ms - 60_000) > self.turnover:
            found.append("turnover")
        if agent == AgentId("small"):
            worth = approval.order.quantity * (approval.order.limit_price or ZERO)
            found += ["gross of small"] if oracle.gross > self.small_gross else []
            found += ["order of small"] if worth > self.small_order else []
        return found


BOUNDS: Final = (
    Bounds("position", position=Decimal(42_000)),
    Bounds("gross", gross=Decimal(90_000), small_gross=Decimal(50_000)),
    Bounds("net", net=Decimal(80_000), reserved=Decimal(60_000)),
    Bounds("cash", cash=Decimal(60_000)),
    Bounds("counts", symbol_orders=4, desk_orders=8, unused=5, small_unused=2, small_order=Decimal(9_000)),
    Bounds("turnover", turnover=Decimal(30_000)),
    Bounds(
        "all",
        position=Decimal(42_000),
        gross=Decimal(90_000),
        net=Decimal(80_000),
        cash=Decimal(100_000),
        symbol_orders=6,
        desk_orders=12,
        unused=8,
        reserved=Decimal(60_000),
        turnover=Decimal(150_000),
        small_gross=Decimal(50_000),
        small_unused=3,
        small_order=Decimal(20_000),
    ),
)
