"""What the operator reads before saying yes: risk's facts, and an agent's words that can neither hide nor repaint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from grekko.approvals import lines_of, plain_text, rules_of
from tests.risk_support import open_desk, order, wide_limits
from tests.unit.test_risk_people import OPERATOR
from trading.domain.denials import Rule
from trading.domain.errors import InvalidValue
from trading.ports.ledger import Row


async def waiting_row(**changes: Any) -> tuple[Row, int]:
    desk = await open_desk(limits=wide_limits(authority="human"), operator=OPERATOR)
    await desk.ask(replace(order(amount="0.02"), **changes))
    (row,) = await desk.ledger.rows("pending")
    return row, desk.clock.now_ms()


async def test_page_shows_order_cost_headroom_and_who_asked() -> None:
    row, now_ms = await waiting_row()
    page = "\n".join(lines_of(row, now_ms))
    assert "buy 0.02 BTC/USDT limit 60,001 on paper, paper" in page
    assert "1,200.02 quote" in page
    assert "by tester (local)" in page
    assert "AUTHORITY: needs the operator's word" in page
    assert "POSITION_MAX" in page
    assert "in 900 s" in page
    assert page.endswith("the agent gave no reason")
    assert "expired" in lines_of(row, now_ms + 900_000)[0]


@pytest.mark.parametrize(
    "evil", ["\x1b[2J", "\u202eyub", "\u2066x", "a\nneeds you  nothing", "\u2028x", "\u061cx", "\x9b2J"]
)
async def test_agents_words_stay_one_marked_line(evil: str) -> None:
    row, now_ms = await waiting_row(reason=f"go {evil} up")
    lines = lines_of(row, now_ms)
    assert lines[-1].startswith("the agent's own words, not checked by anybody: ")
    assert len(lines) == len(lines_of((await waiting_row())[0], now_ms))
    assert all(line.isprintable() for line in lines)


def test_text_keeps_letters_of_any_script() -> None:
    assert plain_text("prix élevé 買") == "prix élevé 買"


def test_override_names_a_rule_once_and_only_rules() -> None:
    assert rules_of(["TURNOVER_MAX", "TURNOVER_MAX"]) == (Rule.TURNOVER_MAX,)
    with pytest.raises(InvalidValue, match="no rule"):
        rules_of(["EVERYTHING"])
