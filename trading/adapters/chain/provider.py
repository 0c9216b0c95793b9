"""The transport under web3.py: one node over bounded HTTP. Imported with the first request: web3.py is large."""

from __future__ import annotations

from typing import Any, Final, cast

import orjson
from web3 import AsyncWeb3
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from trading.adapters.bounded_http import BoundedHttp

_HEADERS: Final = {"Content-Type": "application/json"}


class BoundedProvider(AsyncJSONBaseProvider):
    """Sends each request as one POST and repeats nothing.

    web3.py's own HTTP provider reads a body of any size, follows redirects and opens a connection per request.

    Args:
        url: the node.
        http: sends the requests; closed by whoever made it.
    """

    # A contract could name an address to be fetched (EIP-3668); nothing is fetched from anywhere but the node.
    global_ccip_read_enabled = False

    def __init__(self, url: str, http: BoundedHttp) -> None:
        super().__init__()
        self._url = url
        self._http = http

    def __repr__(self) -> str:
        """Return the class alone: the URL may carry a key."""
        return "BoundedProvider()"

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Send one request.

        Raises:
            HttpFailed: there was no answer.
        """
        answer = await self._http.post(self._url, self.encode_rpc_request(method, params), _HEADERS)
        # Not web3.py's decoder, for which deep nesting is a matter of the recursion limit.
        return cast("RPCResponse", orjson.loads(answer.body))


def open_web3(url: str, http: BoundedHttp) -> AsyncWeb3[Any]:
    """Return web3.py over ``http``; nothing is sent yet.

    It has none of web3.py's middleware: one asks for the chain's id before every call, which we check ourselves, and
    refuses blocks of chains with proof of authority; the others are for names and for sending.
    """
    return AsyncWeb3(BoundedProvider(url, http), middleware=[])
