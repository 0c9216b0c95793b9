"""A risk room on ledgers in memory, and an execution room that only writes its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from mcp_servers.risk.assessment import Approved
from mcp_servers.risk.breaker_limits import BreakerLimits
from mcp_servers.risk.limits import RiskLimits, SymbolLimits
from mcp_servers.risk.orders import OrderRequest
from mcp_servers.risk.parts import RiskParts
from mcp_servers.risk.policies.pipeline import RULES, RuleFunction
from mcp_servers.risk.service import RiskService
from mcp_servers.risk.sign_off import Answer
from trading.domain.approvals import ApprovedOrder, Effect, Fate
from trading.domain.errors import Unavailable
from trading.domain.events import (
    AccountFunded,
    ApprovalEnded,
    DomainEvent,
    OrderAccepted,
    OrderCanceled,
    OrderFilled,
    OrderInitialized,
    OrderSubmitted,
)
from trading.domain.fills import Fill, Liquidity
from trading.domain.identifiers import (
    AccountId,
    AgentId,
    ApprovalId,
    Currency,
    DecisionId,
    OrderId,
    RequestId,
    Symbol,
    TradeId,
    Venue,
    VenueOrderId,
)
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import OrderBook, Side
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.domain.sizing import SizeUnit
from trading.domain.standing_exits import PROTECTION, ExitSlice, StandingExit
from trading.ports.ledger import EventDraft, Insert, Unit
from trading.testing.builders import ACCOUNT, BTC_USDT, PAPER, build_approved_order, build_book, build_instrument
from trading.testing.clock import ManualClock, SeededIds
from trading.testing.keys import make_test_signer
from trading.testing.ledger import InMemoryLedger

USDT = Currency("USDT")
BTC = Currency("BTC")
BINANCE = Venue("binance")
DATA_ID = InstrumentId(BINANCE, BTC_USDT)
DEEP = [("60000", "50"), ("59990", "50")], [("60001", "50"), ("60010", "50")]


class FakeMarket:
    """Books and rules that a test sets."""

    def __init__(self) -> None:
        self.books: dict[InstrumentId, OrderBook] = {}
        self.rules: dict[InstrumentId, Instrument] = {}

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        return self.books.get(instrument_id)

    def instrument(self, instrument_id: InstrumentId) -> Instrument | None:
        return self.rules.get(instrument_id)


class FakeSink:
    """Keeps heartbeats, or refuses them."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.down = False

    async def send(self, envelope: str) -> None:
        if self.down:
            raise Unavailable("the bus is down")
        self.sent.append(envelope)


def wide_limits(**changes: Any) -> RiskLimits:
    """Limits that nothing in a test meets by accident."""
    values: dict[str, Any] = {
        "symbols": {BTC_USDT: wide_symbol()},
        "gross_exposure_max": Decimal(10_000_000),
        "order_rate_per_s": 100_000,
        "order_burst": 100_000,
        "desk_rate_per_s": 100_000,
        "desk_burst": 100_000,
        "duplicate_window_ms": 0,
        "open_approvals_max": 100_000,
        "reserved_notional_max": Decimal(100_000_000),
        "undecided_notional_max": Decimal(1_000_000),
        "portfolio_max_age_ms": 5_000,
        "net_exposure_max": Decimal(10_000_000),
        "turnover_max": Decimal(100_000_000),
        "desk_turnover_max": Decimal(100_000_000),
        "desk_open_orders_max": 100_000,
        "venue_open_orders_max": 100_000,
        "entries_max": 100_000,
        "loss_streak_max": 100_000,
        "drawdown_pct_max": Decimal(100),
        "breaker": calm_breaker(),
    }
    return RiskLimits(**{**values, **changes})


def calm_breaker(**changes: Any) -> BreakerLimits:
    """A breaker that trips by itself for nothing but what a test turns on."""
    off: dict[str, Any] = {name: None for name in BreakerLimits.model_fields if not name.endswith("window_ms")}
    return BreakerLimits(**{**off, **changes})


def wide_symbol(**changes: Any) -> SymbolLimits:
    values: dict[str, Any] = {
        "order_quantity_max": Decimal(100),
        "order_notional_max": Decimal(1_000_000),
        "position_quantity_max": Decimal(100),
        "spread_bps_max": Decimal(9_000),
        "move_bps_max": Decimal(9_000),
        "symbol_open_orders_max": 100_000,
        "symbol_turnover_max": Decimal(100_000_000),
        "symbol_drift_max": Decimal(100_000_000),
    }
    return SymbolLimits(**{**values, **changes})


@dataclass
class Desk:
    """A risk service with everything it stands on."""

    clock: ManualClock
    ids: SeededIds
    market: FakeMarket
    sink: FakeSink
    ledger: InMemoryLedger
    execution: InMemoryLedger
    coordinator: InMemoryLedger
    parts: RiskParts
    risk: RiskService
    filled: dict[str, Decimal] = field(default_factory=dict)
    trades: int = 0

    async def restart(self, *, clean: bool = True, limits: RiskLimits | None = None) -> Desk:
        """Stop (or crash) and start again on the same facts."""
        if clean:
            await self.risk.stop()
        self.ledger = self.ledger.successor()
        self.parts = replace_parts(self.parts, ledger=self.ledger, limits=limits or self.parts.limits)
        self.risk = RiskService(self.parts)
        self.pulse()
        await self.risk.start()
        return self

    def pulse(self) -> None:
        """Let execution give a sign of life."""
        self.risk.hear_execution(
            sent_ms=self.clock.now_ms(), ledger_seq=len(self.execution.events), unresolved=0, safe=True
        )

    def price(self, bids: list[tuple[str, str]] | None = None, asks: list[tuple[str, str]] | None = None) -> None:
        """Publish a fresh book."""
        self.market.books[DATA_ID] = build_book(
            DEEP[0] if bids is None else bids, DEEP[1] if asks is None else asks, now_ms=self.clock.now_ms()
        )

    async def refresh(self) -> None:
        """Fresh book, heartbeat and ledger read."""
        self.price()
        self.pulse()
        await self.risk.live.follower.step()

    async def write(self, *events: DomainEvent, claims: Sequence[Insert] = ()) -> None:
        """Let execution commit events, and risk read them."""
        await self.execution.commit(Unit(events=tuple(EventDraft(event) for event in events), claims=tuple(claims)))
        while await self.risk.live.follower.step():
            pass

    async def ask(
        self,
        *orders: OrderRequest,
        request_id: str = "",
        principal: str = "local",
        decision_id: str | None = None,
    ) -> Answer:
        return await self.risk.request_approval(
            principal,
            RequestId(request_id or self.ids.new_id()),
            orders,
            None if decision_id is None else DecisionId(decision_id),
        )

    # -- what execution would do ------------------------------------------------------------------------------------

    async def consume(self, item: Approved) -> OrderId:
        approval = item.approval
        order_id = OrderId(f"order-{approval.approval_id}")
        claim = Insert(
            "approval_fates",
            {
                "approval_id": approval.approval_id,
                "fate": Fate.CONSUMED.value,
                "order_id": order_id,
                "at_ms": self.clock.now_ms(),
            },
        )
        await self.write(
            OrderInitialized(
                order_id=order_id,
                approval_id=approval.approval_id,
                agent_id=approval.agent_id,
                effect=approval.effect,
                terms=approval.order,
            ),
            OrderSubmitted(order_id=order_id),
            OrderAccepted(order_id=order_id, venue_order_id=VenueOrderId(f"v-{order_id}")),
            claims=[claim],
        )
        return order_id

    async def fill(
        self,
        item: Approved,
        quantity: str | Decimal,
        price: str = "60001",
        fee: str = "0",
        fee_currency: Currency = USDT,
    ) -> None:
        order, order_id = item.approval.order, OrderId(f"order-{item.approval.approval_id}")
        self.trades += 1
        total = self.filled[order_id] = self.filled.get(order_id, Decimal(0)) + Decimal(quantity)
        fill = Fill(
            trade_id=TradeId(f"t{self.trades}"),
            order_id=order_id,
            client_order_id=order.client_order_id,
            account_id=order.account_id,
            instrument_id=order.instrument_id,
            side=order.side,
            quantity=Decimal(quantity),
            price=Decimal(price),
            fee=Decimal(fee),
            fee_currency=fee_currency,
            liquidity=Liquidity.TAKER,
            venue_ts_ms=self.clock.now_ms(),
        )
        status = "filled" if total >= order.quantity else "partially_filled"
        await self.write(OrderFilled(fill=fill, status=status, filled=total))

    async def protect(
        self, found: StandingExit, quantity: str | Decimal, *, number: int = 1, terms: Any = None, **event: Any
    ) -> tuple[OrderId, ApprovalId]:
        """Let a stop of that exit be written down and rest at the venue."""
        used = ExitSlice(exit_id=found.exit_id, number=number)
        order_id = OrderId(f"stop-{used.approval_id}")
        opened = OrderInitialized(
            order_id=order_id,
            approval_id=used.approval_id,
            agent_id=PROTECTION,
            effect=Effect.REDUCE,
            terms=stop_terms(used, quantity, **(terms or {})),
            exit_slice=used,
        )
        await self.write(
            replace(opened, **event),
            OrderSubmitted(order_id=order_id),
            OrderAccepted(order_id=order_id, venue_order_id=VenueOrderId(f"v-{order_id}")),
        )
        return order_id, used.approval_id

    async def stop_fills(self, order_id: OrderId, quantity: str | Decimal, price: str = "56500") -> None:
        """Let a stop sell so much of its rest."""
        held = self.risk.portfolio.book.order(order_id)
        assert held is not None
        self.trades += 1
        total = self.filled[order_id] = self.filled.get(order_id, Decimal(0)) + Decimal(quantity)
        fill = Fill(
            trade_id=TradeId(f"t{self.trades}"),
            order_id=order_id,
            client_order_id=held.terms.client_order_id,
            account_id=held.terms.account_id,
            instrument_id=held.terms.instrument_id,
            side=held.terms.side,
            quantity=Decimal(quantity),
            price=Decimal(price),
            fee=Decimal(0),
            fee_currency=USDT,
            liquidity=Liquidity.TAKER,
            venue_ts_ms=self.clock.now_ms(),
        )
        status = "filled" if total >= held.terms.quantity else "partially_filled"
        await self.write(OrderFilled(fill=fill, status=status, filled=total))

    async def cancel(self, item: Approved) -> None:
        await self.write(OrderCanceled(order_id=OrderId(f"order-{item.approval.approval_id}"), reason="asked"))

    async def end(self, item: Approved, fate: Fate = Fate.LAPSED) -> None:
        await self.write(ApprovalEnded(approval_id=item.approval.approval_id, fate=fate, reason=""))

    async def hold(self, quantity: str) -> None:
        """Buy and fill, so that a position of that size exists."""
        answer = await self.ask(order(amount=quantity))
        await self.consume(answer.approved[0])
        await self.fill(answer.approved[0], quantity)


def replace_parts(parts: RiskParts, **changes: Any) -> RiskParts:
    return replace(parts, **changes)


def stop_terms(used: ExitSlice, quantity: str | Decimal, **changes: Any) -> ApprovedOrder:
    """Return a resting stop that sells, as the slice of an exit names it."""
    terms: dict[str, Any] = {
        "side": Side.SELL,
        "order_type": OrderType.STOP_LIMIT,
        "time_in_force": TimeInForce.GTC,
        "stop_price": "57000",
        "limit_price": "56000",
        "reduce_only": True,
        **changes,
    }
    return build_approved_order(approval_id=used.approval_id, quantity=str(quantity), **terms)


async def open_desk(
    *,
    limits: RiskLimits | None = None,
    cash: str = "1000000",
    rules: Sequence[RuleFunction] = RULES,
    start: bool = True,
    mode: Mode = Mode.PAPER,
    symbols: tuple[Symbol, ...] = (BTC_USDT,),
    **parts: Any,
) -> Desk:
    """Return a started desk with a fresh market, a funded account and a heartbeat of execution."""
    clock, ids = ManualClock(), SeededIds(1)
    market, sink = FakeMarket(), FakeSink()
    market.rules[DATA_ID] = build_instrument(venue="binance")
    ledger = InMemoryLedger("risk", clock, SeededIds(2))
    execution = InMemoryLedger("execution", clock, SeededIds(3))
    coordinator = InMemoryLedger("coordinator", clock, SeededIds(4))
    if cash != "0":
        funded = AccountFunded(account_id=ACCOUNT, currency=USDT, amount=Decimal(cash))
        await execution.commit(Unit(events=(EventDraft(funded),)))
    made = RiskParts(
        ledger=ledger,
        execution=execution,
        coordinator=coordinator,
        market=market,
        signer=make_test_signer("risk"),
        clock=clock,
        ids=ids,
        heartbeats=sink,
        limits=limits or wide_limits(),
        mode=mode,
        account_id=ACCOUNT,
        venue=PAPER,
        quote=USDT,
        symbols=symbols,
        data_of=lambda instrument_id: InstrumentId(BINANCE, instrument_id.symbol),
        rules=rules,
        **parts,
    )
    desk = Desk(clock, ids, market, sink, ledger, execution, coordinator, made, RiskService(made))
    desk.price()
    desk.pulse()
    if start:
        await desk.risk.start()
    return desk


def order(
    *,
    side: Side = Side.BUY,
    amount: str | Decimal = "0.01",
    order_type: OrderType = OrderType.LIMIT,
    limit_price: str | None = "60001",
    stop_price: str | None = None,
    unit: SizeUnit = SizeUnit.BASE,
    reduce_only: bool = False,
    post_only: bool = False,
    agent_id: str = "tester",
    symbol: str = BTC_USDT,
    account_id: str = ACCOUNT,
    time_in_force: TimeInForce = TimeInForce.GTC,
) -> OrderRequest:
    """Return a request for a small limit buy unless told otherwise."""
    return OrderRequest(
        symbol=Symbol(symbol),
        side=side,
        order_type=order_type,
        amount=Decimal(amount),
        unit=unit,
        limit_price=None
        if limit_price is None or order_type in (OrderType.MARKET, OrderType.STOP)
        else Decimal(limit_price),
        stop_price=None if stop_price is None else Decimal(stop_price),
        time_in_force=time_in_force,
        post_only=post_only,
        reduce_only=reduce_only,
        venue=PAPER,
        account_id=AccountId(account_id),
        agent_id=AgentId(agent_id),
    )


def sell(amount: str | Decimal = "0.01", **changes: Any) -> OrderRequest:
    return order(**{"side": Side.SELL, "amount": amount, "limit_price": "60000", **changes})


def market(amount: str | Decimal = "0.01", **changes: Any) -> OrderRequest:
    return order(**{"amount": amount, "order_type": OrderType.MARKET, **changes})


def codes(answer: Answer) -> set[str]:
    """The codes of every failed rule in the answer."""
    return {failure.rule.value for denial in answer.denied for failure in denial.failures}
