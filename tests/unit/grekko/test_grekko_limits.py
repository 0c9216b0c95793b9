"""`grekko limits`: what is in force, what a document would change, and a file that is never half written."""

from __future__ import annotations

import io
import json
import sys
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from grekko import control
from grekko.initialization import initialize
from grekko.limits import diff_limits, read_history, read_limits, set_limits, show_history, show_limits, sign_limits
from grekko.limits_file import changed_text, minimal, to_toml, write_whole
from mcp_servers.envelope import timestamp
from mcp_servers.risk.document import parse, schema
from mcp_servers.risk.journal import policy_unit
from mcp_servers.risk.limits import RiskLimits, document_of, policy_of
from trading.adapters.clock import Uuid7Factory
from trading.adapters.config import DeskSettings, load_settings
from trading.adapters.sql import LedgerLocation, open_writer
from trading.domain.errors import ConfigurationError, InvalidValue, Unavailable
from trading.testing.clock import ManualClock

NOW_MS = 1_700_000_000_000


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeskSettings:
    """The settings of an initialised desk that never ran."""
    for name in ("GREKKO_CONFIG", "GREKKO_MODE", "DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GREKKO_HOME", str(tmp_path / "desk"))
    found = load_settings()
    initialize(found)
    return found


async def ran(desk: DeskSettings, *versions: RiskLimits, by: str = "start") -> None:
    """Let risk have had these limits in force, one after the other."""
    location = LedgerLocation.of(desk)
    async with open_writer("risk", location, clock=ManualClock(), ids=Uuid7Factory()) as ledger:
        for number, limits in enumerate(versions, start=1):
            unit = policy_unit(
                policy_of(limits, version=number), is_new=True, now_ms=NOW_MS, by=by if number > 1 else "start"
            )
            await ledger.commit(unit)


def paper() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200, soft_wrap=True), text


def file_of(desk: DeskSettings) -> Path:
    return desk.home / "limits.toml"


# -- set --------------------------------------------------------------------------------------------------------------


async def test_set_writes_a_private_file_that_reads_as_the_same_limits(desk: DeskSettings) -> None:
    await ran(desk, RiskLimits())
    console, text = paper()
    await set_limits(desk, console, ["daily_loss_max=1500", "symbols.BTC/USDT.collar_bps=50.5"])
    assert file_of(desk).stat().st_mode & 0o777 == 0o600
    found = (await read_limits(desk)).written().limits
    assert (found.daily_loss_max, next(iter(found.symbols.values())).collar_bps) == (Decimal(1500), Decimal("50.5"))
    assert found.gross_exposure_max == RiskLimits().gross_exposure_max
    assert "daily_loss_max: 2000 -> 1500    (tighter: takes effect by itself)" in text.getvalue()
    assert "with the next start" in text.getvalue()
    assert [path.name for path in desk.home.iterdir() if path.name.startswith(".")] == []


async def test_set_says_what_waits_for_the_signature(desk: DeskSettings) -> None:
    await ran(desk, RiskLimits())
    console, text = paper()
    await set_limits(desk, console, ["daily_loss_max=1500", "gross_exposure_max=70000"])
    assert "gross_exposure_max: 60000 -> 70000    (looser, needs the operator's signature)" in text.getvalue()
    assert "nothing of it takes effect before `grekko limits sign" in text.getvalue()
    console, text = paper()
    assert await diff_limits(desk, console, None) is False
    assert "version 1 in force, against limits.toml" in text.getvalue()


async def test_set_starts_a_new_file_from_what_is_in_force(desk: DeskSettings) -> None:
    await ran(desk, RiskLimits(gross_exposure_max=Decimal(123)))
    await set_limits(desk, paper()[0], ["daily_loss_max=1"])
    found = (await read_limits(desk)).written().limits
    assert (found.gross_exposure_max, found.daily_loss_max) == (Decimal(123), Decimal(1))


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("daily_los_max=5", "did you mean daily_loss_max?"),
        ("daily_loss_max=-5", "must be more than 0"),
        ("daily_loss_max=true", "must be a number"),
        ("order_burst=2.5", "must be a whole number without quotes"),
        ("symbols.BTCUSDT.collar_bps=5", "symbol"),
        ("symbols.BTC/USDT.collar=5", "did you mean collar_bps?"),
        ("symbols.BTC/USDC.collar_bps=5", "not quoted in USDT"),
        ("order_types=['limitt']", "order_types.0"),
        ("quorum.threshold_numerator=9", "quorum"),
    ],
)
async def test_set_refuses_what_would_be_no_document_and_writes_nothing(
    desk: DeskSettings, assignment: str, said: str
) -> None:
    await ran(desk, RiskLimits())
    with pytest.raises(ConfigurationError) as refused:
        await set_limits(desk, paper()[0], ["order_burst=5", assignment])
    assert said in str(refused.value)
    assert not file_of(desk).exists()


@pytest.mark.parametrize("assignment", ["daily_loss_max", "=5", "a..b=5", "daily_loss_max.x=5"])
async def test_set_refuses_what_is_no_assignment(desk: DeskSettings, assignment: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        await set_limits(desk, paper()[0], ["daily_loss_max=7", assignment])
    assert refused.value.code == "ASSIGNMENT"
    assert not file_of(desk).exists()


async def test_limits_of_the_config_are_not_written_over(desk: DeskSettings) -> None:
    with desk.desk_home.config_file.open("a") as config:
        config.write('\n[risk.limits]\ndaily_loss_max = "900"\n')
    with pytest.raises(ConfigurationError) as refused:
        await set_limits(desk, paper()[0], ["daily_loss_max=1"])
    assert refused.value.code == "LIMITS_IN_CONFIG"
    file_of(desk).write_text('daily_loss_max = "901"\n')
    assert (await read_limits(desk)).problem.code == "LIMITS_TWICE"  # type: ignore[union-attr]  # there is one
    file_of(desk).write_text('daily_loss_max = "900"\n')
    assert (await read_limits(desk)).written().limits.daily_loss_max == Decimal(900)


def test_comments_stay_and_none_removes_a_value() -> None:
    text = '# ours\ndaily_loss_max = "5" # low\n\n[symbols."BTC/USDT"]\ncollar_bps = "7"\n'
    changed = changed_text(text, "limits.toml", RiskLimits(), ["daily_loss_max=4", "symbols.BTC/USDT.collar_bps=none"])
    assert (changed[:6], "# low" in changed, "collar_bps" in changed) == ("# ours", True, False)
    assert parse(tomllib.loads(changed), "x").daily_loss_max == Decimal(4)


@pytest.mark.parametrize("name", ["limits.toml", "limits.json"])
@pytest.mark.parametrize("bare", [False, True])
def test_every_kind_of_file_takes_the_same_assignments(name: str, bare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if bare:
        monkeypatch.setitem(sys.modules, "tomlkit", None)
    text = changed_text("", name, RiskLimits(), ['order_types=["limit"]', "agents.scalper.turnover_max=20000.5"])
    text = changed_text(text, name, RiskLimits(), ["order_burst=7", "leverage_max=2", "agents.other.turnover_max=none"])
    data = json.loads(text) if name.endswith("json") else tomllib.loads(text)
    limits = parse(data, name)
    assert [kind.value for kind in limits.order_types] == ["limit"]
    assert {agent: scope.turnover_max for agent, scope in limits.agents.items()} == {"scalper": Decimal("20000.5")}
    assert (limits.order_burst, limits.leverage_max) == (7, Decimal(2))


tables: Any = st.recursive(
    st.integers(-5, 5) | st.booleans() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2),
    lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(data=st.dictionaries(st.text(max_size=4), tables, max_size=3))
def test_what_is_written_without_tomlkit_reads_back_the_same(data: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(data)) == data


def test_a_link_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    (tmp_path / "limits.toml").symlink_to(tmp_path / "there")
    with pytest.raises(ConfigurationError):
        write_whole(tmp_path / "limits.toml", "y")
    assert (tmp_path / "there").read_text() == "x"


# -- show, diff, history ----------------------------------------------------------------------------------------------


async def test_show_tells_what_is_in_force_and_where_values_come_from(desk: DeskSettings) -> None:
    console, text = paper()
    await show_limits(desk, console, as_json=False, origin=False)
    assert "the desk never ran; its first start takes [risk.limits] of the config file" in text.getvalue()
    await ran(desk, RiskLimits(), RiskLimits(daily_loss_max=Decimal(1500)), by="file")
    file_of(desk).write_text('daily_loss_max = "1800"\n')
    console, text = paper()
    await show_limits(desk, console, as_json=False, origin=True)
    shown = text.getvalue()
    assert shown.startswith("limits version 2, digest ")
    assert "daily_loss_max = 1500    (document)" in shown
    assert "symbols.BTC/USDT.collar_bps = 100    (default)" in shown
    assert "limits.toml says something looser" in shown
    console, text = paper()
    await show_limits(desk, console, as_json=True, origin=False)
    facts = json.loads(text.getvalue())
    assert (facts["version"], facts["limits"]["daily_loss_max"], facts["problem"]) == (2, "1500", "")
    assert [change["path"] for change in facts["differences"] if change["needs_signature"]] == ["daily_loss_max"]
    console, text = paper()
    await show_history(desk, console)
    versions = await read_history(desk)
    assert [(item.version, item.by) for item in versions] == [(1, "start"), (2, "file")]
    assert all(timestamp(item.at_ms) in text.getvalue() for item in versions)


async def test_show_and_diff_tell_of_a_document_that_is_refused(desk: DeskSettings) -> None:
    await ran(desk, RiskLimits())
    file_of(desk).write_text("daily_loss_max = 1.5\n")
    console, text = paper()
    await show_limits(desk, console, as_json=False, origin=False)
    assert 'daily_loss_max: 1.5 must be exact, which a float is not; write it as text: "1.5"' in text.getvalue()
    with pytest.raises(ConfigurationError):
        await diff_limits(desk, console, None)


async def test_diff_with_another_file_is_good_when_nothing_needs_a_signature(
    desk: DeskSettings, tmp_path: Path
) -> None:
    await ran(desk, RiskLimits())
    other = tmp_path / "other.toml"
    other.write_text("order_burst = 3\n")
    console, text = paper()
    assert await diff_limits(desk, console, other) is True
    assert "order_burst: 40 -> 3    (tighter: takes effect by itself)" in text.getvalue()


# -- sign -------------------------------------------------------------------------------------------------------------


async def test_sign_of_a_stopped_desk_leaves_nothing_signed_and_says_so(
    desk: DeskSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_UNKNOWN_TIMEOUT_S", 0.05)
    await ran(desk, RiskLimits())
    file_of(desk).write_text("order_burst = 50\n")
    with pytest.raises(Unavailable) as refused:
        await sign_limits(desk, paper()[0], None, "more", lambda: True)
    assert refused.value.code == "DESK_NOT_RUNNING"
    assert list((desk.desk_home.run / "operator").iterdir()) == []


async def test_sign_asks_wants_a_reason_and_leaves_alone_what_needs_no_signature(
    desk: DeskSettings, tmp_path: Path
) -> None:
    await ran(desk, RiskLimits())
    looser, tighter = tmp_path / "looser.toml", tmp_path / "tighter.toml"
    looser.write_text("order_burst = 50\n")
    tighter.write_text("order_burst = 5\n")
    console, text = paper()
    with pytest.raises(InvalidValue):
        await sign_limits(desk, console, looser, " ", lambda: True)
    assert await sign_limits(desk, console, looser, "more", lambda: False) is False
    assert "not signed; nothing was changed" in text.getvalue()
    assert not file_of(desk).exists()
    assert await sign_limits(desk, console, tighter, "less", lambda: False) is True
    assert file_of(desk).read_text() == "order_burst = 5\n"


# -- the form ---------------------------------------------------------------------------------------------------------


def test_the_schema_names_every_field_and_refuses_unknown_ones() -> None:
    found = schema()
    assert set(found["properties"]) == set(RiskLimits.model_fields)
    assert found["additionalProperties"] is False
    assert {"type": "number"} not in found["properties"]["daily_loss_max"]["anyOf"]


def test_minimal_limits_read_back_as_the_same() -> None:
    limits = RiskLimits(leverage_max=Decimal("2.5"), agents={"a": {"turnover_max": 5}})  # type: ignore[dict-item]  # parsed
    assert document_of(parse(minimal(limits), "x")) == document_of(limits)
    assert minimal(RiskLimits()) == {}
