"""A desk whose entries come with a signed exit, and a market that the test moves for feed and venue apart."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from mcp_servers.execution.protection.posts import Post
from mcp_servers.execution.protection.rules import ProtectionRules
from mcp_servers.execution.protection.stop_loss import StopLoss
from tests.execution_support import RISK, Desk
from trading.adapters import codec
from trading.adapters.signing import seal
from trading.domain.approvals import Approval, Effect
from trading.domain.events import AlarmRaised, ExitSigned, OrderInitialized
from trading.domain.identifiers import ApprovalId, KeyId
from trading.domain.market_data import OrderBook, Side
from trading.domain.orders import Order
from trading.domain.proposals import Mode
from trading.domain.standing_exits import PROTECTION, STANDING_EXIT_PAYLOAD_TYPE, ExitTerms, StandingExit, StopPlan
from trading.ports.ledger import EventDraft, Insert, Unit
from trading.testing.builders import ACCOUNT, BTC_USDT, INSTRUMENT_ID, PAPER, build_book

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
D = Decimal


def plan(**fields: Any) -> StopPlan:
    """Return a plan with a fixed stop 5 % away; fields override."""
    return StopPlan(**{"stop_bps": D(500), **fields})


class GuardedDesk(Desk):
    """A desk whose risk signs an exit with every entry.

    Args:
        native: whether stops rest at the venue.
        plan: of every exit.
        floor: of every exit that sells.
    """

    def __init__(
        self, *, native: bool = False, plan: StopPlan | None = None, floor: str = "30000", **options: Any
    ) -> None:
        rules = replace(ProtectionRules(native=native, withdraw_s=0.05), **options.pop("protection", {}))
        super().__init__(protection=rules, **options)
        self.plan = plan or StopPlan(stop_bps=D(500))
        self.floor = D(floor)
        self.life_ms = DAY_MS

    async def start(self, *, heard: bool = True) -> GuardedDesk:
        """Start the service."""
        await super().start(heard=heard)
        return self

    @property
    def stops(self) -> StopLoss:
        """The manager."""
        return self.service.stop_loss

    @property
    def post(self) -> Post:
        """What is known of the protection of BTC/USDT."""
        post = self.stops.post(INSTRUMENT_ID)
        assert post is not None
        return post

    @property
    def stop(self) -> Decimal | None:
        """Where the stop lies."""
        guard = self.post.open_guard
        return None if guard is None else guard.stop_price

    @property
    def held(self) -> Decimal:
        """The position."""
        position = self.service.lifecycle.book.positions.get(INSTRUMENT_ID)
        return D(0) if position is None else position.quantity

    def terms(self, side: Side = Side.SELL, **fields: Any) -> ExitTerms:
        """Return terms as risk would sign them now; fields override."""
        return replace(
            ExitTerms(side=side, floor=self.floor, plan=self.plan, expires_ms=self.clock.now_ms() + self.life_ms),
            **fields,
        )

    def approval(self, **fields: Any) -> Approval:
        """Return an approval; one that can add risk comes with an exit unless ``exit_terms`` says otherwise."""
        terms = fields.pop("exit_terms", self.terms())
        approval = super().approval(**fields)
        if approval.effect is Effect.REDUCE:
            return approval
        if approval.order.side is Side.SELL and terms is not None and terms.side is Side.SELL:
            terms = replace(terms, side=Side.BUY, floor=D(120_000))
        return replace(approval, standing_exit=terms)

    async def sign_exit(self, signer: Any = RISK, *, followed: bool = True, **fields: Any) -> StandingExit:
        """Let risk renew the exit, and the room follow unless it is not running."""
        self.issued += 1
        options = {"exit_id": ApprovalId(f"exit-{self.issued}"), "mode": Mode.PAPER, "venue": PAPER, **fields}
        found = StandingExit(
            **{
                "account_id": ACCOUNT,
                "symbol": BTC_USDT,
                "terms": self.terms(),
                "policy_version": 1,
                "issued_ms": self.clock.now_ms(),
                "key_id": KeyId(signer.key_id),
                **options,
            }
        )
        text = seal(codec.canonical(found), STANDING_EXIT_PAYLOAD_TYPE, signer).to_json()
        row = {
            "exit_id": found.exit_id,
            "venue": found.venue,
            "symbol": found.symbol,
            "state": "current",
            "envelope": text,
            "issued_ms": found.issued_ms,
            "expires_ms": found.terms.expires_ms,
        }
        event = EventDraft(ExitSigned(exit=found, envelope=text))
        await self.risk.commit(Unit(events=(event,), writes=(Insert("standing_exits", row),)))
        if followed:
            await self.follow_risk()
        return found

    async def follow_risk(self) -> None:
        """Let the service read what risk has written since."""
        for event in await self.risk.events_after(self.service.risk_seq):
            self.service.follow_risk(event)
            await self.stops.follow(event)

    def price(self, bid: str, *, feed: bool = True, venue: bool = True, depth: str = "20") -> OrderBook:
        """Move the market to a bid, with the ask one above it, in the feed, at the venue or both."""
        last = self.prices.current
        ask = str(D(bid) + 1)
        book = build_book(
            [(bid, depth)],
            [(ask, depth)],
            now_ms=self.clock.now_ms(),
            sequence=1 if last is None else last.sequence + 1,
        )
        ours = replace(book, instrument_id=INSTRUMENT_ID)
        if venue:
            self.paper.on_book(ours)
        if feed:
            self.prices.current = book
            self.stops.on_book(ours)
        return book

    async def look(self, ms: int = 0) -> None:
        """Let time pass, then look at the position as the room does when something has happened."""
        self.clock.advance(ms)
        await self.take_reports()
        await self.stops.attend(INSTRUMENT_ID)

    async def take_reports(self) -> None:
        """Hear what the venue did unasked."""
        await self.service.reconciler.run()

    async def long(self, quantity: str = "0.5", **fields: Any) -> Order:
        """Return a filled buy of a position that is looked after."""
        order = await self.order(await self.issue(quantity=quantity, **fields))
        await self.look()
        return order

    def protective(self) -> list[Order]:
        """Return the protective orders that are open."""
        orders = self.service.lifecycle.book.open_orders.values()
        return [order for order in orders if order.agent_id == PROTECTION]

    def slices(self) -> list[OrderInitialized]:
        """Return the protective orders that were ever made."""
        return [event for event in self.events(OrderInitialized) if event.exit_slice is not None]

    def alarms(self) -> list[str]:
        """Return the codes of all alarms, in order."""
        return [event.code for event in self.events(AlarmRaised)]
