"""`grekko init`: the directory, keys and configuration of a new desk. Safe to run again; nothing is overwritten."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from coordinator.agents import AGENT_IDS
from trading.adapters.approval_signer import create_approval_key
from trading.adapters.config import DeskHome, DeskSettings, write_private
from trading.adapters.signing_keys import create_key

#: Rooms that write a ledger and therefore sign audit checkpoints.
WRITING_ROOMS = ("coordinator", "risk", "execution")

_CONFIG = """\
# Configuration of this desk. Unknown keys refuse to start; the environment (GREKKO_<NAME>) wins over this file.
mode = "{mode}"
desk = "{desk}"
account_id = "{account_id}"
market_venue = "{market_venue}"
symbols = [{symbols}]
quote = "{quote}"

[opening_balances]
{balances}

# The market: a recording, until source says "live" (or `grekko run --market live`). docs/market.md has every field.
#
# [market]
# source = "live"
# venues = ["coinbase", "kraken"]       # read beside market_venue, best first; names as in ccxt
# max_age_ms = 3000                     # older books price nothing
#
# [market.quality]
# outlier_bps = 200
#
# [market.cache]
# rules_s = 3600.0
#
# [market.influx]                       # its token: GREKKO_INFLUX_TOKEN
# url = "http://127.0.0.1:8086"
#
# [market.chain]
# rpc_url = "http://127.0.0.1:8545"
# pools = ["0x…"]
#
# [market.news]
# feeds = ["https://example.org/feed.xml"]
#
# [venues.coinbase]                     # other addresses, for tests and testnets
# rest_url = "http://127.0.0.1:8801"
# ws_url = "ws://127.0.0.1:8801/ws"
"""


@dataclass(frozen=True, slots=True)
class Initialized:
    """What `init` made and what was there already, as paths relative to the home."""

    created: tuple[str, ...]
    kept: tuple[str, ...]


def initialize(settings: DeskSettings) -> Initialized:
    """Create what is missing of a desk's home.

    Raises:
        ConfigurationError: the home exists and is open to others.
    """
    home = settings.desk_home.ensure()
    created: list[str] = []
    kept: list[str] = []

    def note(path: Path, *, made: bool) -> None:
        (created if made else kept).append(str(path.relative_to(home.path)))

    approval = home.keys("risk") / "approval.key"
    note(approval, made=not approval.exists())
    if not approval.exists():
        create_approval_key(home)
    for path, purpose, public_name in _keys(home):
        note(path, made=not path.exists())
        if not path.exists():
            create_key(path, purpose, public_path=home.public_keys / f"{public_name}.pub")
    for path, data in ((home.keys("market") / "feed.hmac", secrets.token_hex(32) + "\n"), _config(home, settings)):
        note(path, made=not path.exists())
        if not path.exists():
            write_private(path, data.encode())
    return Initialized(tuple(created), tuple(kept))


async def provision(settings: DeskSettings) -> None:
    """Make the schemas and roles of the ledgers if the desk keeps them in PostgreSQL; safe to run again.

    Raises:
        LedgerUnavailable: the database does not answer, or its role may not create schemas and roles.
    """
    if settings.database_url is not None:
        from trading.adapters.sql.postgres_store import provision_postgres

        await provision_postgres(settings.database_url.get_secret_value())


def _keys(home: DeskHome) -> list[tuple[Path, str, str]]:
    keys = [
        (home.keys("coordinator") / "leader.key", "leader", "leader"),
        (home.keys("operator") / "operator.key", "operator", "operator"),
    ]
    keys += [(home.keys("agents") / f"{agent}.key", "agent", f"agent-{agent}") for agent in AGENT_IDS]
    keys += [(home.keys(room) / "checkpoint.key", "checkpoint", f"checkpoint-{room}") for room in WRITING_ROOMS]
    return keys


def _config(home: DeskHome, settings: DeskSettings) -> tuple[Path, str]:
    text = _CONFIG.format(
        mode=settings.mode,
        desk=settings.desk,
        account_id=settings.account_id,
        market_venue=settings.market_venue,
        symbols=", ".join(f'"{symbol}"' for symbol in settings.symbols),
        quote=settings.quote,
        balances="\n".join(f'{currency} = "{amount}"' for currency, amount in settings.opening_balances.items()),
    )
    return home.path / "config.toml", text
