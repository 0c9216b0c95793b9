"""One JSON-RPC node through web3.py: reads that are bounded, repeated with patience, and pinned to one block.

Rules kept here:

- Every answer is from the configured chain: its id is checked on the first request and again after a failure.
- A read is repeated a few times within one deadline; nothing here sends a transaction, so repeating is safe.
- What a node says in an error is logged, cut; it does not reach a caller, and neither does the node's URL.
- A node that asks for a pause gets it: until then questions are refused here.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from trading.adapters.bounded_http import BoundedHttp, HttpFailed, check_url
from trading.adapters.chain.errors import (
    BlockGone,
    CallReverted,
    ChainRateLimited,
    ChainUnavailable,
    StateGone,
    WrongChain,
)
from trading.domain.errors import TradingError
from trading.ports.clock import Clock

if TYPE_CHECKING:
    from web3 import AsyncWeb3

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Requests to the node at once.
_CONCURRENCY: Final = 8
_MAX_BYTES: Final = 4 << 20  # a block's hashes are some hundred kilobytes
_ATTEMPTS: Final = 3
_BACKOFF_S: Final = 0.1
_SUGGESTION: Final = "try again; if it persists, the owner of the desk checks the node"

# Clients word this differently and use the same codes for it. Sources: geth, erigon, nethermind, reth, anvil.
_GONE: Final = re.compile(
    r"header.* not found|block.* not found|unknown block|resource not found|not.*canonical|out.?of.?range", re.I
)
_PRUNED: Final = re.compile(r"missing trie node|state .*not available|historical state|pruned|archive", re.I)
_LIMITED: Final = re.compile(r"rate limit|too many requests|limit exceeded|exceeded .*(capacity|quota|limit)", re.I)
_REVERTED: Final = re.compile(r"revert|invalid (opcode|jump)|out of gas|stack (und|ov)erflow|evm error", re.I)
_LIMIT_CODES: Final = (-32005, 429)


@dataclass(frozen=True, slots=True)
class Block:
    """A block that was on the chain when it was read.

    Attributes:
        number: its height.
        hash: ``0x`` and 64 hexadecimal digits; two blocks of one height differ in it.
        timestamp_s: what its producer says, seconds since the epoch.
    """

    number: int
    hash: str
    timestamp_s: int


class ChainClient:
    """The chain as one node tells it. Connects when first asked; close it in the end.

    Args:
        url: the node, ``https``, or ``http`` on this machine.
        chain_id: the chain it must be on, EIP-155.
        clock: for pauses the node asks for.
        timeout_s: for one request.
        deadline_s: for one question with its repetitions.
        sleep, jitter: how to wait between repetitions; the machine's unless a test says otherwise.

    Raises:
        InvalidValue: the URL is of another form.
    """

    def __init__(
        self,
        url: str,
        *,
        chain_id: int,
        clock: Clock,
        timeout_s: float = 5.0,
        deadline_s: float = 10.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        self._url = check_url(url, what="rpc_url")
        self._chain_id = chain_id
        self._clock = clock
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._jitter = jitter or random.Random().random
        self._http: BoundedHttp | None = None
        self._web3: AsyncWeb3[Any] | None = None
        self._opening = asyncio.Lock()
        self._checked = False
        self._not_before_ns = 0
        self._slots = asyncio.Semaphore(_CONCURRENCY)

    @property
    def chain_id(self) -> int:
        """Return the chain that the node must be on."""
        return self._chain_id

    async def ask(self, question: Callable[[AsyncWeb3[Any]], Awaitable[T]]) -> T:
        """Return the node's answer to one reading question; it may be asked more than once.

        Raises:
            ChainUnavailable: no answer within the deadline, or none that makes sense.
            ChainRateLimited: the node wants a pause.
            WrongChain: it is on another chain.
            CallReverted, BlockGone, StateGone: what the node said.
        """
        self._refuse_during_pause()
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._repeated(question)
        except TimeoutError:
            self._checked = False
            raise ChainUnavailable("the chain's node did not answer in time", suggestion=_SUGGESTION) from None

    async def block(self, number: int | None = None) -> Block:
        """Return the newest block, or the one of that height.

        Raises:
            BlockGone: there is none.
            TradingError: as :meth:`ask`.
        """
        found: Any = await self.ask(lambda web3: web3.eth.get_block("latest" if number is None else number))
        try:
            return Block(int(found["number"]), "0x" + bytes(found["hash"]).hex(), int(found["timestamp"]))
        except (KeyError, TypeError, ValueError):
            raise ChainUnavailable("the chain's node answered with no block", suggestion=_SUGGESTION) from None

    async def call(self, to: str, data: bytes, block: Block) -> bytes:
        """Return what a contract returns at exactly that block (EIP-1898).

        Raises:
            TradingError: as :meth:`ask`.
        """
        transaction: Any = {"to": to, "data": "0x" + data.hex()}
        at: Any = {"blockHash": block.hash, "requireCanonical": True}
        return bytes(await self.ask(lambda web3: web3.eth.call(transaction, at, ccip_read_enabled=False)))

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    async def _open(self) -> AsyncWeb3[Any]:
        async with self._opening:
            if self._web3 is None:
                # web3.py takes a second to import, which would hold up whatever else this process does.
                limit = sys.getrecursionlimit()
                provider = await asyncio.to_thread(importlib.import_module, f"{__package__}.provider")
                # One of its parts raises the limit so far that deeply nested input would end the process.
                sys.setrecursionlimit(limit)
                self._http = BoundedHttp(max_bytes=_MAX_BYTES, timeout_s=self._timeout_s, connections=_CONCURRENCY)
                self._web3 = cast("AsyncWeb3[Any]", provider.open_web3(self._url, self._http))
        return self._web3

    async def _repeated(self, question: Callable[[AsyncWeb3[Any]], Awaitable[T]]) -> T:
        for attempt in range(_ATTEMPTS):
            try:
                return await self._once(question)
            except BlockGone:
                raise
            except ChainUnavailable:
                self._checked = False  # it may be another node that answers next
                if attempt == _ATTEMPTS - 1:
                    raise
            await self._sleep(_BACKOFF_S * 2**attempt * (0.5 + self._jitter()))
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, question: Callable[[AsyncWeb3[Any]], Awaitable[T]]) -> T:
        web3 = await self._open()
        if not self._checked:
            found = int(await self._answered(lambda: web3.eth.chain_id))
            if found != self._chain_id:
                raise WrongChain(
                    f"the node is on chain {found}, the desk is configured for {self._chain_id}",
                    suggestion="the owner of the desk corrects rpc_url or chain_id",
                )
            self._checked = True
        return await self._answered(lambda: question(web3))

    async def _answered(self, question: Callable[[], Awaitable[T]]) -> T:
        from web3.exceptions import BlockNotFound, ContractLogicError, TransactionNotFound, Web3Exception, Web3RPCError

        try:
            async with self._slots:
                return await question()
        except TransactionNotFound:
            raise
        except BlockNotFound:
            raise BlockGone("the chain's node does not have that block") from None
        except ContractLogicError as error:
            raise CallReverted(_revert_data(error)) from None
        except Web3RPCError as error:
            raise self._meant(error) from None  # its text holds the request
        except HttpFailed as error:
            if error.failure == "rate_limited":
                raise self._limited(error.after_ms) from None
            raise ChainUnavailable(f"the chain's node: {error}", suggestion=_SUGGESTION) from None
        except (Web3Exception, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ChainUnavailable(
                f"the chain's node answered with something that is no JSON-RPC ({type(error).__name__})",
                suggestion=_SUGGESTION,
            ) from None

    def _meant(self, error: Exception) -> TradingError:
        """Return what an error of the node's means; the codes are too few to tell."""
        response: object = getattr(error, "rpc_response", None)
        detail = cast("dict[str, Any]", response).get("error") if isinstance(response, dict) else None
        said = cast("dict[str, Any]", detail) if isinstance(detail, dict) else {}
        code, text = said.get("code"), str(said.get("message", ""))[:200]
        if code in _LIMIT_CODES or _LIMITED.search(text):
            return self._limited(None)
        if _PRUNED.search(text):
            return StateGone("the chain's node no longer keeps the state of that block")
        if _GONE.search(text):
            return BlockGone("the chain's node does not have that block")
        if _REVERTED.search(text):
            return CallReverted()
        _log.warning("the chain's node answered with error %r: %r", code, text)
        return ChainUnavailable(
            f"the chain's node answered with error {code if isinstance(code, int) else 'of no code'}",
            suggestion=_SUGGESTION,
        )

    def _limited(self, after_ms: int | None) -> ChainRateLimited:
        refused = ChainRateLimited(after_ms)
        self._not_before_ns = self._clock.monotonic_ns() + (refused.after_ms or 0) * 1_000_000
        return refused

    def _refuse_during_pause(self) -> None:
        left_ns = self._not_before_ns - self._clock.monotonic_ns()
        if left_ns > 0:
            raise ChainRateLimited(left_ns // 1_000_000 + 1)


def _revert_data(error: Exception) -> bytes:
    data: object = getattr(error, "data", None)
    if not isinstance(data, str):
        return b""
    try:
        return bytes.fromhex(data.removeprefix("0x"))
    except ValueError:
        return b""
