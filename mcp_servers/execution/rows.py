"""How orders, fills, positions and balances lie in the execution ledger's tables."""

from __future__ import annotations

from decimal import Decimal
from typing import cast

from trading.adapters import codec
from trading.domain.fills import Fill
from trading.domain.identifiers import AccountId, ApprovalId, Currency, OrderId
from trading.domain.orders import Order
from trading.domain.positions import Position
from trading.ports.ledger import Row


def fate_row(approval_id: ApprovalId, fate: str, order_id: OrderId | None, at_ms: int) -> Row:
    """Return the row that decides an approval's fate, once."""
    return {"approval_id": approval_id, "fate": fate, "order_id": order_id, "at_ms": at_ms}


def order_row(order: Order) -> Row:
    """Return the order's row; ``order_json`` holds all of it, the other columns are for searching."""
    terms = order.terms
    return {
        "order_id": order.order_id,
        "approval_id": order.approval_id,
        "client_order_id": terms.client_order_id,
        "venue": terms.venue,
        "symbol": terms.symbol,
        "account_id": terms.account_id,
        "agent_id": order.agent_id,
        "side": terms.side.value,
        "status": order.status.value,
        "order_json": codec.encode(order).decode(),
        "created_ms": order.created_ms,
        "updated_ms": order.updated_ms,
    }


def order_of(row: Row) -> Order:
    """Return the order that a row holds."""
    return codec.decode(Order, cast("str", row["order_json"]))


def fill_row(fill: Fill) -> Row:
    """Return the fill's row."""
    return {
        "venue": fill.instrument_id.venue,
        "trade_id": fill.trade_id,
        "order_id": fill.order_id,
        "client_order_id": fill.client_order_id,
        "symbol": fill.instrument_id.symbol,
        "side": fill.side.value,
        "quantity": fill.quantity,
        "price": fill.price,
        "fee": fill.fee,
        "fee_currency": fill.fee_currency,
        "liquidity": fill.liquidity.value,
        "venue_ts_ms": fill.venue_ts_ms,
    }


def position_row(position: Position) -> Row:
    """Return the position's row."""
    return {
        "account_id": position.account_id,
        "venue": position.instrument_id.venue,
        "symbol": position.instrument_id.symbol,
        "position_json": codec.encode(position).decode(),
    }


def position_of(row: Row) -> Position:
    """Return the position that a row holds."""
    return codec.decode(Position, cast("str", row["position_json"]))


def balance_row(account_id: AccountId, currency: Currency, total: Decimal, locked: Decimal) -> Row:
    """Return the balance's row; both amounts in units of the currency."""
    return {"account_id": account_id, "currency": currency, "total": total, "locked": locked}
