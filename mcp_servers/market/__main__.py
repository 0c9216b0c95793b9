"""``python -m mcp_servers.market [--market replay|live] [--speed N] [--loop]``: the market server."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from pydantic import ValidationError

from mcp_servers.hosting import serve
from mcp_servers.market.server import build
from mcp_servers.market.settings import MarketSettings, load_market_settings
from trading.domain.errors import ConfigurationError

#: A busy feed keeps the interpreter's lock for the usual 5 ms at each of the hops that reading the archive takes.
_SWITCH_S: Final = 0.0001


def main(argv: list[str]) -> int:
    """Run the server; options here win over the ``[market]`` section. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="grekko market", add_help=False, allow_abbrev=False)
    parser.add_argument("--market", choices=("replay", "live"), help="a recording, or the exchange's public data")
    parser.add_argument("--speed", type=float, help="recorded seconds per second, 0 for as fast as possible")
    parser.add_argument("--loop", action="store_true", default=None, help="play the recording again at its end")
    options, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        parser.print_help(sys.stderr)
    sys.setswitchinterval(_SWITCH_S)
    return serve(lambda: build(_chosen(options)), rest, "market")


def _chosen(options: argparse.Namespace) -> MarketSettings:
    given: dict[str, Any] = {"source": options.market, "speed": options.speed, "loop": options.loop}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = load_market_settings()
    try:
        return MarketSettings.model_validate({**settings.model_dump(), **overrides})
    except ValidationError as error:
        raise ConfigurationError("--speed must be a number from 0 to 10000") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
