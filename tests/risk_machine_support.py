"""Several symbols on a desk, commits that hang or get lost, and an oracle that reads nothing but the raw logs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, Self

from mcp_servers.risk.assessment import Approved
from mcp_servers.risk.limits import RiskLimits
from mcp_servers.risk.orders import OrderRequest
from mcp_servers.risk.service import RiskService
from tests.risk_support import BINANCE, DEEP, USDT, Desk, open_desk, order, replace_parts
from trading.domain.approvals import Approval, Effect
from trading.domain.errors import LedgerUnavailable
from trading.domain.events import (
    AccountFunded,
    ApprovalEnded,
    EventEnvelope,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderFoundAbsent,
    OrderInitialized,
    OrderNotSent,
    OrderOutcomeUnknown,
    OrderRejected,
    OrderSubmitted,
    ReservationReleased,
    RiskApproved,
)
from trading.domain.identifiers import ApprovalId, Currency, OrderId, Symbol, VenueOrderId
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.proposals import OrderType
from trading.ports.ledger import Unit
from trading.testing.builders import build_book, build_instrument
from trading.testing.ledger import InMemoryLedger

ZERO: Final = Decimal(0)
FEE: Final = Decimal("0.001")
STEP: Final = Decimal("0.00001")
AGENTS: Final = ("steady", "small")
#: Best bid and ask of each symbol; prices stand still, so that a limit can only be passed by what was approved.
PRICES: Final = {
    Symbol("BTC/USDT"): (Decimal(60_000), Decimal(60_001)),
    Symbol("ETH/USDT"): (Decimal(3_000), Decimal("3000.10")),
    Symbol("SOL/USDT"): (Decimal(150), Decimal("150.02")),
}
SYMBOLS: Final = tuple(PRICES)
TERMINAL: Final = (OrderCanceled, OrderRejected, OrderExpired, OrderNotSent, OrderFoundAbsent)


def mid(symbol: Symbol) -> Decimal:
    bid, ask = PRICES[symbol]
    return (bid + ask) / 2


class Commit(StrEnum):
    """What becomes of a commit that hangs."""

    WRITTEN = "written"
    LOST = "lost"  # it never reached the database
    ANSWER_LOST = "answer lost"  # it is in the database and nobody was told


class GatedLedger(InMemoryLedger):
    """A ledger whose commits of answers hang, while ``gated``, until a test says what becomes of each.

    Attributes:
        waiting: one future for each hanging commit, in the order they came.
        answered: one event for each commit that is written and whose caller was not told yet.
    """

    gated = False
    hold_answers = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.waiting: list[asyncio.Future[Commit]] = []
        self.answered: list[asyncio.Event] = []

    async def commit(self, unit: Unit) -> Sequence[EventEnvelope]:
        if not (self.gated and any(claim.table == "requests" for claim in unit.claims)):
            return await super().commit(unit)
        gate = asyncio.get_running_loop().create_future()
        self.waiting.append(gate)
        outcome = await gate
        if outcome is Commit.LOST:
            raise LedgerUnavailable("lost on the way (injected)")
        committed = await super().commit(unit)
        if self.hold_answers:
            self.answered.append(told := asyncio.Event())
            await told.wait()
        if outcome is Commit.ANSWER_LOST:
            raise LedgerUnavailable("written, but the answer was lost (injected)")
        return committed

    def successor(self) -> GatedLedger:
        heir = GatedLedger(self._room, self._clock, self._ids)
        heir._take(self._store)
        return heir


async def open_wide_desk(limits: RiskLimits, cash: Decimal) -> Desk:
    """Return a started desk that trades three symbols, on a ledger that can hang."""
    desk = await open_desk(limits=limits, cash=str(cash), symbols=SYMBOLS, start=False)
    ledger = GatedLedger("risk", desk.clock, desk.ids)
    desk.ledger = ledger
    desk.parts = replace_parts(desk.parts, ledger=ledger)
    desk.risk = RiskService(desk.parts)
    for symbol in SYMBOLS:
        data_id = InstrumentId(BINANCE, symbol)
        desk.market.rules[data_id] = replace(
            build_instrument(venue="binance"), id=data_id, base=Currency(symbol.partition("/")[0])
        )
    refresh_books(desk)
    desk.pulse()
    await desk.risk.start()
    return desk


def refresh_books(desk: Desk) -> None:
    """Publish the same prices again, fresh and deep."""
    deep = DEEP[0][0][1]
    for symbol, (bid, ask) in PRICES.items():
        book = build_book([(str(bid), deep + "000")], [(str(ask), deep + "000")], now_ms=desk.clock.now_ms())
        data_id = InstrumentId(BINANCE, symbol)
        desk.market.books[data_id] = replace(book, instrument_id=data_id)


def wanted_order(agent: str, symbol: Symbol, kind: str, notional: int) -> OrderRequest:
    """Return an order of about that value; exits and plain sales are of the same form but for ``reduce_only``."""
    bid, ask = PRICES[symbol]
    amount = max(STEP, (Decimal(notional) / ask).quantize(STEP, rounding="ROUND_DOWN"))
    same: dict[str, Any] = {"agent_id": agent, "symbol": symbol, "amount": amount}
    match kind:
        case "market":
            return order(order_type=OrderType.MARKET, **same)
        case "sell" | "reduce":
            price = str(ask + Decimal("0.05"))
            return order(side=Side.SELL, limit_price=price, reduce_only=kind == "reduce", **same)
        case "passive":
            return order(limit_price=str(bid - Decimal("0.02")), **same)
        case _:
            return order(limit_price=str(ask), **same)


@dataclass
class Promise:
    """One approval that may still trade ``leaves`` base."""

    approval: Approval
    leaves: Decimal
    order_id: OrderId | None = None

    @property
    def symbol(self) -> Symbol:
        return self.approval.order.symbol

    @property
    def is_buy(self) -> bool:
        return self.approval.order.side is Side.BUY

    @property
    def price(self) -> Decimal:
        assert self.approval.order.limit_price is not None
        return self.approval.order.limit_price

    @property
    def increases(self) -> bool:
        return self.approval.effect is Effect.INCREASE


@dataclass
class Oracle:
    """The worst case, recomputed from the events of both ledgers; shares no code with the room it judges."""

    cash: Decimal = ZERO
    held: dict[Symbol, Decimal] = field(default_factory=lambda: dict.fromkeys(SYMBOLS, ZERO))
    open: dict[ApprovalId, Promise] = field(default_factory=dict[ApprovalId, Promise])
    approvals: dict[ApprovalId, Approval] = field(default_factory=dict[ApprovalId, Approval])
    unsent: set[ApprovalId] = field(default_factory=set[ApprovalId])
    released: list[ApprovalId] = field(default_factory=list[ApprovalId])

    @classmethod
    def of(cls, desk: Desk) -> Self:
        found = cls()
        for event in desk.ledger.events:
            if isinstance(event.payload, RiskApproved):
                found.promise(event.payload.approval)
            elif isinstance(event.payload, ReservationReleased):
                found.released.append(event.payload.approval_id)
        by_order: dict[OrderId, ApprovalId] = {}
        for event in desk.execution.events:
            found._happened(event, by_order)
        return found

    def promise(self, approval: Approval) -> None:
        """Count an approval from now on."""
        self.approvals[approval.approval_id] = approval
        self.open[approval.approval_id] = Promise(approval, approval.order.quantity)

    def _happened(self, envelope: EventEnvelope, by_order: dict[OrderId, ApprovalId]) -> None:
        match envelope.payload:
            case AccountFunded(amount=amount):
                self.cash += amount
            case OrderInitialized(order_id=order_id, approval_id=approval_id):
                by_order[order_id] = approval_id
                self.open[approval_id].order_id = order_id
            case OrderFilled(fill=fill):
                sign = 1 if fill.side is Side.BUY else -1
                symbol = fill.instrument_id.symbol
                self.held[symbol] += sign * fill.quantity
                self.cash -= sign * fill.quantity * fill.price
                if fill.fee_currency == USDT:
                    self.cash -= fill.fee
                else:
                    self.held[symbol] -= fill.fee
                promise = self.open[by_order[fill.order_id]]
                promise.leaves -= fill.quantity
                if promise.leaves == 0:
                    del self.open[by_order[fill.order_id]]
            case ApprovalEnded(approval_id=approval_id):
                self.open.pop(approval_id, None)
                self.unsent.add(approval_id)
            case event if isinstance(event, TERMINAL):
                self.open.pop(by_order[event.order_id], None)
            case _:
                pass

    # -- the worst case ---------------------------------------------------------------------------------------------

    def buys(self, symbol: Symbol) -> Decimal:
        return sum((each.leaves for each in self.open.values() if each.is_buy and each.symbol == symbol), ZERO)

    def sells(self, symbol: Symbol) -> Decimal:
        return sum((each.leaves for each in self.open.values() if not each.is_buy and each.symbol == symbol), ZERO)

    def worst(self, symbol: Symbol) -> Decimal:
        """Base that could be held, or owed, at worst."""
        held = self.held[symbol]
        return max(abs(held + self.buys(symbol)), abs(held - self.sells(symbol)))

    @property
    def gross(self) -> Decimal:
        return sum((self.worst(symbol) * mid(symbol) for symbol in SYMBOLS), ZERO)

    @property
    def net(self) -> Decimal:
        long = sum(((self.held[each] + self.buys(each)) * mid(each) for each in SYMBOLS), ZERO)
        short = sum(((self.held[each] - self.sells(each)) * mid(each) for each in SYMBOLS), ZERO)
        return max(abs(long), abs(short))

    @property
    def spendable(self) -> Decimal:
        """Cash left if every open buy fills at its limit and pays its fee."""
        return self.cash - _cost(self.open.values())

    def increases(self, agent: str = "", symbol: str = "") -> list[Promise]:
        """Open promises that add risk, of one agent or symbol if named."""
        return [
            each
            for each in self.open.values()
            if each.increases and agent in ("", each.approval.agent_id) and symbol in ("", each.symbol)
        ]

    def unused(self, agent: str) -> int:
        return sum(each.order_id is None for each in self.increases(agent))

    def reserved(self, agent: str) -> Decimal:
        return _cost(self.increases(agent))

    def turnover(self, agent: str, since_ms: int) -> Decimal:
        """Quote of approvals since then that were used or still may be; what lapsed unused may be forgotten."""
        return sum(
            (
                each.order.quantity * (each.order.limit_price or ZERO)
                for each in self.approvals.values()
                if each.agent_id == agent and each.issued_ms > since_ms and each.approval_id not in self.unsent
            ),
            ZERO,
        )


def _cost(promises: Iterable[Promise]) -> Decimal:
    return sum((each.leaves * each.price * (1 + FEE) for each in promises if each.is_buy), ZERO)


async def send(desk: Desk, item: Approved, *, known: bool) -> OrderId:
    """Let execution consume an approval; ``known`` False: the venue gave no answer."""
    if known:
        return await desk.consume(item)
    order_id = OrderId(f"order-{item.approval.approval_id}")
    await desk.write(
        OrderInitialized(
            order_id=order_id,
            approval_id=item.approval.approval_id,
            agent_id=item.approval.agent_id,
            effect=item.approval.effect,
            terms=item.approval.order,
        ),
        OrderSubmitted(order_id=order_id),
        OrderOutcomeUnknown(order_id=order_id, reason="timed out"),
    )
    return order_id


async def resolve(desk: Desk, order_id: OrderId, *, found: bool) -> None:
    """Let execution find out about an order of unknown outcome: it is working, or the venue never had it."""
    if found:
        await desk.write(OrderAccepted(order_id=order_id, venue_order_id=VenueOrderId(f"v-{order_id}")))
    else:
        await desk.write(OrderFoundAbsent(order_id=order_id, evidence="three times not found, no trade"))
