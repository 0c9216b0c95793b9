"""A small chain that speaks Ethereum JSON-RPC over HTTP, for the wallet's tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

TREASURY: Final = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"  # from the test vectors of EIP-55
COLD: Final = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
TOKEN: Final = "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB"
MINED: Final = "0x" + "a1" * 32
REVERTED: Final = "0x" + "b2" * 32
PENDING: Final = "0x" + "c3" * 32
GENESIS_S: Final = 1_750_000_000
GWEI: Final = 10**9


def _word(value: int) -> str:
    return f"0x{value:064x}"


@dataclass
class Chain:
    """What the node says; tests change it."""

    chain_id: int = 31_337
    height: int = 120
    decimals: int = 6
    native: dict[str, int] = field(default_factory=lambda: {TREASURY.lower(): 3 * 10**24 + 1, COLD.lower(): 0})
    tokens: dict[str, int] = field(default_factory=lambda: {TREASURY.lower(): 1_234_567, COLD.lower(): 2**256 - 1})
    refuse: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    hang: bool = False
    asked: list[str] = field(default_factory=list)
    blocks_asked: set[str] = field(default_factory=set)

    def answer(self, method: str, params: list[Any]) -> Any:
        """Return the result of one request, as a real node spells it."""
        self.asked.append(method)
        handler: Callable[..., Any] = getattr(self, method)
        return handler(*params)

    def eth_chainId(self) -> str:  # noqa: N802 - the wire's names
        return hex(self.chain_id)

    def eth_blockNumber(self) -> str:  # noqa: N802
        return hex(self.height)

    def eth_getBalance(self, address: str, block: str) -> str:  # noqa: N802
        self.blocks_asked.add(block)
        return hex(self.native[address.lower()])

    def eth_call(self, transaction: dict[str, str], block: str) -> str:
        self.blocks_asked.add(block)
        if transaction["to"].lower() != TOKEN.lower():
            return "0x"
        if transaction["data"] == "0x313ce567":
            return _word(self.decimals)
        assert transaction["data"].startswith("0x70a08231" + "0" * 24)
        return _word(self.tokens["0x" + transaction["data"][-40:]])

    def eth_feeHistory(self, count: str, newest: str, percentiles: list[float]) -> dict[str, Any]:  # noqa: N802
        blocks = int(count, 16)
        assert (newest, percentiles) == ("latest", [10.0, 50.0, 90.0])
        return {
            "oldestBlock": hex(self.height - blocks + 1),
            "baseFeePerGas": [hex(10 * GWEI + index) for index in range(blocks + 1)],
            "gasUsedRatio": [0.5] * blocks,
            "reward": [[hex(GWEI // 10), hex(GWEI), hex(3 * GWEI)]] * blocks,
        }

    def eth_getBlockByNumber(self, block: str, full: bool) -> dict[str, Any]:  # noqa: N802
        assert (block, full) == ("latest", False)
        return {
            "number": hex(self.height),
            "timestamp": hex(GENESIS_S),
            "hash": MINED,
            "extraData": "0x" + "00" * 97,  # a chain with proof of authority
            "transactions": [],
        }

    def eth_getTransactionByHash(self, digest: str) -> dict[str, Any] | None:  # noqa: N802
        if digest not in (MINED, REVERTED, PENDING):
            return None
        mined = digest != PENDING
        return {
            "hash": digest,
            "from": TREASURY.lower(),
            "to": COLD.lower() if digest != REVERTED else None,
            "value": hex(15 * 10**17),
            "nonce": "0x7",
            "input": "0xdeadbeef",
            "blockNumber": hex(self.height - 5) if mined else None,
            "gas": hex(21_000),
            "gasPrice": hex(GWEI),
        }

    def eth_getTransactionReceipt(self, digest: str) -> dict[str, Any]:  # noqa: N802
        return {
            "transactionHash": digest,
            "blockNumber": hex(self.height - 5),
            "status": "0x1" if digest == MINED else "0x0",
            "gasUsed": hex(21_000),
            "effectiveGasPrice": hex(2 * GWEI),
            "logs": [],
        }


@asynccontextmanager
async def chain_node(chain: Chain) -> AsyncGenerator[str]:
    """Serve ``chain`` on a free loopback port and yield its URL, which carries a key as providers' URLs do."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _exchange(chain, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v3/sk-node-key"
    finally:
        server.close()


async def _exchange(chain: Chain, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    length = next(int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length"))
    request = json.loads(await reader.readexactly(length))
    if chain.hang:
        await reader.read()  # until the client gives up
        return False
    reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
    if request["method"] in chain.refuse:
        reply["error"] = chain.refuse[request["method"]]
    else:
        reply["result"] = chain.answer(request["method"], request["params"])
    body = chain.body if chain.body is not None else json.dumps(reply).encode()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    return True
