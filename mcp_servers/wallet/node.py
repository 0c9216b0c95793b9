"""One JSON-RPC node through web3.py, with its failures turned into ours.

Rules kept here:

- Every answer is from the configured chain: its id is checked on the first request and again after a failure.
- The node's URL and whatever web3.py or aiohttp put into an exception stay out of errors and logs: both contain it.
- Nothing is fetched from anywhere else: CCIP-read lets a contract name a URL and is off, and ENS is not used.
- A request is bounded in time and is not repeated here; the caller is told when to try again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from mcp_servers.envelope import untrusted
from mcp_servers.wallet.errors import NodeRefused, NodeUnreachable, WalletNotConfigured, WrongChain
from mcp_servers.wallet.settings import WalletSection

if TYPE_CHECKING:
    from web3 import AsyncWeb3

T = TypeVar("T")

#: Requests to the node at once.
_CONCURRENCY: Final = 8


class Node:
    """The chain as one configured node tells it. Connects when first asked; close it in the end.

    Args:
        section: where the node is and which chain it must be on.
    """

    def __init__(self, section: WalletSection) -> None:
        self._section = section
        self._web3: AsyncWeb3[Any] | None = None
        self._checked = False
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(_CONCURRENCY)

    async def ask(self, question: Callable[[AsyncWeb3[Any]], Awaitable[T]]) -> T:
        """Return the node's answer to one question.

        Raises:
            WalletNotConfigured: there is no node.
            WrongChain: it is on another chain.
            NodeUnreachable: no answer in time.
            NodeRefused: it answered with an error.
        """
        web3 = await self._open()
        if not self._checked:
            found = int(await self._bounded(lambda: web3.eth.chain_id))
            if found != self._section.chain_id:
                raise WrongChain(
                    f"the node is on chain {found}, the desk is configured for {self._section.chain_id}",
                    suggestion="the owner of the desk corrects rpc_url or chain_id under [wallet]",
                )
            self._checked = True
        return await self._bounded(lambda: question(web3))

    async def close(self) -> None:
        """Close the connections."""
        if self._web3 is not None:
            await self._web3.provider.disconnect()

    async def _open(self) -> AsyncWeb3[Any]:
        if self._section.rpc_url is None:
            raise WalletNotConfigured
        async with self._opening:
            if self._web3 is None:
                self._web3 = await _connect(self._section.rpc_url.get_secret_value(), self._section.timeout_s)
        return self._web3

    async def _bounded(self, question: Callable[[], Awaitable[T]]) -> T:
        import aiohttp
        from web3.exceptions import TransactionNotFound, Web3Exception, Web3RPCError

        try:
            async with asyncio.timeout(self._section.timeout_s), self._slots:
                return await question()
        except TransactionNotFound:
            raise
        except Web3RPCError as error:
            raise _refused(error) from None  # its text holds the request, and may hold the URL
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._checked = False  # after a failure it may be another node that answers
            raise NodeUnreachable(
                f"the chain's node did not answer ({type(error).__name__})",
                suggestion="try again; if it persists, the owner of the desk checks the node",
            ) from None
        except (Web3Exception, ValueError, TypeError, KeyError) as error:
            self._checked = False
            raise NodeRefused(
                f"the chain's node answered with something that is no JSON-RPC ({type(error).__name__})",
                suggestion="the owner of the desk checks that rpc_url is a JSON-RPC endpoint",
            ) from None


async def _connect(url: str, timeout_s: float) -> AsyncWeb3[Any]:
    import aiohttp
    from web3 import AsyncHTTPProvider, AsyncWeb3
    from web3.middleware import ExtraDataToPOAMiddleware  # pyright: ignore[reportUnknownVariableType] - no stubs

    logging.getLogger("web3").setLevel(logging.WARNING)  # it logs the URL at INFO
    provider = AsyncHTTPProvider(
        url, request_kwargs={"timeout": aiohttp.ClientTimeout(total=timeout_s)}, exception_retry_configuration=None
    )
    provider.global_ccip_read_enabled = False
    # web3.py's own session closes the connection after every request.
    await provider.cache_async_session(aiohttp.ClientSession(raise_for_status=True, trust_env=False))
    web3 = cast("AsyncWeb3[Any]", AsyncWeb3(provider))
    # Chains with proof of authority put more into a header than Ethereum allows.
    web3.middleware_onion.inject(cast("Any", ExtraDataToPOAMiddleware), layer=0)
    return web3


def _refused(error: Exception) -> NodeRefused:
    response: object = getattr(error, "rpc_response", None)
    detail = cast("dict[str, Any]", response).get("error") if isinstance(response, dict) else None
    said = cast("dict[str, Any]", detail) if isinstance(detail, dict) else {}
    text = untrusted(str(said.get("message", "no reason given")), max_chars=200)
    return NodeRefused(f"the chain's node answered with error {said.get('code')}: {text}")
