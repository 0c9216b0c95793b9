"""Risk and the stop-loss manager of execution on the same two ledgers: what one signs the other uses; both count."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from grekko.exit_proofs import ExitProofs
from mcp_servers.risk.assessment import Approved
from mcp_servers.risk.orders import OrderRequest
from mcp_servers.risk.parts import RiskParts
from mcp_servers.risk.service import RiskService
from tests.execution_support import RISK
from tests.protection_support import GuardedDesk
from tests.risk_support import DATA_ID, USDT, FakeMarket, FakeSink, market, wide_limits
from trading.adapters.signing import Ed25519Verifier
from trading.domain.approvals import Effect, TradingState
from trading.domain.events import AlarmRaised, ExitSigned, OrderFilled, OrderInitialized, RiskApproved
from trading.domain.identifiers import RequestId
from trading.domain.market_data import OrderBook, Side
from trading.domain.proposals import Mode
from trading.testing.builders import ACCOUNT, BTC_USDT, INSTRUMENT_ID, PAPER, build_instrument
from trading.testing.clock import SeededIds

D = Decimal


class BothRooms:
    """A real risk service in front of a real execution service with a fake venue."""

    def __init__(self, *, native: bool) -> None:
        self.desk = GuardedDesk(native=native)
        self.market = FakeMarket()
        self.market.rules[DATA_ID] = build_instrument(venue="binance")
        self.risk = RiskService(
            RiskParts(
                ledger=self.desk.risk,
                execution=self.desk.ledger,
                market=self.market,
                signer=RISK,
                clock=self.desk.clock,
                ids=SeededIds(99),
                heartbeats=FakeSink(),
                limits=wide_limits(daily_loss_max=D(1_000_000)),
                mode=Mode.PAPER,
                account_id=ACCOUNT,
                venue=PAPER,
                quote=USDT,
                symbols=(BTC_USDT,),
                data_of=lambda _: DATA_ID,
            )
        )
        self.asked = 0

    async def start(self) -> BothRooms:
        await self.desk.start(heard=False)
        self.move("60000")
        await self.risk.start()
        await self.meet()
        return self

    def move(self, bid: str) -> OrderBook:
        book = self.market.books[DATA_ID] = self.desk.price(bid)
        return book

    async def meet(self) -> None:
        """Let each room hear and read what the other has said and written."""
        self.desk.epoch, self.desk.state = self.risk.live.breaker.epoch, self.risk.live.breaker.state
        await self.desk.beat()
        self.risk.hear_execution(
            sent_ms=self.desk.clock.now_ms(), ledger_seq=len(self.desk.ledger.events), unresolved=0, safe=True
        )
        while await self.risk.live.follower.step():
            pass
        await self.risk.tick()
        await self.desk.follow_risk()

    async def ask(self, order: OrderRequest) -> Approved:
        self.asked += 1
        answer = await self.risk.request_approval("local", RequestId(f"r-{self.asked}"), (order,))
        assert not answer.denied, answer.denied[0].failures
        return answer.approved[0]

    async def trade(self, order: OrderRequest) -> Approved:
        """Ask risk, hand the approval to execution, and let both read on."""
        item = await self.ask(order)
        await self.desk.order(item.approval.approval_id)
        await self.desk.look()
        await self.meet()
        return item

    def alarms(self) -> list[str]:
        return [event.payload.code for event in self.desk.risk.events if isinstance(event.payload, AlarmRaised)]

    def prove(self) -> int:
        """Prove every stop and return how many there were."""
        proofs, stops = ExitProofs(), 0
        for event in self.desk.risk.events:
            match event.payload:
                case RiskApproved(approval=approval):
                    proofs.approved(approval)
                case ExitSigned() as signed:
                    proofs.signed(signed, Ed25519Verifier.of(RISK.public_key))
                case _:
                    pass
        for event in self.desk.ledger.events:
            match event.payload:
                case OrderInitialized() as opened if opened.exit_slice is not None:
                    proofs.ordered(opened, event.timestamp_ms)
                    stops += 1
                case OrderFilled() as filled:
                    proofs.filled(filled)
                case _:
                    pass
        return stops


@pytest.mark.parametrize("native", [True, False])
async def test_a_stop_closes_what_was_entered_and_both_rooms_count_to_zero(native: bool) -> None:
    rooms = await BothRooms(native=native).start()
    await rooms.trade(market("0.5"))
    assert (len(rooms.desk.protective()), rooms.desk.held) == (int(native), D("0.5"))
    rooms.move("56000")
    await rooms.desk.look()
    await rooms.meet()
    assert rooms.desk.held == rooms.risk.portfolio.reducible(INSTRUMENT_ID) == 0
    assert len(rooms.risk.reservations) == 0
    assert rooms.alarms() == []
    assert rooms.prove() >= 1


async def test_an_agent_closes_the_whole_position_though_its_stop_rests_for_all_of_it() -> None:
    rooms = await BothRooms(native=True).start()
    await rooms.trade(market("0.5"))
    (stop,) = rooms.desk.protective()
    assert stop.leaves == D("0.5")
    assert rooms.risk.portfolio.closable(INSTRUMENT_ID, Side.SELL) == D("0.5")
    item = await rooms.trade(_close("0.5"))
    assert item.approval.effect is Effect.REDUCE
    assert (rooms.desk.held, rooms.desk.protective()) == (0, [])
    assert len(rooms.risk.reservations) == 0
    assert rooms.alarms() == []
    assert rooms.prove() == 1


async def test_after_a_partial_close_the_rest_is_protected_and_counted_anew() -> None:
    rooms = await BothRooms(native=True).start()
    await rooms.trade(market("0.5"))
    await rooms.trade(_close("0.2"))
    await rooms.desk.look(5_000)
    await rooms.meet()
    (stop,) = rooms.desk.protective()
    assert stop.leaves == D("0.3")
    assert rooms.risk.reservations.exposure(INSTRUMENT_ID).protected == D("0.3")
    assert rooms.risk.portfolio.closable(INSTRUMENT_ID, Side.SELL) == D("0.3")
    assert rooms.alarms() == []
    rooms.prove()


async def test_an_exit_that_risk_renewed_is_the_one_that_execution_uses() -> None:
    rooms = await BothRooms(native=False).start()
    await rooms.trade(market("0.5"))
    await rooms.risk.trip("test", "test")
    assert rooms.risk.live.breaker.state is TradingState.HALTED
    rooms.desk.clock.advance(13 * 3_600_000)
    rooms.move("60000")
    await rooms.meet()
    renewed = rooms.risk.live.exits.current(INSTRUMENT_ID)
    rooms.move("56000")
    await rooms.desk.look()
    await rooms.meet()
    assert renewed is not None
    used = [each.exit_slice.exit_id for each in rooms.desk.slices() if each.exit_slice is not None]
    assert used == [renewed.exit_id]
    assert rooms.desk.held == 0
    assert rooms.alarms() == []
    assert rooms.prove() == 1


def _close(quantity: str, **changes: Any) -> OrderRequest:
    return market(quantity, side=Side.SELL, reduce_only=True, **changes)
