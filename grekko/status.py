"""`grekko status`, `orders` and `positions`: read from the ledgers, so they work whether the desk runs or not."""

from __future__ import annotations

from decimal import Decimal

from rich.console import Console
from rich.table import Table

from grekko.ledgers import open_ledgers
from grekko.picture import DeskPicture
from grekko.processes import ROOM_MODULES, running
from grekko.supervisor import answers
from grekko.wording import clock_text, number
from trading.adapters.config import DeskSettings
from trading.domain.approvals import TradingState
from trading.domain.money import plain
from trading.domain.orders import Order, OrderStatus
from trading.domain.standing_exits import PROTECTION

_ORDERS_WIDTH = 200
_ORDER_COLUMNS = ("time", "order", "agent", "side", "quantity", "type", "filled", "average", "state", "reason")


async def show_status(settings: DeskSettings, console: Console) -> bool:
    """Print the state of the desk and return whether it runs and may trade."""
    picture = await _read(settings)
    home = settings.desk_home
    console.print(f"desk {settings.desk} in {home.path}, mode {settings.mode}, account {settings.account_id}")
    up = True
    for room in ROOM_MODULES:
        process = running(home, room)
        healthy = process is not None and await answers(home.socket(room))
        up &= healthy
        state = "[green]up[/]" if healthy else "[red]not answering[/]" if process else "down"
        console.print(f"  {room:<12} {state}{f', process {process.pid}' if process else ''}")
    console.print(
        f"breaker {picture.state}, epoch {picture.epoch.generation}.{picture.epoch.counter}: {picture.state_reason}"
    )
    for scope, (state, reason) in sorted(picture.scopes.items()):
        console.print(f"  {scope} {state}: {reason}", markup=False)
    orders = picture.account.open_orders.values()
    stops = sum(order.agent_id == PROTECTION for order in orders)
    unknown = sum(order.status is OrderStatus.UNKNOWN for order in orders)
    console.print(f"{len(orders)} open orders, {stops} of them stops, {unknown} with unknown outcome")
    return up and picture.state is TradingState.ACTIVE


async def show_orders(settings: DeskSettings, console: Console, *, limit: int) -> None:
    """Print the newest orders."""
    picture = await _read(settings)
    known = [*picture.account.finished_orders(), *picture.account.open_orders.values()]
    table = Table(
        "time", "order", "agent", "side", "quantity", "type", "filled", "average", "state", "reason", box=None
    )
    for order in sorted(known, key=lambda each: each.created_ms)[-limit:]:
        table.add_row(*order_row(order))
    # Never narrower than its ids: a shortened id is of no use to `grekko explain`.
    console.width = max(console.width, _ORDERS_WIDTH)
    console.print(table if known else "no orders yet")


def order_row(order: Order) -> tuple[str, ...]:
    """Return what `grekko orders` shows of an order, in the order of its columns."""
    average = order.average_price
    return (
        clock_text(order.created_ms),
        str(order.order_id),
        str(order.agent_id),
        str(order.terms.side),
        f"{plain(order.terms.quantity)} {order.terms.symbol}",
        _type_text(order),
        plain(order.filled),
        "-" if average is None else number(average, places=2),
        str(order.status),
        order.reason,
    )


def _type_text(order: Order) -> str:
    """Return the order's type with its prices: what sets a resting stop apart from a sale."""
    terms = order.terms
    words = [str(terms.order_type)]
    if terms.limit_price is not None:
        words.append(number(terms.limit_price))
    if terms.stop_price is not None:
        words.append(f"at {number(terms.stop_price)}")
    return " ".join(words)


async def show_positions(settings: DeskSettings, console: Console) -> None:
    """Print positions and balances; unrealized results need a running market and are in the live view."""
    picture = await _read(settings)
    table = Table("instrument", "quantity", "average", "cost", "realized", "fees", box=None)
    for instrument_id, position in picture.account.positions.items():
        average = position.average_price
        table.add_row(
            str(instrument_id),
            plain(position.quantity),
            "-" if average is None else number(average, places=2),
            number(position.cost, places=2),
            number(position.realized, places=2),
            ", ".join(f"{number(fee, places=4)} {currency}" for currency, fee in position.fees.items()) or "-",
        )
    console.print(table if picture.account.positions else "no positions yet")
    locked = picture.account.locked()
    for currency, amount in picture.account.totals.items():
        held = locked.get(currency, Decimal(0))
        console.print(f"{currency} {number(amount)}{f', {number(held)} held by orders' if held else ''}")


async def _read(settings: DeskSettings) -> DeskPicture:
    picture = DeskPicture(settings.account_id)
    async with open_ledgers(settings) as ledgers:
        await picture.refresh(ledgers)
    return picture
