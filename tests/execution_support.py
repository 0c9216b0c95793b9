"""An execution room in memory: risk's ledger and key, a paper venue with faults, a clock under the test's control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from mcp_servers.execution.epochs import Ignored, Learned
from mcp_servers.execution.gate import GateRules
from mcp_servers.execution.service import ExecutionParts, ExecutionService
from mcp_servers.execution.walks import Outcome, Receipt, Refusal
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, seal
from trading.domain.approvals import (
    APPROVAL_PAYLOAD_TYPE,
    HEARTBEAT_PAYLOAD_TYPE,
    Approval,
    ApprovedOrder,
    Effect,
    Epoch,
    Heartbeat,
    TradingState,
)
from trading.domain.events import EventEnvelope, RiskApproved
from trading.domain.identifiers import Currency, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import OrderBook, Side
from trading.domain.orders import Order, OrderStatus
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.ports.ledger import EventDraft, Insert, Unit, Upsert
from trading.ports.venue import ExecutionVenue, VenueReport
from trading.testing.builders import (
    ACCOUNT,
    BTC_USDT,
    FIRST_EPOCH,
    INSTRUMENT_ID,
    PAPER,
    build_approval,
    build_approved_order,
    build_book,
)
from trading.testing.clock import ManualClock, SeededIds
from trading.testing.keys import make_test_signer
from trading.testing.ledger import InMemoryLedger
from trading.testing.venue import FaultyVenue, build_paper_venue

RISK = make_test_signer("risk")
PRICE_ID = InstrumentId(Venue("binance"), BTC_USDT)
OPENING = {Currency("USDT"): Decimal(100_000), Currency("BTC"): Decimal(1)}


class Prices:
    """The market as the test sets it."""

    def __init__(self, book: OrderBook) -> None:
        self.current: OrderBook | None = book

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the book of Binance's BTC/USDT."""
        return self.current if instrument_id == PRICE_ID else None


class Desk:
    """Everything around one execution service; ``restart`` builds a new one on the same facts."""

    def __init__(
        self, venue: ExecutionVenue | None = None, *, rules: Mapping[str, Any] | None = None, **parts: Any
    ) -> None:
        self.clock = ManualClock()
        self.ids = SeededIds(7)
        self.risk = InMemoryLedger("risk", self.clock, SeededIds(1))
        self.ledger = InMemoryLedger("execution", self.clock, SeededIds(2))
        self.paper = build_paper_venue(self.clock)
        self.venue = venue or FaultyVenue(self.paper)
        self.prices = Prices(build_book(now_ms=self.clock.now_ms()))
        self.rules = GateRules(
            mode=Mode.PAPER, account_id=ACCOUNT, venue=PAPER, key_id=RISK.key_id, **(dict(rules or {}))
        )
        self._parts: dict[str, Any] = {"answer_timeout_s": 0.02, "spacing_ms": 500, **parts}
        self.epoch = FIRST_EPOCH
        self.state = TradingState.ACTIVE
        self.counter = 0
        self.issued = 0
        self.service = self._build()

    @property
    def faulty(self) -> FaultyVenue:
        """The venue with its faults."""
        assert isinstance(self.venue, FaultyVenue)
        return self.venue

    def _build(self) -> ExecutionService:
        return ExecutionService(
            ExecutionParts(
                ledger=self.ledger,
                approvals=self.risk,
                venue=self.venue,
                market=self.prices,
                verifier=Ed25519Verifier.of(RISK.public_key),
                rules=self.rules,
                clock=self.clock,
                ids=self.ids,
                price_source={INSTRUMENT_ID: PRICE_ID},
                opening_balances=OPENING,
                quote=Currency("USDT"),
                **self._parts,
            )
        )

    async def start(self, *, heard: bool = True) -> Desk:
        """Start the service, with a market and a heartbeat of risk."""
        self.show(self.prices.current)
        await self.service.start()
        if heard:
            await self.beat()
        return self

    async def restart(self, *, heard: bool = True) -> None:
        """Forget everything in memory, as a crash does, and start again on the same ledgers and venue."""
        self.ledger = self.ledger.successor()
        self.service = self._build()
        await self.start(heard=heard)

    def show(self, book: OrderBook | None) -> None:
        """Make ``book`` the market, for the gate and the venue alike."""
        self.prices.current = book
        if book is not None:
            self.paper.on_book(replace(book, instrument_id=INSTRUMENT_ID))

    def refresh(self) -> None:
        """Publish the same market again, now."""
        book = self.prices.current
        assert book is not None
        self.show(replace(book, published_ts_ms=self.clock.now_ms(), sequence=book.sequence + 1))

    async def tick(self, ms: int) -> None:
        """Let time pass with a live market and a living risk."""
        self.clock.advance(ms)
        self.refresh()
        await self.beat()

    def heartbeat(self, **fields: Any) -> str:
        """Return a heartbeat signed now; fields override."""
        self.counter += 1
        signer = fields.pop("signer", RISK)
        beat = Heartbeat(
            **{
                "account_id": ACCOUNT,
                "epoch": self.epoch,
                "state": self.state,
                "counter": self.counter,
                "sent_ms": self.clock.now_ms(),
                "min_policy_version": 1,
                **fields,
            }
        )
        return seal(codec.canonical(beat), HEARTBEAT_PAYLOAD_TYPE, signer).to_json()

    async def beat(self, **fields: Any) -> Learned | Ignored:
        """Let risk be heard."""
        outcome = self.service.learn(self.heartbeat(**fields))
        await self.service.act_on_news()
        return outcome

    async def trip(self, state: TradingState = TradingState.HALTED) -> None:
        """Let risk trip the breaker and be heard."""
        self.epoch = Epoch(self.epoch.generation, self.epoch.counter + 1)
        self.state = state
        await self.beat()

    def approval(self, **fields: Any) -> Approval:
        """Return an approval of a small IOC buy, issued now; arguments as of ``build_approved_order`` override."""
        self.issued += 1
        approval_id = fields.pop("approval_id", f"approval-{self.issued}")
        changes = fields.pop("changes", {})
        order = fields.pop("order", None) or build_approved_order(
            approval_id=approval_id, **{name: fields.pop(name) for name in list(fields) if name in _ORDER_FIELDS}
        )
        options: dict[str, Any] = {"epoch": self.epoch, "now_ms": self.clock.now_ms(), **fields}
        return replace(build_approval(key_id=RISK.key_id, order=order, approval_id=approval_id, **options), **changes)

    async def issue(self, approval: Approval | None = None, *, envelope: str | None = None, **fields: Any) -> str:
        """Store an approval in risk's ledger and return its id."""
        approval = approval or self.approval(**fields)
        text = envelope or sealed(approval)
        row = {
            "approval_id": approval.approval_id,
            "request_id": approval.request_id,
            "principal": "local",
            "decision_id": None,
            "agent_id": approval.agent_id,
            "client_order_id": approval.order.client_order_id,
            "state": "open",
            "expires_ms": approval.expires_ms,
            "envelope": text,
            "created_ms": approval.issued_ms,
        }
        event = EventDraft(RiskApproved(approval=approval, envelope=text))
        await self.risk.commit(Unit(events=(event,), writes=(Insert("approvals", row),)))
        return approval.approval_id

    async def request_release(self, approval_id: str) -> None:
        """Let risk ask for the approval to be voided."""
        row = dict((await self.risk.rows("approvals", {"approval_id": approval_id}))[0])
        await self.risk.commit(Unit(writes=(Upsert("approvals", {**row, "state": "release_requested"}),)))

    async def follow_risk(self) -> None:
        """Let the service read what risk has written since."""
        for event in await self.risk.events_after(self.service.risk_seq):
            self.service.follow_risk(event)

    async def submit(self, approval_id: str) -> Outcome:
        """Submit one approval."""
        return (await self.service.submit([approval_id]))[0]

    async def order(self, approval_id: str) -> Order:
        """Submit one approval that must become an order."""
        outcome = await self.submit(approval_id)
        assert isinstance(outcome, Receipt), outcome
        return outcome.order

    async def refusal(self, approval_id: str) -> str:
        """Submit one approval that must be refused and return the code."""
        outcome = await self.submit(approval_id)
        assert isinstance(outcome, Refusal), outcome
        return outcome.code

    async def bought(self, quantity: str = "0.5") -> Order:
        """Return a filled buy."""
        order = await self.order(await self.issue(quantity=quantity))
        assert order.status is OrderStatus.FILLED
        return order

    async def resting(self, **fields: Any) -> Order:
        """Return a resting buy, far from the market."""
        options = {"limit_price": "59800", "time_in_force": TimeInForce.GTC, **fields}
        order = await self.order(await self.issue(**options))
        assert order.status is OrderStatus.ACCEPTED, order
        return order

    async def exit(self, quantity: str = "0.5", **fields: Any) -> str:
        """Return the id of an approved resting reduce-only sell."""
        options = {
            "side": Side.SELL,
            "quantity": quantity,
            "limit_price": "60200",
            "time_in_force": TimeInForce.GTC,
            "reduce_only": True,
            "effect": Effect.REDUCE,
            **fields,
        }
        return await self.issue(**options)

    def events(self, kind: type[Any] | None = None) -> list[Any]:
        """Return the payloads of execution's events, of one kind if given."""
        return [each.payload for each in self.ledger.events if kind is None or isinstance(each.payload, kind)]

    def of_order(self, order: Order) -> list[str]:
        """Return the types of the events about one order, in order."""
        return [each.event_type for each in self.ledger.events if _subject(each) == order.order_id]

    async def stored(self, order: Order) -> Order:
        """Return the order as the ledger's row holds it."""
        rows = await self.ledger.rows("orders", {"order_id": order.order_id})
        return codec.decode(Order, str(rows[0]["order_json"]))


_ORDER_FIELDS = frozenset(
    {
        "side",
        "quantity",
        "limit_price",
        "stop_price",
        "order_type",
        "time_in_force",
        "post_only",
        "reduce_only",
        "venue",
        "account_id",
    }
)


def sealed(approval: Approval, signer: Any = RISK) -> str:
    """Return the envelope of an approval."""
    return seal(codec.canonical(approval), APPROVAL_PAYLOAD_TYPE, signer).to_json()


def _subject(event: EventEnvelope) -> str | None:
    fill = getattr(event.payload, "fill", None)
    return fill.order_id if fill is not None else getattr(event.payload, "order_id", None)


__all__ = [
    "ACCOUNT",
    "BTC_USDT",
    "INSTRUMENT_ID",
    "OPENING",
    "RISK",
    "ApprovedOrder",
    "Desk",
    "OrderType",
    "VenueReport",
    "sealed",
]
