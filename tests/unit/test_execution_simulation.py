"""A seeded desk on a venue that loses, delays, doubles and refuses, with trips, restarts and rivals in between.

The venue's own book is the oracle: at most one venue order per approval, no order without an approval, and once
everything has come to rest the ledger equals the venue.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import pytest

from tests.execution_support import Desk
from trading.domain.accounts import AccountBook
from trading.domain.approvals import ApprovedOrder, Epoch, TradingState
from trading.domain.errors import TradingError
from trading.domain.events import OrderInitialized
from trading.domain.identifiers import ApprovalId, client_order_id_for
from trading.domain.market_data import Side
from trading.domain.orders import TERMINAL
from trading.domain.proposals import TimeInForce
from trading.testing.builders import INSTRUMENT_ID, PAPER, build_book
from trading.testing.venue import Fault, Operation

RATES = {
    (Operation.PREPARE, Fault.UNAVAILABLE): 0.03,
    (Operation.SEND, Fault.LOSE_ANSWER): 0.08,
    (Operation.SEND, Fault.LOSE_REQUEST): 0.08,
    (Operation.SEND, Fault.DELAY_REQUEST): 0.08,
    (Operation.SEND, Fault.REFUSE): 0.05,
    (Operation.CANCEL, Fault.LOSE_ANSWER): 0.1,
    (Operation.CANCEL, Fault.LOSE_REQUEST): 0.1,
    (Operation.CANCEL, Fault.FILL_AFTER_CANCEL): 0.1,
    (Operation.QUERY, Fault.UNAVAILABLE): 0.1,
    (Operation.QUERY, Fault.LOSE_ANSWER): 0.05,
    (Operation.READ, Fault.UNAVAILABLE): 0.1,
    (Operation.REPORT, Fault.LOSE_REQUEST): 0.1,
    (Operation.REPORT, Fault.DUPLICATE): 0.1,
    (Operation.REPORT, Fault.HOLD_ANSWER): 0.1,
}


class Simulation:
    """One seeded run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.desk = Desk(rules={"ttl_max_ms": 5_000})
        self.desk.faulty._random.seed(seed)
        self.issued: dict[str, ApprovedOrder] = {}
        self.pump: asyncio.Task[None] | None = None

    async def run(self, steps: int) -> None:
        """Take random steps on a venue that fails, then let everything come to rest on one that does not."""
        await self.desk.start()
        await self.listen()
        self.desk.faulty.rates = RATES
        actions = [self.trade] * 8 + [self.replay] * 2 + [self.market] * 3 + [self.passing] * 3
        actions += [self.cancel] * 2 + [self.reconcile] * 2 + [self.release, self.crash, self.trip]
        for _ in range(steps):
            with contextlib.suppress(TradingError):  # what a caller would be told
                await self.random.choice(actions)()
            await asyncio.sleep(0)
        await self.rest()

    async def listen(self) -> None:
        """Read the venue's reports, as the room does."""
        if self.pump is not None:
            self.pump.cancel()
            await asyncio.wait({self.pump})
        service, reports = self.desk.service, self.desk.venue.reports()

        async def take() -> None:
            async for report in reports:
                await service.hear_venue(report)

        self.pump = asyncio.create_task(take())

    async def trade(self) -> None:
        """Bring one to five approvals, some of them twice at once."""
        ids: list[str] = []
        for _ in range(self.random.randint(1, 5)):
            side = self.random.choice([Side.BUY, Side.SELL])
            price = {Side.BUY: ["60001", "59990", "59950"], Side.SELL: ["60000", "60020", "60050"]}[side]
            approval = self.desk.approval(
                side=side,
                quantity=self.random.choice(["0.01", "0.02", "1.5"]),
                limit_price=self.random.choice(price),
                time_in_force=self.random.choice([TimeInForce.GTC, TimeInForce.IOC]),
                ttl_ms=self.random.choice([500, 2_000, 5_000]),
            )
            ids.append(await self.desk.issue(approval))
            self.issued[approval.approval_id] = approval.order
        await self.desk.follow_risk()
        brought = [each for each in ids if self.random.random() < 0.9]
        submits = [self.desk.service.submit(brought) for _ in range(self.random.randint(1, 2))]
        await asyncio.gather(*submits)

    async def replay(self) -> None:
        """Bring an old approval again."""
        if self.issued:
            await self.desk.service.submit([self.random.choice(list(self.issued))])

    async def market(self) -> None:
        """Move the market a little."""
        mid = 60_000 + self.random.randint(-60, 60)
        sequence = (self.desk.prices.current or build_book()).sequence + 1
        now = self.desk.clock.now_ms()
        self.desk.show(build_book([(str(mid), "1")], [(str(mid + 1), "1")], now_ms=now, sequence=sequence))
        await self.desk.beat()

    async def passing(self) -> None:
        """Let time pass, and end what has lapsed."""
        await self.desk.tick(self.random.choice([50, 300, 1_500]))
        await self.desk.service.fates.lapse_due()

    async def cancel(self) -> None:
        """Cancel one order or all of them."""
        orders = list(self.desk.service.lifecycle.book.open_orders.values())
        if not orders or self.random.random() < 0.3:
            await self.desk.service.cancel_all(by="simulation")
        else:
            await self.desk.service.cancel(self.random.choice(orders).order_id, by="simulation")

    async def reconcile(self) -> None:
        """Compare ledger and venue."""
        await self.desk.service.reconciler.run()

    async def release(self) -> None:
        """Let what was delayed arrive."""
        await self.desk.faulty.release()

    async def crash(self) -> None:
        """Lose all memory in the middle of a submit."""
        approval = self.desk.approval(quantity="0.01", ttl_ms=2_000)
        approval_id = await self.desk.issue(approval)
        self.issued[approval_id] = approval.order
        task = asyncio.create_task(self.desk.service.submit([approval_id]))
        for _ in range(self.random.randint(0, 8)):
            await asyncio.sleep(0)
        submissions = self.desk.service.submissions
        self.desk.ledger = self.desk.ledger.successor()  # whatever still runs has lost its lease
        for walk in [*submissions._walks, task]:
            walk.cancel()
        await asyncio.gather(task, *submissions._walks, return_exceptions=True)
        await self.desk.restart()
        await self.listen()

    async def trip(self) -> None:
        """Trip the breaker, and reset it."""
        await self.desk.trip(self.random.choice([TradingState.HALTED, TradingState.REDUCING]))
        self.desk.epoch = Epoch(self.desk.epoch.generation, self.desk.epoch.counter + 1)
        self.desk.state = TradingState.ACTIVE
        await self.desk.beat()

    async def rest(self) -> None:
        """Let the venue behave, everything arrive, every approval expire and every doubt be resolved."""
        self.desk.faulty.rates = {}
        await self.desk.faulty.release()
        for _ in range(12):
            await self.desk.tick(1_000)
            await self.desk.service.fates.lapse_due()
            await asyncio.sleep(0)
            await self.desk.service.reconciler.run()
        await self.desk.service.cancel_all(by="simulation")
        await asyncio.sleep(0.03)
        await self.desk.service.reconcile()
        assert self.pump is not None
        self.pump.cancel()
        await asyncio.wait({self.pump})


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_the_venue_does_the_ledger_ends_equal_to_it(seed: int) -> None:
    simulation = Simulation(seed)
    await simulation.run(60)
    desk = simulation.desk
    venue, book = desk.paper.exchange, desk.service.lifecycle.book
    by_client = {order.client_order_id: order for order in simulation.issued.values()}

    # At most one request and one venue order per approval, and none without.
    assert max(Counter(desk.faulty.handed_over).values(), default=0) <= 1
    assert set(desk.faulty.handed_over) <= set(by_client)
    assert set(venue.orders) <= set(by_client)
    assert len(desk.events(OrderInitialized)) == len({each.approval_id for each in desk.events(OrderInitialized)})

    # Every approval has exactly one fate; what was never an order lapsed or was voided.
    fates = {str(row["approval_id"]): str(row["fate"]) for row in await desk.ledger.rows("approval_fates")}
    assert set(fates) == set(simulation.issued)
    consumed = {each.approval_id for each in desk.events(OrderInitialized)}
    assert {name for name, fate in fates.items() if fate == "consumed"} == consumed

    # Nothing is in doubt, and orders, fills, positions and balances equal the venue's.
    last = desk.service.reconciler.last
    assert last is not None
    assert last.clean, last
    for row in await desk.ledger.rows("orders"):
        order = await desk.service.inquiries.find_order(str(row["order_id"]))
        there = venue.orders.get(client_order_id_for(ApprovalId(order.approval_id), PAPER))
        assert order.status in TERMINAL, order
        assert order.filled == (there.report().filled if there is not None else 0)
    fills = {str(row["trade_id"]) for row in await desk.ledger.rows("fills")}
    assert fills == {trade.trade_id for trade in venue.trades}
    balances = await desk.paper.balances()
    assert book.totals == {currency: balance.total for currency, balance in balances.items()}
    fold = AccountBook(desk.rules.account_id, terminal_kept=10_000)
    for event in desk.ledger.events:
        fold.apply(event.payload, now_ms=event.timestamp_ms)
    assert (fold.totals, fold.positions.get(INSTRUMENT_ID)) == (book.totals, book.positions.get(INSTRUMENT_ID))
