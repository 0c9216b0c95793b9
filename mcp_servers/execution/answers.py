"""From the room's values to what the tools answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import cast

from mcp_servers.envelope import fit, untrusted
from mcp_servers.execution import schemas
from mcp_servers.execution.cancels import CancelAll, Remaining
from mcp_servers.execution.metrics import Stage
from mcp_servers.execution.reconciliation import Reconciliation
from mcp_servers.execution.routing import Child
from mcp_servers.execution.service import ExecutionService
from mcp_servers.execution.walks import Outcome, Receipt, Refusal
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, divide, quantize_nearest
from trading.domain.orders import Order, OrderStatus
from trading.domain.positions import Position
from trading.ports.ledger import Row

_FAILURES = 20
_ROWS = 40

_NEXT = {
    OrderStatus.UNKNOWN: "call execution_reconcile; the order may be at the venue, never send it again",
    OrderStatus.NOT_SENT: "nothing left the desk; ask risk for a new approval",
    OrderStatus.REJECTED: "the venue refused it; read the reason before asking risk again",
}


def child(found: Child) -> schemas.Child:
    """Return a planned child order."""
    intent, estimate = found.intent, found.estimate
    return schemas.Child(
        symbol=intent.symbol,
        side=intent.side.value,
        type=intent.order_type.value,
        amount=intent.quantity,
        unit="base",
        limit_price=intent.limit_price,
        stop_price=intent.stop_price,
        time_in_force=intent.time_in_force.value,
        post_only=intent.post_only,
        reduce_only=intent.reduce_only,
        venue=intent.venue,
        account=intent.account_id,
        expected_price=estimate.expected_price,
        worst_price=estimate.worst_price,
        notional=estimate.notional,
        fee=estimate.fee,
        slippage_bps=estimate.slippage_bps,
        fills_now=estimate.fills_now,
    )


def receipt(found: Order) -> schemas.Receipt:
    """Return an order as the receipt of its approval."""
    return schemas.Receipt(
        approval_id=found.approval_id,
        order_id=found.order_id,
        client_order_id=found.terms.client_order_id,
        state=found.status.value,
        filled=found.filled,
        average_price=found.average_price,
        reason=_said(found.reason),
        next=_NEXT.get(found.status, ""),
    )


def batch(outcomes: Sequence[Outcome], cursor: str) -> tuple[schemas.Batch, str | None]:
    """Return the outcome of a batch and where its list of orders continues.

    Args:
        outcomes: in the order of the approvals.
        cursor: the last approval id already shown, empty for the start.
    """
    receipts = [each for each in outcomes if isinstance(each, Receipt)]
    refusals = [each for each in outcomes if isinstance(each, Refusal)]
    rows = [
        schemas.BatchRow(
            approval_id=each.approval_id,
            order_id=each.order.order_id,
            state=each.order.status.value,
            filled=each.order.filled,
        )
        for each in receipts
    ]
    if cursor:
        start = next((index + 1 for index, row in enumerate(rows) if row.approval_id == cursor), len(rows))
        rows = rows[start:]
    page = fit(rows, cursor_of=lambda row: row.approval_id, limit=_ROWS, max_chars=5_500)
    failures = [
        schemas.Failure(approval_id=each.approval_id[:64], code=each.code, message=str(each.error)[:120])
        for each in refusals[:_FAILURES]
    ]
    data = schemas.Batch(
        submitted=len(receipts),
        refused=len(refusals),
        states=dict(Counter(each.order.status.value for each in receipts)),
        orders=page.rows,
        failures=failures,
    )
    return data, page.next_cursor


def order(found: Order) -> schemas.OrderRow:
    """Return one order."""
    terms = found.terms
    return schemas.OrderRow(
        order_id=found.order_id,
        approval_id=found.approval_id,
        client_order_id=terms.client_order_id,
        venue_order_id=found.venue_order_id,
        agent_id=found.agent_id,
        symbol=terms.symbol,
        side=terms.side.value,
        type=terms.order_type.value,
        time_in_force=terms.time_in_force.value,
        effect=found.effect.value,
        reduce_only=terms.reduce_only,
        quantity=terms.quantity,
        limit_price=terms.limit_price,
        stop_price=terms.stop_price,
        state=found.status.value,
        filled=found.filled,
        average_price=found.average_price,
        fees={str(currency): amount for currency, amount in found.fees.items()},
        reason=_said(found.reason),
        created_ms=found.created_ms,
        updated_ms=found.updated_ms,
    )


def fill(row: Row) -> schemas.FillRow:
    """Return one execution as the ledger's row holds it."""
    return schemas.FillRow(
        trade_id=cast("str", row["trade_id"]),
        quantity=Decimal(cast("str", row["quantity"])),
        price=Decimal(cast("str", row["price"])),
        fee=Decimal(cast("str", row["fee"])),
        fee_currency=cast("str", row["fee_currency"]),
        liquidity=cast("str", row["liquidity"]),
        venue_ts_ms=cast("int", row["venue_ts_ms"]),
    )


def canceled(found: CancelAll) -> schemas.Canceled:
    """Return what a cancel of everything achieved."""
    return schemas.Canceled(
        canceled=[each.order_id for each in found.canceled[:100]],
        kept=[_left(each) for each in found.kept[:_ROWS]],
        remaining=[_left(each) for each in found.remaining[:_ROWS]],
        foreign=list(found.foreign[:_ROWS]),
    )


def _left(each: Remaining) -> schemas.Left:
    return schemas.Left(order_id=each.order.order_id, state=each.order.status.value, reason=each.reason[:120])


def account(service: ExecutionService) -> schemas.Account:
    """Return balances, positions and profit."""
    book = service.lifecycle.book
    snapshot = book.snapshot(now_ms=service.clock.now_ms(), ledger_seq=0)
    return schemas.Account(
        account=book.account_id,
        quote=service.parts.quote,
        equity=service.inquiries.equity(),
        balances=[
            schemas.BalanceRow(currency=currency, total=each.total, locked=each.locked, free=each.free)
            for currency, each in sorted(snapshot.balances.items())
        ],
        positions=[_position(service, each) for _, each in sorted(snapshot.positions.items())],
    )


def _position(service: ExecutionService, held: Position) -> schemas.PositionRow:
    mark = service.inquiries.marks().get(held.base)
    closing = Side.SELL if held.quantity > 0 else Side.BUY
    protected = ZERO
    for each in service.lifecycle.book.open_orders.values():
        terms = each.terms
        if terms.reduce_only and terms.instrument_id == held.instrument_id and terms.side is closing:
            protected = add(protected, each.leaves)
    return schemas.PositionRow(
        symbol=held.instrument_id.symbol,
        quantity=held.quantity,
        average_price=held.average_price,
        mark=mark,
        realized=held.realized,
        unrealized=None if mark is None else held.unrealized(mark),
        fees={str(currency): amount for currency, amount in held.fees.items()},
        protected=protected,
        stop=stop(service, held.instrument_id),
    )


def stop(service: ExecutionService, instrument_id: InstrumentId) -> schemas.StopRow:
    """Return how a position is protected."""
    found = service.stop_loss.view(instrument_id)
    return schemas.StopRow(price=found.price, kind=found.kind, at=found.at, size=found.size, until_ms=found.until_ms)


def fees(service: ExecutionService) -> schemas.Fees:
    """Return the rates in force and what was really paid lately."""
    rows: list[schemas.FeeRow] = []
    for instrument_id, instrument in sorted(service.instruments.items()):
        source = service.parts.price_source.get(instrument_id, instrument_id)
        rows.append(
            schemas.FeeRow(
                symbol=instrument_id.symbol,
                maker=instrument.maker_fee,
                taker=instrument.taker_fee,
                source=f"{instrument_id.venue} venue, rates of {source.venue}",
                paid=_paid(service, instrument_id.symbol),
            )
        )
    return schemas.Fees(fees=rows)


def _paid(service: ExecutionService, symbol: str) -> Decimal | None:
    book = service.lifecycle.book
    paid, notional = ZERO, ZERO
    for each in (*book.finished_orders(), *book.open_orders.values()):
        if each.terms.symbol == symbol and each.filled:
            paid = add(paid, each.fees.get(service.parts.quote, ZERO))
            notional = add(notional, each.filled_notional)
    return quantize_nearest(divide(paid, notional), 8) if notional else None


def reconciled(found: Reconciliation) -> schemas.Reconciled:
    """Return the outcome of a reconciliation."""
    advice = ""
    if not found.complete:
        advice = "the venue did not answer everything; call again"
    elif found.differences:
        advice = "only reducing orders are sent until a person has explained the differences"
    elif found.unresolved:
        advice = "orders may still be on their way; call again in a second"
    return schemas.Reconciled(
        clean=found.clean,
        complete=found.complete,
        checked=found.orders_checked,
        resolved=found.resolved,
        unresolved=[each.order_id for each in found.unresolved[:100]],
        differences=[each[:160] for each in found.differences[:30]],
        next=advice,
    )


def metrics(service: ExecutionService) -> schemas.MetricsData:
    """Return latencies and counts."""
    return schemas.MetricsData(
        stages=[
            schemas.StageRow(
                stage=stage.value,
                orders=found.orders,
                p50_ms=round(found.p50_ms, 3),
                p99_ms=round(found.p99_ms, 3),
                max_ms=round(found.max_ms, 3),
            )
            for stage in Stage
            if (found := service.metrics.latency(stage)).orders
        ],
        outcomes=dict(service.metrics.counts),
        fates={fate.value: count for fate, count in service.fates.counts.items()},
        heartbeats_ignored={reason.value: count for reason, count in service.epochs.ignored.items()},
    )


async def status(service: ExecutionService) -> schemas.Status:
    """Return whether new risk would be taken now."""
    moment, last = service.moment(), service.reconciler.last
    reasons = service.inquiries.unsafe_reasons()
    ages: dict[str, int | None] = {}
    for instrument_id in service.instruments:
        book = service.book(instrument_id)
        ages[instrument_id.symbol] = None if book is None else book.age_ms(moment.now_ms)
    return schemas.Status(
        safe_to_trade=not reasons,
        reasons=reasons,
        account=service.rules.account_id,
        venue=service.rules.venue,
        trading_state=service.pulse.state.value,
        epoch=list(service.pulse.epoch),
        risk_heard_ms_ago=service.epochs.age_ms(moment.monotonic_ns),
        open_orders=len(service.lifecycle.book.open_orders),
        unresolved=[each.order_id for each in service.reconciler.in_doubt()[:50]],
        open_approvals=service.fates.open_count,
        price_age_ms=ages,
        reconciled_ms_ago=None if last is None else max(0, moment.now_ms - last.at_ms),
        ledger_seq=await service.parts.ledger.last_seq(),
    )


def _said(reason: str) -> str:
    """Return a reason that may be the venue's words, marked as such."""
    return untrusted(reason, max_chars=200) if reason else ""
