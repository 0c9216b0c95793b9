"""What the wallet's section of the configuration accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mcp_servers.wallet.settings import WalletSection, WatchedAccount, load_wallet_settings, parse_address
from tests.wallet_node import COLD, TOKEN, TREASURY
from trading.domain.errors import ConfigurationError, InvalidValue


@pytest.mark.parametrize("address", [TREASURY, COLD, TOKEN])
def test_an_address_is_accepted_in_three_spellings(address: str) -> None:
    for spelled in (address, address.lower(), "0x" + address[2:].upper()):
        assert parse_address(spelled) == address


@pytest.mark.parametrize("text", [TREASURY[:-1] + "D", TREASURY[:-1], TREASURY[2:], "0x" + "g" * 40, ""])
def test_a_mistyped_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_address(text)


@pytest.mark.parametrize(
    "section",
    [
        {"rpc_url": "http://node.example", "chain_id": 1},
        {"rpc_url": "ftp://node.example", "chain_id": 1},
        {"rpc_url": "https://", "chain_id": 1},
        {"rpc_url": "https://node.example"},
        {"rpc_url": "https://node.example", "chain_id": 0},
        {"private_key": "0x01"},
        {"accounts": [{"name": "a", "address": COLD}, {"name": "a", "address": TREASURY}]},
        {"accounts": [{"name": "a", "address": COLD}, {"name": "b", "address": COLD.lower()}]},
        {"accounts": [{"name": "a b", "address": COLD}]},
        {"tokens": [{"symbol": "ETH", "address": TOKEN, "decimals": 18}]},
        {"tokens": [{"symbol": "<b>", "address": TOKEN, "decimals": 18}]},
        {"tokens": [{"symbol": "T", "address": TOKEN, "decimals": -1}]},
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, InvalidValue)):
        WalletSection.model_validate(section)


def test_the_url_is_not_shown() -> None:
    section = WalletSection.model_validate({"rpc_url": "https://node.example/sk-1", "chain_id": 1})
    assert "sk-1" not in repr(section) + str(section) + section.model_dump_json()


def test_the_environment_wins_and_a_wrong_key_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREKKO_HOME", str(tmp_path))
    monkeypatch.delenv("GREKKO_CONFIG", raising=False)
    file = tmp_path / "config.toml"
    file.write_text('[wallet]\nrpc_url = "https://a.example"\nchain_id = 1\n', encoding="utf-8")
    monkeypatch.setenv("GREKKO_WALLET_CHAIN_ID", "10")
    assert load_wallet_settings().wallet.chain_id == 10
    file.write_text('[wallet]\nrpc_urll = "https://a.example"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match="rpc_urll"):
        load_wallet_settings()


def test_an_account_is_frozen() -> None:
    account = WatchedAccount(name="a", address=COLD)
    with pytest.raises(ValidationError):
        account.name = "b"
