"""`grekko approvals`: what waits for the operator, in risk's words.

Rules kept here:

- Only what risk wrote is shown: the order, its cost and the rules' verdicts are facts of its ledger.
- The agent's own words are shown last, marked as somebody else's, without control or invisible characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from grekko.ledgers import open_ledgers
from grekko.wording import clock_text, number, order_text
from mcp_servers.risk.pending import pending_of, state_of
from trading.adapters.clock import SystemClock
from trading.adapters.config import DeskSettings
from trading.domain.denials import Rule, RuleResult
from trading.domain.errors import InvalidValue
from trading.domain.pending import PendingHuman, PendingState
from trading.ports.ledger import Row

_WIDTH = 150


async def show_waiting(settings: DeskSettings, console: Console, *, every: bool) -> None:
    """Print what waits, or with ``every`` also what is closed."""
    now_ms = SystemClock().now_ms()
    async with open_ledgers(settings) as ledgers:
        rows = await ledgers.risk.rows("pending", None if every else {"state": PendingState.PENDING.value})
    shown = [row for row in rows if every or state_of(row, now_ms) is PendingState.PENDING]
    table = Table("id", "asked", "expires", "agent", "order", "quote", "state", box=None)
    for row in sorted(shown, key=lambda each: str(each["pending_id"])):
        item = pending_of(row)
        table.add_row(
            item.pending_id,
            clock_text(item.asked_ms),
            clock_text(item.expires_ms),
            plain_text(item.agent_id),
            order_text(item.order),
            "-" if item.notional is None else number(item.notional, places=2),
            state_of(row, now_ms).value,
        )
    console.width = max(console.width, _WIDTH)  # a shortened id is of no use to `approve`
    console.print(table if shown else "nothing waits for you")


async def show_one(settings: DeskSettings, console: Console, pending_id: str) -> None:
    """Print one order with everything that risk knew when it asked.

    Raises:
        InvalidValue: nothing waits or waited under that id.
    """
    async with open_ledgers(settings) as ledgers:
        rows = await ledgers.risk.rows("pending", {"pending_id": pending_id}, limit=1)
    if not rows:
        raise InvalidValue("nothing waits under that id", code="UNKNOWN_PENDING", suggestion="grekko approvals list")
    for line in lines_of(rows[0], SystemClock().now_ms()):
        console.print(line, markup=False, highlight=False)


def lines_of(row: Row, now_ms: int) -> list[str]:
    """Return the page about one order, a line each, in plain text."""
    item, state = pending_of(row), state_of(row, now_ms)
    lines = [
        f"{item.pending_id} {state.value}",
        f"order      {order_text(item.order)} on {item.order.venue}, {item.mode}",
    ]
    if item.price_limit is not None:
        lines.append(f"at worst   {number(item.price_limit)} each; never signed beyond that")
    if item.notional is not None:
        lines.append(f"value      {number(item.notional, places=2)} quote at that price")
    lines.append(
        f"asked      {clock_text(item.asked_ms)} by {plain_text(item.agent_id)} ({plain_text(item.principal)})"
    )
    lines.append(f"expires    {clock_text(item.expires_ms)}, {_left(item, state, now_ms)}")
    if item.decision_id is not None:
        lines.append(f"decision   {plain_text(item.decision_id)}, verified when it was asked")
    lines += [f"needs you  {_rule(each)}" for each in item.unmet]
    lines.append("the other rules, when it was asked; all are asked again on your yes:")
    lines += [f"  {_rule(each)}" for each in item.rules if each.passed and each.headroom]
    if row["detail"]:
        lines.append(f"closed     {plain_text(str(row['detail']))}")
    words = plain_text(item.reason)
    return [
        *lines,
        f"the agent's own words, not checked by anybody: {words!r}" if words else "the agent gave no reason",
    ]


def rules_of(names: Sequence[str]) -> tuple[Rule, ...]:
    """Return rules by their names.

    Raises:
        InvalidValue: no rule has that name.
    """
    wrong = [name for name in names if name not in Rule.__members__]
    if wrong:
        raise InvalidValue(f"there is no rule {plain_text(wrong[0])[:64]}", code="UNKNOWN_RULE")
    return tuple([Rule(name) for name in dict.fromkeys(names)])


def plain_text(text: str) -> str:
    """Return text on one line: without control, format (direction marks among them), and private characters."""
    return "".join(
        c if unicodedata.category(c)[0] != "C" else " " for c in text.replace("\u2028", " ").replace("\u2029", " ")
    )


def _rule(result: RuleResult) -> str:
    left = f", {result.headroom} left" if result.headroom else ""
    return f"{result.rule.value}: {result.message} (limit {result.limit}, observed {result.observed}{left})"


def _left(item: PendingHuman, state: PendingState, now_ms: int) -> str:
    if state is not PendingState.PENDING:
        return "closed"
    return f"in {(item.expires_ms - now_ms) // 1_000} s"
