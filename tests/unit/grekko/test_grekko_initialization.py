"""`grekko init` makes a desk's home once and never overwrites a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.agents import AGENT_IDS
from grekko.initialization import WRITING_ROOMS, initialize
from mcp_servers.market.settings import MarketSettings, check_allowed, load_addresses, load_market_settings
from trading.adapters.approval_signer import load_approval_signer
from trading.adapters.config import DeskSettings, load_settings
from trading.adapters.signing import load_public_key
from trading.adapters.signing_keys import load_signer
from trading.domain.errors import ConfigurationError


def test_every_key_is_private_serves_its_purpose_and_has_its_public_half(tmp_path: Path) -> None:
    settings = DeskSettings(home=tmp_path / "desk")
    initialize(settings)
    home = settings.desk_home
    assert load_approval_signer(home).public_key == load_public_key(home.public_keys / "risk-approval.pub")
    for agent in AGENT_IDS:
        signer = load_signer(home.keys("agents") / f"{agent}.key", "agent")
        assert signer.public_key == load_public_key(home.public_keys / f"agent-{agent}.pub")
    for room in WRITING_ROOMS:
        load_signer(home.keys(room) / "checkpoint.key", "checkpoint")
    files = [path for path in home.path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in home.path.rglob("*") if path.is_dir()} == {0o700}


def test_a_second_init_keeps_everything(tmp_path: Path) -> None:
    settings = DeskSettings(home=tmp_path / "desk")
    first = initialize(settings)
    before = {path: path.read_bytes() for path in settings.home.rglob("*") if path.is_file()}
    second = initialize(settings)
    assert second.created == ()
    assert set(second.kept) == set(first.created)
    assert before == {path: path.read_bytes() for path in settings.home.rglob("*") if path.is_file()}


def test_a_home_that_others_can_read_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "desk"
    home.mkdir(mode=0o755)
    with pytest.raises(ConfigurationError) as caught:
        initialize(DeskSettings(home=home))
    assert caught.value.code == "LOOSE_PERMISSIONS"


def test_the_written_configuration_reads_back_as_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREKKO_HOME", str(tmp_path / "desk"))
    monkeypatch.delenv("GREKKO_CONFIG", raising=False)
    settings = load_settings()
    initialize(settings)
    assert load_settings() == settings


def test_every_commented_line_of_the_written_configuration_is_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREKKO_HOME", str(tmp_path / "desk"))
    monkeypatch.delenv("GREKKO_CONFIG", raising=False)
    initialize(load_settings())
    file = tmp_path / "desk" / "config.toml"
    text = file.read_text(encoding="utf-8")
    head, _, tail = text.partition("# [market]")
    assert load_market_settings() == MarketSettings()
    lines = [line.removeprefix("#").removeprefix(" ") for line in f"# [market]{tail}".splitlines()]
    file.write_text(head + "\n".join(lines), encoding="utf-8")
    found = load_market_settings()
    assert (found.source, found.venues) == ("live", ("coinbase", "kraken"))
    assert None not in (found.influx.url, found.chain.rpc_url)
    assert (len(found.chain.pools), len(found.news.feeds)) == (1, 1)
    assert load_addresses("coinbase").ws_url == "ws://127.0.0.1:8801/ws"
    check_allowed(load_settings(), found)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('mode = "lvie"', "mode"),
        ('moed = "paper"', "moed"),
        ("[riks]\n", "riks"),
        ('symbols = ["BTCUSDT"]', "BTCUSDT"),
        ('symbols = ["BTC/USDT:USDT"]', "derivative"),
        ("mode = ", "config.toml"),
    ],
)
def test_a_configuration_that_cannot_be_meant_refuses_to_start(
    text: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREKKO_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert where in str(caught.value)


def test_a_mistyped_mode_in_the_environment_is_an_error_and_never_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREKKO_MODE", "LIVE")
    with pytest.raises(ConfigurationError):
        load_settings()
