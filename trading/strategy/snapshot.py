"""What an agent looks at: one instrument's market and the account's share in it, at one instant."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from trading.domain.identifiers import AccountId
from trading.domain.instruments import Instrument
from trading.domain.market_data import Candle, OrderBook
from trading.domain.money import multiply


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSnapshot:
    """Everything that a rule may use. Two equal snapshots always give the same answer.

    Attributes:
        instrument: rules of the instrument orders are for (the order venue's).
        book: the market that prices it.
        candles: closed, oldest first, of one interval.
        held: base, >= 0; all of the account's, also what an order at the venue holds.
        equity: quote, the account's worth.
        cash: quote, free to spend.
        book_age_ms: time since the book was published.
        account_age_ms: time since held, equity and cash were read.
    """

    account_id: AccountId
    instrument: Instrument
    book: OrderBook
    candles: tuple[Candle, ...]
    held: Decimal
    equity: Decimal
    cash: Decimal
    book_age_ms: int
    account_age_ms: int

    @property
    def exposure(self) -> Decimal | None:
        """Worth of the position in quote at the mid price; None without a two-sided book."""
        mid = self.book.mid
        return None if mid is None else multiply(self.held, mid)
