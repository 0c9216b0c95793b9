"""A place that executes orders. The paper venue and every exchange adapter implement this."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from trading.domain.approvals import ApprovedOrder
from trading.domain.fills import Liquidity
from trading.domain.identifiers import (
    ClientOrderId,
    Currency,
    TradeId,
    Venue,
    VenueOrderId,
)
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Side
from trading.domain.portfolio import Balance


class VenueOrderState(StrEnum):
    """What a venue says of an order."""

    OPEN = "open"
    REJECTED = "rejected"
    FILLED = "filled"
    CANCELED = "canceled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueTrade:
    """One execution as the venue reports it; fields as in ``trading.domain.fills.Fill``."""

    trade_id: TradeId
    client_order_id: ClientOrderId
    venue_order_id: VenueOrderId
    instrument_id: InstrumentId
    side: Side
    quantity: Decimal
    price: Decimal
    fee: Decimal
    fee_currency: Currency
    liquidity: Liquidity
    venue_ts_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueReport:
    """An order as the venue sees it at one moment.

    Attributes:
        filled: base, the venue's cumulative quantity.
        trades: the executions known with this report; may repeat earlier ones (dedupe by trade id).
        reason: why it was rejected, canceled or expired; empty otherwise.
    """

    client_order_id: ClientOrderId
    venue_order_id: VenueOrderId
    instrument_id: InstrumentId
    state: VenueOrderState
    filled: Decimal
    trades: tuple[VenueTrade, ...] = ()
    triggered: bool = False
    reason: str = ""
    venue_ts_ms: int


@dataclass(frozen=True, slots=True)
class VenueQuote:
    """The best prices at the venue itself, for closing when the feed is silent.

    Attributes:
        bid, ask: quote per base; None when that side is empty.
        as_of_ms: the venue's clock when it last knew its market to be so; its age says whether to believe it.
    """

    bid: Decimal | None
    ask: Decimal | None
    as_of_ms: int


@dataclass(frozen=True, slots=True)
class PreparedOrder:
    """An order ready for the wire: throttled, signed, on a warm connection.

    Attributes:
        order: what risk approved.
        wire_quantity, wire_price: parsed back from the bytes that will be sent, for the gate to compare.
        deadline_ms: the venue refuses the request after this time, where it supports that.
        request: the adapter's own handle.
    """

    order: ApprovedOrder
    wire_quantity: Decimal
    wire_price: Decimal | None
    deadline_ms: int
    request: object


class ExecutionVenue(Protocol):
    """Sends orders. Adapters raise only Retryable, NonRetryable or OutcomeUnknown."""

    @property
    def name(self) -> Venue:
        """The venue's name."""
        ...

    async def instruments(self) -> list[Instrument]:
        """Return the rules of everything that can be traded here."""
        ...

    async def prepare(self, order: ApprovedOrder, *, deadline_ms: int) -> PreparedOrder:
        """Do everything that may wait, short of sending.

        Raises:
            NonRetryable: this venue cannot carry such an order (for example no client order id on the wire).
            Retryable: rate budget or connection is not there now.
        """
        ...

    def send(self, prepared: PreparedOrder) -> Awaitable[VenueReport]:
        """Hand the request to the transport before returning; await the answer afterwards.

        Not a coroutine function on purpose: between the caller's last check and this call nothing else can run.

        Raises (from the awaitable):
            NonRetryable: a definitive refusal. OutcomeUnknown: anything else that went wrong.
        """
        ...

    async def cancel(self, client_order_id: ClientOrderId) -> VenueReport:
        """Ask for a cancel and return the order afterwards; it may have filled first."""
        ...

    async def query(self, client_order_id: ClientOrderId) -> VenueReport | None:
        """Return the order, or None on a *successful* "not found".

        Raises:
            Retryable or OutcomeUnknown: the venue did not answer; that is never a "not found".
        """
        ...

    async def open_orders(self) -> list[VenueReport]:
        """Return every working order of the account, conditional ones included."""
        ...

    async def trades_since(self, since_ms: int) -> list[VenueTrade]:
        """Return the account's executions from that venue time on, oldest first."""
        ...

    async def quote(self, instrument_id: InstrumentId) -> VenueQuote | None:
        """Return the best bid and ask at the venue, or None if it has no market in the instrument.

        Raises:
            Retryable or OutcomeUnknown: the venue did not answer.
        """
        ...

    async def balances(self) -> dict[Currency, Balance]:
        """Return the account's balances."""
        ...

    def reports(self) -> AsyncIterator[VenueReport]:
        """Yield unsolicited changes of orders: fills, cancels, expiries, triggers; at least once."""
        ...
