"""When the breaker trips by itself. A number that is None, in a file ``"off"``, switches its trigger off."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, cast

from pydantic import SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from trading.adapters.config import SectionModel

from .values import Amount, Bps, Count, Millis, Percent

OFF: Final = "off"


class BreakerLimits(SectionModel):
    """``[risk.limits.breaker]``. Reaching a number trips; the defaults are far from what a paper desk does by itself.

    Attributes:
        daily_loss_halt: quote lost by trading since 00:00 UTC; halts the desk (``daily_loss_max`` lets it only reduce).
        drawdown_pct: how far equity lies below its peak, percent; the desk may only reduce.
        loss_streak: losing orders of one agent in a row within ``loss_window_ms``; the agent may only reduce.
        spread_bps: spread of one book over its mid; the symbol may only reduce.
        range_bps, range_window_ms: highest over lowest mid or public print in the window; the symbol may only reduce.
        stale_ms: a symbol with a position or an open order has had no usable book for so long; it may only reduce.
        window_ms: how far back the counts below look.
        rejections: orders that the venue refused; halts the desk.
        denials: orders of one agent that risk denied while it could trade; halts the agent.
        orders, agent_orders: orders that execution opened, whoever asked; halt the desk, the agent.
        order_children: orders that execution opened for one decision or request; halts the desk.
        order_value: quote of the orders that execution opened, stops apart; halts the desk.
        orders_without_approval: orders for which risk holds no approval, since the start; halts the desk.
        differences: differences between ledger and venue in one reconciliation; the account may only reduce.
    """

    daily_loss_halt: Amount | None = Decimal(4_000)
    drawdown_pct: Percent | None = Decimal(20)
    loss_streak: Count | None = 20
    spread_bps: Bps | None = Decimal(1_000)
    range_bps: Bps | None = Decimal(500)
    range_window_ms: Millis = 60_000
    stale_ms: Millis | None = 30_000
    window_ms: Millis = 10_000
    rejections: Count | None = 50
    denials: Count | None = 300
    orders: Count | None = 3_000
    agent_orders: Count | None = 400
    order_children: Count | None = 300
    order_value: Amount | None = Decimal(2_000_000)
    orders_without_approval: Count | None = 1
    differences: Count | None = 1

    @model_validator(mode="before")
    @classmethod
    def _off_is_none(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, object]", data)  # TOML has no null
        return {name: None if value == OFF else value for name, value in given.items()}

    @model_serializer(mode="wrap")
    def _none_is_off(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo[object]
    ) -> dict[str, object]:
        data: dict[str, object] = handler(self)
        if info.mode == "json":  # a document, where a value that is left out would mean the default
            data.update({name: OFF for name in type(self).model_fields if getattr(self, name) is None})
        return data
