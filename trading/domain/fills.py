"""What was really traded."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from trading.domain.identifiers import (
    AccountId,
    ClientOrderId,
    Currency,
    OrderId,
    TradeId,
)
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import multiply


class Liquidity(StrEnum):
    """Whether the fill added liquidity to the book or took it; decides the fee."""

    MAKER = "maker"
    TAKER = "taker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """One execution of one of our orders. (venue, trade_id) is unique and applies once.

    Attributes:
        quantity: base, > 0.  price: quote per base, > 0.
        fee: in ``fee_currency``; negative is a rebate.
        venue_ts_ms: the venue's clock.
    """

    trade_id: TradeId
    order_id: OrderId
    client_order_id: ClientOrderId
    account_id: AccountId
    instrument_id: InstrumentId
    side: Side
    quantity: Decimal
    price: Decimal
    fee: Decimal
    fee_currency: Currency
    liquidity: Liquidity
    venue_ts_ms: int

    @property
    def notional(self) -> Decimal:
        """Quantity times price in quote, exactly."""
        return multiply(self.quantity, self.price)
