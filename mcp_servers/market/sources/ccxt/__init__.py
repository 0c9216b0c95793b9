"""Public data of real exchanges through ccxt: live streams, and questions over REST."""

from mcp_servers.market.sources.ccxt.exchange import Exchange, open_exchange
from mcp_servers.market.sources.ccxt.instruments import instrument_of, number_text
from mcp_servers.market.sources.ccxt.live import CcxtLiveSource

__all__ = ["CcxtLiveSource", "Exchange", "instrument_of", "number_text", "open_exchange"]
