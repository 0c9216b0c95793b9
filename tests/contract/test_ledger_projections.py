"""The audit compares projection rows with the events that made them."""

from __future__ import annotations

import pytest

from tests.contract.conftest import SqlDesk
from trading.adapters.sql import AuditReport, verify_room
from trading.adapters.sql.verify import Kind
from trading.domain.approvals import Fate
from trading.domain.events import ApprovalEnded, OrderFilled, OrderInitialized, OrderSubmitted
from trading.domain.identifiers import ApprovalId
from trading.ports.ledger import EventDraft, Insert, Unit, Upsert
from trading.testing.builders import build_fill, build_order


async def trade(desk: SqlDesk) -> None:
    """Two orders, the second of them filled in two parts, and an approval that lapsed: events 1 to 6."""
    async with desk.writer() as ledger:
        for name in ("one", "two"):
            order = build_order(order_id=name)
            terms = order.terms
            event = OrderInitialized(
                order_id=order.order_id,
                approval_id=order.approval_id,
                agent_id=order.agent_id,
                effect=order.effect,
                terms=terms,
            )
            row = {
                "order_id": name,
                "approval_id": order.approval_id,
                "client_order_id": terms.client_order_id,
                "venue": terms.venue,
                "symbol": terms.symbol,
                "account_id": terms.account_id,
                "agent_id": order.agent_id,
                "side": terms.side,
                "status": "initialized",
                "order_json": "{}",
                "created_ms": 1,
                "updated_ms": 1,
            }
            fate = {"approval_id": order.approval_id, "fate": "consumed", "order_id": name, "at_ms": 1}
            claim = Insert("approval_fates", fate)
            await ledger.commit(Unit(events=(EventDraft(event),), claims=(claim,), writes=(Insert("orders", row),)))
            if name == "two":
                moved = Upsert("orders", {**row, "status": "submitted", "updated_ms": 2})
                submitted = EventDraft(OrderSubmitted(order_id=order.order_id))
                await ledger.commit(Unit(events=(submitted,), writes=(moved,)))
        for trade_id in ("t1", "t2"):
            fill = build_fill(order_id="two", trade_id=trade_id, quantity="0.50")
            row = {
                "venue": fill.instrument_id.venue,
                "trade_id": fill.trade_id,
                "order_id": fill.order_id,
                "client_order_id": fill.client_order_id,
                "symbol": fill.instrument_id.symbol,
                "side": fill.side,
                "quantity": fill.quantity,
                "price": fill.price,
                "fee": fill.fee,
                "fee_currency": fill.fee_currency,
                "liquidity": fill.liquidity,
                "venue_ts_ms": fill.venue_ts_ms,
            }
            filled = EventDraft(OrderFilled(fill=fill, status="partially_filled", filled=fill.quantity))
            await ledger.commit(Unit(events=(filled,), claims=(Insert("fills", row),)))
        lapsed = EventDraft(ApprovalEnded(approval_id=ApprovalId("late"), fate=Fate.LAPSED, reason="expired"))
        fate = {"approval_id": "late", "fate": Fate.LAPSED, "order_id": None, "at_ms": 1}
        await ledger.commit(Unit(events=(lapsed,), claims=(Insert("approval_fates", fate),)))


async def audit(desk: SqlDesk) -> AuditReport:
    async with desk.reader() as reader:
        return await verify_room(reader, projections=True)


async def test_rows_that_follow_from_their_events_verify(sql_desk: SqlDesk) -> None:
    await trade(sql_desk)
    report = await audit(sql_desk)
    assert report.verified, report.findings
    assert report.events == 6


@pytest.mark.parametrize(
    ("change", "seq", "says"),
    [
        ("UPDATE fills SET quantity = '0.6' WHERE trade_id = 't2'", 5, "another quantity"),
        ("UPDATE fills SET side = 'sell' WHERE trade_id = 't1'", 4, "another side"),
        ("UPDATE orders SET approval_id = 'other' WHERE order_id = 'one'", 1, "another approval_id"),
        ("UPDATE approval_fates SET order_id = NULL WHERE order_id = 'two'", 2, "another order_id"),
        ("UPDATE approval_fates SET fate = 'consumed' WHERE approval_id = 'late'", 6, "another fate"),
        ("DELETE FROM orders WHERE order_id = 'one'", 1, "is missing"),
        ("DELETE FROM fills WHERE trade_id = 't1'", 4, "is missing"),
        (
            """INSERT INTO fills SELECT venue, 'made-up', order_id, client_order_id, symbol, side, quantity, price, fee,
            fee_currency, liquidity, venue_ts_ms FROM fills WHERE trade_id = 't1'""",
            6,
            "1 rows more",
        ),
    ],
)
async def test_a_row_that_was_changed_is_found(sql_desk: SqlDesk, change: str, seq: int, says: str) -> None:
    await trade(sql_desk)
    await sql_desk.tamper(change)
    async with sql_desk.reader() as reader:
        assert (await verify_room(reader)).verified  # the events are untouched
    report = await audit(sql_desk)
    assert [(finding.seq, finding.kind) for finding in report.findings] == [(seq, Kind.PROJECTION)]
    assert says in report.findings[0].detail
