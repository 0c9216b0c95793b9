"""How a position is protected, for people and models."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from mcp_servers.execution.protection.posts import Post
from mcp_servers.execution.protection.stops import deadline_ms
from trading.domain.money import ZERO
from trading.domain.orders import Order
from trading.domain.standing_exits import StandingExit


class Protection(NamedTuple):
    """The stop of one position.

    Attributes:
        price, kind: of the stop that counts; kind is empty when there is none.
        at: where it lives: ``venue``, ``desk`` or ``none``.
        size: base that it would close.
        until_ms: our clock, when the position is closed at the latest; None without such a bound.
    """

    price: Decimal | None
    kind: str
    at: str
    size: Decimal
    until_ms: int | None


NOTHING = Protection(None, "", "none", ZERO, None)


def view_of(post: Post | None, found: StandingExit | None, resting: Sequence[Order], reducible: Decimal) -> Protection:
    """Return how the position of a post is protected.

    Args:
        post: None for an instrument that is not traded here.
        found: the exit that its stop would use, None when there is none.
        resting: protective orders at the venue.
        reducible: base that is open and that nothing else closes.
    """
    guard = None if post is None else post.open_guard
    if guard is None or found is None:
        return NOTHING
    return Protection(
        price=guard.stop_price,
        kind="" if guard.kind is None else guard.kind.value,
        at="venue" if resting else "desk",
        size=sum((order.leaves for order in resting), reducible),
        until_ms=deadline_ms(guard.opened_ms, found.terms.plan.hold_max_ms, guard.asked),
    )
