"""The comparison table in the documentation is true to the rules as they are."""

from __future__ import annotations

import re
from pathlib import Path

from mcp_servers.risk.policies.pipeline import RULES
from tests.risk_support import market, open_desk
from trading.domain.denials import Rule
from trading.domain.market_data import Side

PAGE = Path(__file__).parents[2] / "docs" / "risk.md"


def rows() -> dict[int, str]:
    """Return what stands under "Here", by the row's number."""
    lines = [line.split(" | ") for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \| ", line)]
    return {int(cells[0].strip("| ")): cells[2] for cells in lines}


def codes() -> dict[str, bool]:
    """Return every code in the table and whether it is said to guard increases only."""
    found = re.findall(r"`([A-Z_]+)`([*†]?)", " ".join(rows().values()))
    return {name: bool(star) for name, star in found if name != "REQUEST_ID_REUSED"}


def test_every_check_has_a_row_and_every_rule_is_named() -> None:
    assert sorted(rows()) == list(range(1, 41))
    assert codes().keys() == {rule.value for rule in Rule}
    assert len(RULES) == len(Rule)


def test_the_first_page_counts_the_rules_right() -> None:
    readme, changelog = ((PAGE.parents[1] / name).read_text() for name in ("README.md", "CHANGELOG.md"))
    assert f"RISK     {len(RULES)} rules" in readme
    assert f"Risk: {len(RULES)} pre-trade rules" in changelog


async def test_a_star_stands_where_an_order_that_reduces_is_exempt_and_nowhere_else() -> None:
    desk = await open_desk()
    await desk.hold("0.5")
    report = desk.risk.check_order(market("0.1", side=Side.SELL, reduce_only=True))
    exempt = {result.rule.value for result in report.results if "this order reduces" in result.message}
    assert {name for name, star in codes().items() if star} == exempt
