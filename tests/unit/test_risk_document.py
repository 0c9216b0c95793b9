"""Where the limits are read from, and what is said of a document that is none."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import pytest

from mcp_servers.risk.document import Configured, LimitsSource, parse_stored, read_file
from mcp_servers.risk.limits import RiskLimits, document_of
from mcp_servers.risk.settings import RiskSettings, limits_source
from trading.adapters.config import DeskSettings
from trading.domain.errors import ConfigurationError


def source(home: Path, limits: RiskLimits | None = None, file: str | None = None) -> LimitsSource:
    return LimitsSource(home, home / "config.toml", lambda: Configured(limits, None if file is None else Path(file)))


def write(path: Path, text: str, *, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def code_of(home: Path, **given: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        source(home, file=given.get("file")).read()
    return refused.value.code


def test_the_file_wins_over_nothing_and_the_section_over_the_defaults(tmp_path: Path) -> None:
    assert source(tmp_path).read().limits == RiskLimits()
    section = RiskLimits(order_burst=3)
    assert (source(tmp_path, section).read().limits, source(tmp_path, section).read().path) == (section, None)
    write(tmp_path / "limits.json", '{"order_burst": 4}')
    document = source(tmp_path).read()
    assert (document.limits.order_burst, document.origin) == (4, "limits.json")
    write(tmp_path / "other.toml", "order_burst = 5\n")
    assert source(tmp_path, file="other.toml").read().limits.order_burst == 5


def test_two_documents_are_an_error_and_never_a_mixture(tmp_path: Path) -> None:
    write(tmp_path / "limits.toml", "order_burst = 3\n")
    assert source(tmp_path, RiskLimits(order_burst=3)).read().limits.order_burst == 3
    with pytest.raises(ConfigurationError) as refused:
        source(tmp_path, RiskLimits(order_burst=4)).read()
    assert (refused.value.code, "remove [risk.limits]" in refused.value.suggestion) == ("LIMITS_TWICE", True)
    write(tmp_path / "limits.json", '{"order_burst": 3}')
    assert code_of(tmp_path) == "LIMITS_TWICE"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", "LIMITS_EMPTY", "says nothing"),
        ("order_burst = ", "LIMITS_UNREADABLE", "cannot be read"),
        ("order_burst = 1\norder_burst = 2\n", "LIMITS_UNREADABLE", "line 2"),
        ("\x00", "LIMITS_UNREADABLE", "cannot be read"),
        ("#" * 300_000, "LIMITS_UNREADABLE", "at most"),
        (
            "daily_loss_max = 2000.5",
            "LIMITS_INVALID",
            "daily_loss_max: 2000.5 must be exact, which a float is not; write",
        ),
        (
            "order_burst = 2.0",
            "LIMITS_INVALID",
            "order_burst: 2.0 must be a whole number without quotes, for example 2",
        ),
        ('order_burst = "2"', "LIMITS_INVALID", "order_burst: '2' must be a whole number"),
        ("order_burst = true", "LIMITS_INVALID", "order_burst: True must be a whole number"),
        ("order_burst = 0", "LIMITS_INVALID", "order_burst: 0 must be more than 0"),
        ("drawdown_pct_max = 101", "LIMITS_INVALID", "drawdown_pct_max: 101 must be at most 100"),
        ('daily_loss_max = "nan"', "LIMITS_INVALID", "daily_loss_max"),
        ('daily_loss_max = "1e999999"', "LIMITS_INVALID", "daily_loss_max"),
        ("reactivate_after_unclean_stop = 1", "LIMITS_INVALID", "reactivate_after_unclean_stop: 1 "),
        ("daily_losses = 5", "LIMITS_INVALID", "daily_losses: no such limit; did you mean daily_loss_max?"),
        ('[symbols."BTC/USDT"]\ncollar = 5', "LIMITS_INVALID", "symbols.BTC/USDT.collar: no such limit; did you mean"),
        ("[agents.a]\nturnover = 5", "LIMITS_INVALID", "agents.a.turnover: no such limit; did you mean turnover_max?"),
        ("[quorum]\nthreshold_numerator = 9", "LIMITS_INVALID", "threshold must lie in (0, 1]"),
        ("band_bps_interactive = 200", "LIMITS_INVALID", "band_bps_interactive must not be wider"),
        ("a = " + "[" * 50_000, "LIMITS_UNREADABLE", "cannot be read"),
        ("order_burst = 0x" + "f" * 20_000, "LIMITS_INVALID", "cannot be serialized"),
        ("turnover_max = 0x" + "f" * 20_000, "LIMITS_INVALID", "turnover_max: "),
        ("ttl_ms_human = 0x" + "f" * 20_000, "LIMITS_INVALID", "ttl_ms_human: must be at most 30000"),
        (f"turnover_window_ms = {2**70}", "LIMITS_INVALID", "cannot be serialized"),  # "tighter" by itself
        ("order_burst = 0\ndesk_burst = 0\nentries_max = 0\nmin = 1\n", "LIMITS_INVALID", "and 1 more"),
    ],
)
def test_what_is_no_document_is_refused_with_its_path_and_what_would_be_legal(
    tmp_path: Path, text: str, code: str, said: str
) -> None:
    write(tmp_path / "limits.toml", text)
    with pytest.raises(ConfigurationError) as refused:
        source(tmp_path).read()
    assert refused.value.code == code
    assert said in str(refused.value)


def test_json_is_read_as_strictly(tmp_path: Path) -> None:
    for text in (
        '{"order_burst": 1, "order_burst": 2}',
        "[]",
        '{"order_burst": NaN}',
        '{"symbols": ' + "[" * 100_000,
        '{"agents": {"\\ud800": {"order_notional_max": 5}}}',
    ):
        write(tmp_path / "limits.json", text)
        assert code_of(tmp_path) in ("LIMITS_UNREADABLE", "LIMITS_INVALID")


def test_a_file_of_others_a_pipe_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert code_of(tmp_path, file="none.toml") == "LIMITS_FILE_MISSING"
    write(tmp_path / "limits.toml", "order_burst = 3\n", mode=0o662)
    assert code_of(tmp_path) == "LOOSE_PERMISSIONS"
    (tmp_path / "limits.toml").unlink()
    os.mkfifo(tmp_path / "limits.toml")
    assert code_of(tmp_path) == "LIMITS_UNREADABLE"
    with pytest.raises(ConfigurationError) as refused:
        read_file(tmp_path / "absent.toml")
    assert refused.value.code == "LIMITS_FILE_MISSING"


def test_the_fingerprint_follows_content_and_never_raises(tmp_path: Path) -> None:
    found = {source(tmp_path).fingerprint()}
    write(tmp_path / "limits.toml", "order_burst = 3\n")
    before = (tmp_path / "limits.toml").stat()
    found.add(source(tmp_path).fingerprint())
    write(tmp_path / "limits.toml", "order_burst = 4\n")
    os.utime(tmp_path / "limits.toml", ns=(before.st_atime_ns, before.st_mtime_ns))
    found.add(source(tmp_path).fingerprint())
    write(tmp_path / "config.toml", "[risk")
    found.add(source(tmp_path).fingerprint())
    write(tmp_path / "other.toml", "order_burst = 4\n")
    assert source(tmp_path).fingerprint() in found  # nobody named it
    found.add(source(tmp_path, file="other.toml").fingerprint())
    (tmp_path / "limits.toml").unlink()
    (tmp_path / "limits.toml").mkdir()
    found.add(source(tmp_path).fingerprint())
    assert len(found) == 6


def test_the_desk_checks_the_currency_and_reads_its_section_again(tmp_path: Path) -> None:
    desk = DeskSettings(home=tmp_path)
    sections = [RiskSettings(), RiskSettings(limits=RiskLimits(order_burst=9))]
    reader = limits_source(desk, lambda: sections[0])
    assert reader.in_config() is False
    sections.pop(0)
    assert (reader.in_config(), reader.read().limits.order_burst) == (True, 9)
    write(tmp_path / "other.toml", '[symbols."BTC/EUR"]\n')
    named = limits_source(desk, lambda: RiskSettings(limits_file=Path("other.toml")))
    with pytest.raises(ConfigurationError, match="not quoted in USDT"):
        named.read()


def test_stored_limits_read_back_the_same_and_forget_what_is_no_limit_any_more() -> None:
    limits = RiskLimits(leverage_max=Decimal("2.5"))
    assert parse_stored(document_of(limits)) == limits
    older = document_of(limits).replace('"order_burst":40', '"order_burst":40,"gone":1')
    older = older.replace('"collar_bps":"100"', '"collar_bps":"100","also_gone":{}')
    assert parse_stored(older) == limits
    with pytest.raises(ConfigurationError):
        parse_stored(document_of(limits).replace('"order_burst":40', '"order_burst":0'))
