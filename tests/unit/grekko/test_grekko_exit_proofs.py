"""A stop is proven by the exit that risk signed; whatever is altered, borrowed or used twice is named."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from grekko.initialization import initialize
from grekko.ledgers import Ledgers
from grekko.proofs import Proofs, Prover
from trading.adapters import codec
from trading.adapters.approval_signer import load_approval_signer
from trading.adapters.config import DeskSettings
from trading.adapters.signing import seal
from trading.domain.approvals import APPROVAL_PAYLOAD_TYPE, Approval, Effect
from trading.domain.events import DomainEvent, ExitSigned, OrderFilled, OrderInitialized, RiskApproved
from trading.domain.identifiers import AccountId, AgentId, ApprovalId, OrderId
from trading.domain.market_data import Side
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.domain.standing_exits import PROTECTION, STANDING_EXIT_PAYLOAD_TYPE, ExitSlice, StandingExit
from trading.ports.ledger import EventDraft, Unit
from trading.testing.builders import (
    ACCOUNT,
    BTC_USDT,
    PAPER,
    build_approval,
    build_approved_order,
    build_exit_terms,
    build_fill,
)
from trading.testing.clock import ManualClock, SeededIds
from trading.testing.keys import make_test_signer
from trading.testing.ledger import InMemoryLedger

D = Decimal


class Desk:
    """A desk with real keys that holds 1 BTC, bought on one approval."""

    def __init__(self, home: Path) -> None:
        self.settings = DeskSettings(home=home)
        initialize(self.settings)
        self.signer = load_approval_signer(self.settings.desk_home)
        self.clock = ManualClock()
        self.ledgers = {
            room: InMemoryLedger(room, self.clock, SeededIds()) for room in ("coordinator", "risk", "execution")
        }
        self.fills = 0

    async def write(self, room: str, *events: DomainEvent) -> None:
        await self.ledgers[room].commit(Unit(events=tuple(EventDraft(event) for event in events)))

    async def approve(self, approval_id: str = "entry", **changes: Any) -> Approval:
        approval = replace(build_approval(key_id=self.signer.key_id, approval_id=approval_id), **changes)
        envelope = seal(codec.canonical(approval), APPROVAL_PAYLOAD_TYPE, self.signer).to_json()
        await self.write("risk", RiskApproved(approval=approval, envelope=envelope))
        return approval

    async def enter(self) -> StandingExit:
        approval = await self.approve()
        opened = OrderInitialized(
            order_id=OrderId("entry"),
            approval_id=approval.approval_id,
            agent_id=approval.agent_id,
            effect=approval.effect,
            terms=approval.order,
        )
        await self.write("execution", opened)
        await self.fill("entry", "1", Side.BUY)
        found = approval.exit()
        assert found is not None
        return found

    async def renew(self, **changes: Any) -> StandingExit:
        found = StandingExit(
            exit_id=ApprovalId("renewed"),
            account_id=ACCOUNT,
            mode=Mode.PAPER,
            venue=PAPER,
            symbol=BTC_USDT,
            terms=build_exit_terms(),
            policy_version=1,
            issued_ms=self.clock.now_ms(),
            key_id=self.signer.key_id,
        )
        signer = changes.pop("signer", self.signer)
        envelope = seal(codec.canonical(found), STANDING_EXIT_PAYLOAD_TYPE, signer).to_json()
        await self.write("risk", ExitSigned(exit=replace(found, **changes), envelope=envelope))
        return found

    async def stop(self, found: StandingExit, number: int = 1, *, terms: Any = None, **event: Any) -> str:
        used = ExitSlice(exit_id=found.exit_id, number=number)
        order = {
            "side": Side.SELL,
            "quantity": "1",
            "order_type": OrderType.STOP_LIMIT,
            "time_in_force": TimeInForce.GTC,
            "stop_price": "57000",
            "limit_price": "56000",
            "reduce_only": True,
            **(terms or {}),
        }
        order_id = event.pop("order_id", f"stop-{number}")
        opened = OrderInitialized(
            order_id=OrderId(order_id),
            approval_id=used.approval_id,
            agent_id=PROTECTION,
            effect=Effect.REDUCE,
            terms=build_approved_order(approval_id=used.approval_id, **order),
            exit_slice=used,
        )
        await self.write("execution", replace(opened, **event))
        return order_id

    async def fill(self, order_id: str, quantity: str, side: Side = Side.SELL, *, trade_id: str = "") -> None:
        self.fills += 1
        fill = build_fill(
            order_id=order_id, quantity=quantity, price="56500", side=side, trade_id=trade_id or f"t{self.fills}"
        )
        await self.write("execution", OrderFilled(fill=fill, status="filled", filled=fill.quantity))

    async def proofs(self) -> Proofs:
        return await Prover(self.settings.desk_home).run(Ledgers(**self.ledgers))

    async def findings(self) -> list[str]:
        return [finding.what for finding in (await self.proofs()).findings]


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk")


async def test_stops_by_the_exit_of_an_entry_and_by_a_renewed_one_are_proven(desk: Desk) -> None:
    nested, renewed = await desk.enter(), await desk.renew()
    await desk.fill(await desk.stop(nested), "0.4")
    await desk.fill(await desk.stop(renewed), "0.6")
    proofs = await desk.proofs()
    assert proofs.findings == []
    assert (proofs.checked["orders"], proofs.checked["exits"], len(proofs.orders)) == (3, 1, 3)


@pytest.mark.parametrize(
    ("event", "terms", "what"),
    [
        ({"exit_slice": ExitSlice(exit_id=ApprovalId("nobody"), number=1)}, {}, "no verified exit"),
        ({"exit_slice": None}, {}, "no verified approval"),
        ({"approval_id": ApprovalId("entry")}, {}, "not named after its slice"),
        ({"agent_id": AgentId("tester")}, {}, "no stop"),
        ({"effect": Effect.INCREASE}, {}, "no stop"),
        ({}, {"side": Side.BUY, "limit_price": "60000"}, "another place or side"),
        ({}, {"account_id": AccountId("other")}, "another place or side"),
        ({}, {"venue": "kraken"}, "another place or side"),
        ({}, {"limit_price": "29999.99"}, "beyond the exit's floor"),
        ({}, {"order_type": OrderType.STOP, "limit_price": None}, "beyond the exit's floor"),
    ],
)
async def test_a_stop_that_its_exit_does_not_allow_is_named(
    desk: Desk, event: dict[str, Any], terms: dict[str, Any], what: str
) -> None:
    await desk.stop(await desk.enter(), terms=terms, **event)
    assert [what in finding for finding in await desk.findings()] == [True]


async def test_a_slice_that_was_used_twice_is_named(desk: Desk) -> None:
    found = await desk.enter()
    await desk.stop(found)
    await desk.stop(found, order_id="again")
    assert ["used twice" in what for what in await desk.findings()] == [True]


async def test_a_stop_after_the_end_of_its_exit_is_named(desk: Desk) -> None:
    found = await desk.enter()
    desk.clock.advance(86_400_001)
    await desk.stop(found)
    assert ["expired" in what for what in await desk.findings()] == [True]


async def test_slices_that_sold_more_than_was_open_are_named(desk: Desk) -> None:
    found = await desk.enter()
    await desk.fill(await desk.stop(found, 1), "0.7")
    await desk.fill(await desk.stop(found, 2), "0.3")
    await desk.fill(await desk.stop(found, 3), "0.00001")
    assert ["more than was open" in what for what in await desk.findings()] == [True]


async def test_a_trade_that_is_written_twice_counts_once(desk: Desk) -> None:
    stop = await desk.stop(await desk.enter())
    await desk.fill(stop, "1", trade_id="same")
    await desk.fill(stop, "1", trade_id="same")
    assert await desk.findings() == []


@pytest.mark.parametrize(
    "change", [{"exit_id": ApprovalId("mine")}, {"terms": build_exit_terms(floor="1")}, {"account_id": AccountId("x")}]
)
async def test_a_renewed_exit_that_differs_from_the_signed_one_is_named_and_so_are_its_stops(
    desk: Desk, change: dict[str, Any]
) -> None:
    await desk.enter()
    found = await desk.renew(**change)
    await desk.stop(replace(found, **change))
    exit_, stop = await desk.findings()
    assert "not the signed one" in exit_
    assert "no verified exit" in stop


async def test_an_exit_signed_with_another_key_is_named(desk: Desk) -> None:
    await desk.renew(signer=make_test_signer("mallory"))
    assert len(await desk.findings()) == 1


async def test_an_exit_that_was_issued_twice_is_named(desk: Desk) -> None:
    await desk.renew()
    await desk.renew()
    assert ["issued twice" in what for what in await desk.findings()] == [True]


async def test_an_approved_entry_without_an_exit_that_closes_it_is_named(desk: Desk) -> None:
    await desk.approve("bare", standing_exit=None)
    await desk.approve("same-side", standing_exit=build_exit_terms(entry=Side.SELL))
    await desk.approve("reduce", effect=Effect.REDUCE)
    found = await desk.findings()
    for what, finding in zip(("without an exit", "does not close it", "a reduce carries"), found, strict=True):
        assert what in finding
