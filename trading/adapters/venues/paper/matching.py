"""The matching core: pure, deterministic, no clock, no randomness, no I/O.

It is fed public books and prints and our requests, each with the time it happens, and returns what changed. The
same inputs always give the same outputs. How liquidity is taken is stated in ``book``; how resting orders fill:

- A resting order joins behind everything visible at its price (``ahead``). Our own earlier orders are before it.
- A public print at its price takes from those ahead first, then fills us. A print through its price means that we
  would have been hit first: we fill at our price, up to the print's quantity.
- When the level shrinks without a print we assume those behind us left: ``ahead`` is only capped at what is still
  there. A print that arrives late, not newer than that book, first uses up the cap it explains.
- When the public book crosses our price, what crosses would have met us: we fill at our price as maker, and take
  what crossed. A crossed or locked public book is a fault of the feed and is ignored.
- An order never meets our own: the newest is cancelled where it would (self-trade prevention).
- A buy stop triggers when a print or the best ask is at or above it, a sell stop when a print or the best bid is
  at or below it, and then acts like a market or limit order that has just arrived. Prints from before an order (a
  venue repeats some with every connection) neither fill nor trigger it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from trading.adapters.venues.paper.accounts import Accounts
from trading.adapters.venues.paper.book import Plan
from trading.adapters.venues.paper.market import Market
from trading.adapters.venues.paper.orders import PaperOrder, Refusal, Step
from trading.adapters.venues.paper.rules import (
    FEES_IN_QUOTE,
    FeeSchedule,
    affordable,
    check_form,
    check_notional,
    plan_cost,
)
from trading.domain.approvals import ApprovedOrder
from trading.domain.errors import ConfigurationError
from trading.domain.fills import Liquidity
from trading.domain.identifiers import AccountId, ClientOrderId, Currency, Symbol, TradeId, VenueOrderId
from trading.domain.instruments import Instrument
from trading.domain.market_data import OrderBook, Side, TradePrint
from trading.domain.money import ZERO, add, multiply
from trading.domain.proposals import TimeInForce
from trading.ports.venue import VenueOrderState, VenueQuote, VenueTrade


class PaperExchange:
    """One account trading on public books.

    Args:
        instruments: the rules of everything tradable here.
        account_id: orders of any other account are refused.
        accounts: balances to start from.
        fees: how fees are taken.
        id_prefix: makes venue order ids and trade ids unique over restarts.
    """

    def __init__(
        self,
        instruments: Iterable[Instrument],
        account_id: AccountId,
        accounts: Accounts,
        *,
        fees: FeeSchedule = FEES_IN_QUOTE,
        id_prefix: str = "p",
    ) -> None:
        self.accounts = accounts
        self.orders: dict[ClientOrderId, PaperOrder] = {}
        self.working: dict[ClientOrderId, PaperOrder] = {}
        self.trades: list[VenueTrade] = []
        self._account_id = account_id
        self._fees = fees
        self._markets: Mapping[Symbol, Market] = {item.symbol: Market(item) for item in instruments}
        self._id_prefix = id_prefix
        self._orders_made = 0
        self._trades_made = 0

    @property
    def instruments(self) -> list[Instrument]:
        """Everything that can be traded here."""
        return [market.instrument for market in self._markets.values()]

    def submit(self, order: ApprovedOrder, now_ms: int, *, deadline_ms: int | None = None) -> Step:
        """Take an order; its client order id is remembered for ever, refused or not.

        An id that is already known changes nothing, whatever else the order says: look it up in ``orders``.

        Args:
            order: what was sent.
            now_ms: the venue's clock on arrival.
            deadline_ms: refuse the order when it arrives after this time.
        """
        step = Step(now_ms)
        if order.client_order_id in self.orders:
            return step
        self._orders_made += 1
        paper = PaperOrder(
            terms=order,
            venue_order_id=VenueOrderId(f"{self._id_prefix}-o{self._orders_made}"),
            arrival=self._orders_made,
            lock_currency=Currency(""),
            created_ms=now_ms,
            updated_ms=now_ms,
        )
        self.orders[order.client_order_id] = paper
        step.created.append(paper)
        late = deadline_ms is not None and now_ms > deadline_ms
        refusal = Refusal.DEADLINE_PASSED if late else self._enter(paper, step)
        if refusal is not None:
            paper.state, paper.reason = VenueOrderState.REJECTED, refusal
        elif paper.state is VenueOrderState.OPEN:
            self.working[order.client_order_id] = paper
        return step

    def cancel(self, client_order_id: ClientOrderId, now_ms: int) -> Step:
        """Cancel an order if it is working; an order that is over, or unknown, is not changed."""
        step = Step(now_ms)
        order = self.working.get(client_order_id)
        if order is not None:
            self._end(order, VenueOrderState.CANCELED, Refusal.CANCEL_REQUESTED, step)
        return step

    def on_book(self, book: OrderBook, now_ms: int) -> Step:
        """Take in a public book; its symbol decides, its venue name does not."""
        step = Step(now_ms)
        market = self._markets.get(book.instrument_id.symbol)
        if market is None or not market.update(book):
            return step
        market.seen_ms = now_ms
        if market.has_own_orders:
            for side in Side:
                self._fill_crossed(market, side, step)
            self._trigger(market, market.stops_hit_by_book(), step)
        return step

    def on_trade(self, trade: TradePrint, now_ms: int) -> Step:
        """Take in a public print; its symbol decides, its venue name does not."""
        step = Step(now_ms)
        market = self._markets.get(trade.instrument_id.symbol)
        if market is None or not market.has_own_orders or not market.has_book:
            return step
        for order, quantity in market.fills_by_print(trade):
            self._fill(market, order, quantity, order.terms.limit_price or trade.price, Liquidity.MAKER, step)
            self._settle_end(market, order, step)
        self._trigger(market, market.stops_hit_by_print(trade), step)
        return step

    def quote(self, symbol: Symbol) -> VenueQuote | None:
        """Return the best prices that an order would meet now; None before the first book."""
        market = self._markets.get(symbol)
        if market is None or not market.has_book:
            return None
        bid, ask = (market.opposite(side).best() for side in (Side.SELL, Side.BUY))
        return VenueQuote(bid, ask, market.seen_ms)

    # Entering -------------------------------------------------------------------------------------------------

    def _enter(self, order: PaperOrder, step: Step) -> Refusal | None:
        terms = order.terms
        market = self._markets.get(terms.symbol)
        if market is None or terms.venue != market.instrument.venue:
            return Refusal.UNKNOWN_SYMBOL
        if terms.account_id != self._account_id:
            return Refusal.UNKNOWN_ACCOUNT
        refusal = check_form(terms, market.instrument)
        if refusal is None and not market.has_book:
            refusal = Refusal.NO_MARKET
        if refusal is None:
            refusal = check_notional(terms, market.instrument, market.opposite(terms.side).best())
        if refusal is None:
            refusal = self._check_reduces(terms, market.instrument)
        if refusal is not None:
            return refusal
        order.met_ts_ms = market.book_ts_ms
        order.lock_currency = market.instrument.quote if terms.side is Side.BUY else market.instrument.base
        if order.waits_for_trigger:
            return self._enter_stop(market, order)
        return self._enter_now(market, order, step)

    def _check_reduces(self, terms: ApprovedOrder, instrument: Instrument) -> Refusal | None:
        """A spot account has no short side: only a sale of what is held and not already for sale reduces."""
        if not terms.reduce_only:
            return None
        if terms.side is Side.SELL and terms.quantity <= self.accounts.free(instrument.base):
            return None
        return Refusal.REDUCE_ONLY_WOULD_INCREASE

    def _enter_stop(self, market: Market, order: PaperOrder) -> Refusal | None:
        if market.is_triggered(order):
            return Refusal.STOP_WOULD_TRIGGER
        return self._rest(market, order)

    def _enter_now(self, market: Market, order: PaperOrder, step: Step) -> Refusal | None:
        plan = market.plan(order)
        terms = order.terms
        if terms.post_only and (plan.fills or plan.meets_self):
            return Refusal.POST_ONLY_WOULD_TAKE
        if not self._can_pay(market, order, plan):
            return Refusal.INSUFFICIENT_FUNDS
        self._execute(market, order, plan, step)
        return None

    def _can_pay(self, market: Market, order: PaperOrder, plan: Plan) -> bool:
        terms = order.terms
        if terms.side is Side.SELL:
            return terms.quantity <= self.accounts.free(market.instrument.base)
        rate = self._fees.cost_rate(market.instrument)
        if terms.limit_price is None:
            return plan_cost(plan, rate) <= self.accounts.free(market.instrument.quote)
        return self._hold_for(market, order) <= self.accounts.free(market.instrument.quote)

    def _execute(self, market: Market, order: PaperOrder, plan: Plan, step: Step) -> None:
        """Carry out a plan, then end or rest what is left."""
        terms = order.terms
        if terms.time_in_force is TimeInForce.FOK and plan.filled < terms.quantity:
            self._end(order, VenueOrderState.CANCELED, Refusal.FOK_NOT_FILLABLE, step)
            return
        ladder = market.opposite(terms.side)
        for price, quantity in plan.fills:
            ladder.take(price, quantity)
            self._fill(market, order, quantity, price, Liquidity.TAKER, step)
        if not order.leaves:
            self._end(order, VenueOrderState.FILLED, None, step)
        elif plan.meets_self:
            self._end(order, VenueOrderState.CANCELED, Refusal.SELF_TRADE, step)
        elif terms.limit_price is None or terms.time_in_force is not TimeInForce.GTC:
            self._end(order, VenueOrderState.CANCELED, Refusal.IOC_REMAINDER, step)
        else:
            self._rest(market, order)

    def _rest(self, market: Market, order: PaperOrder) -> Refusal | None:
        hold = self._hold_for(market, order)
        if hold > self.accounts.free(order.lock_currency):
            return Refusal.INSUFFICIENT_FUNDS
        self.accounts.lock(order.lock_currency, hold)
        order.locked = hold
        market.rest(order)
        return None

    def _hold_for(self, market: Market, order: PaperOrder) -> Decimal:
        """Return what must be held so that the rest of the order can always be paid."""
        terms = order.terms
        if terms.side is Side.SELL:
            return order.leaves
        price = terms.limit_price or terms.stop_price or ZERO
        return multiply(multiply(order.leaves, price), self._fees.cost_rate(market.instrument))

    # Filling --------------------------------------------------------------------------------------------------

    def _fill(
        self, market: Market, order: PaperOrder, quantity: Decimal, price: Decimal, liquidity: Liquidity, step: Step
    ) -> None:
        instrument, terms = market.instrument, order.terms
        fee, fee_currency = self._fees.fee(instrument, terms.side, quantity, price, liquidity)
        self._trades_made += 1
        trade = VenueTrade(
            trade_id=TradeId(f"{self._id_prefix}-t{self._trades_made}"),
            client_order_id=terms.client_order_id,
            venue_order_id=order.venue_order_id,
            instrument_id=terms.instrument_id,
            side=terms.side,
            quantity=quantity,
            price=price,
            fee=fee,
            fee_currency=fee_currency,
            liquidity=liquidity,
            venue_ts_ms=step.at_ms,
        )
        order.trades.append(trade)
        order.filled = add(order.filled, quantity)
        order.updated_ms = step.at_ms
        self.trades.append(trade)
        self.accounts.settle(trade, instrument.base, instrument.quote)
        step.trades.append(trade)
        step.touch(order)

    def _fill_crossed(self, market: Market, side: Side, step: Step) -> None:
        """Fill our orders on ``side`` that the public book has crossed, in priority, at their own price."""
        ladder, resting = market.opposite(side), market.resting[side]
        while (order := resting.first()) is not None:
            plan = ladder.plan(order.leaves, order.terms.limit_price, None)
            if not plan.fills:
                return
            for price, quantity in plan.fills:
                ladder.take(price, quantity)
            price = order.terms.limit_price or plan.fills[0].price
            self._fill(market, order, plan.filled, price, Liquidity.MAKER, step)
            self._settle_end(market, order, step)

    def _settle_end(self, market: Market, order: PaperOrder, step: Step) -> None:
        """After a resting order was filled: end it, or hold only what its rest needs."""
        if not order.leaves:
            self._end(order, VenueOrderState.FILLED, None, step)
            return
        self._unlock(order)
        order.locked = self._hold_for(market, order)
        self.accounts.lock(order.lock_currency, order.locked)

    def _trigger(self, market: Market, hit: list[PaperOrder], step: Step) -> None:
        """Let triggered stops act, in the order in which they arrived."""
        for order in hit:
            market.unrest(order)
            self._unlock(order)
            order.triggered = True
            order.updated_ms, order.met_ts_ms = step.at_ms, market.book_ts_ms
            step.touch(order)
            plan = market.plan(order)
            if order.terms.post_only and (plan.fills or plan.meets_self):
                self._end(order, VenueOrderState.CANCELED, Refusal.POST_ONLY_WOULD_TAKE, step)
                continue
            if order.terms.limit_price is None and order.terms.side is Side.BUY:
                # The price may have run past what was held: buy what the account can pay, cancel the rest.
                funds = self.accounts.free(market.instrument.quote)
                plan = affordable(plan, funds, self._fees.cost_rate(market.instrument), market.instrument)
            self._execute(market, order, plan, step)

    # Ending ---------------------------------------------------------------------------------------------------

    def _end(self, order: PaperOrder, state: VenueOrderState, reason: Refusal | None, step: Step) -> None:
        if order.is_kept:
            self._markets[order.terms.symbol].unrest(order)
        self._unlock(order)
        self.working.pop(order.client_order_id, None)
        order.state, order.updated_ms = state, step.at_ms
        order.reason = reason or ""
        step.touch(order)

    def _unlock(self, order: PaperOrder) -> None:
        if order.locked:
            self.accounts.unlock(order.lock_currency, order.locked)
            order.locked = ZERO

    # Restoring ------------------------------------------------------------------------------------------------

    def restore(self, order: PaperOrder) -> None:
        """Put back an order from the journal, in the order of arrival and before any other request.

        Its place in the queue is not known after an absence: it counts as last until a book is seen, and prints from
        before that book pass it by.

        Raises:
            ConfigurationError: it is open in an instrument that is not offered.
        """
        self._orders_made = max(self._orders_made, order.arrival)
        self.orders[order.client_order_id] = order
        if order.state is not VenueOrderState.OPEN:
            return
        market = self._markets.get(order.terms.symbol)
        if market is None:
            raise ConfigurationError(
                f"an open paper order is in {order.terms.symbol}, which this venue does not offer any more",
                code="JOURNAL_INSTRUMENT",
            )
        bought = order.terms.side is Side.BUY
        order.lock_currency = market.instrument.quote if bought else market.instrument.base
        order.locked = self._hold_for(market, order)
        self.accounts.lock(order.lock_currency, order.locked)
        self.working[order.client_order_id] = order
        market.rest(order)

    def restore_trade(self, trade: VenueTrade) -> None:
        """Put back a trade from the journal: history and balances; orders carry their own fills."""
        self._trades_made += 1
        self.trades.append(trade)
        base, quote = trade.instrument_id.symbol.split("/")
        self.accounts.settle(trade, Currency(base), Currency(quote))
