"""A real EVM node with the published Uniswap v2 and v3 contracts on it, started once and put back for each test."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
from eth_abi.abi import decode, encode
from eth_utils.abi import function_signature_to_4byte_selector
from eth_utils.address import to_checksum_address

MODULES: Final = Path(__file__).parents[1] / ".venv" / "node" / "node_modules"
CHAIN_ID: Final = 31_337
GENESIS_S: Final = 1_750_000_000
E18: Final = 10**18
E6: Final = 10**6
NOBODY: Final = "0x" + "00" * 20
NEVER_S: Final = GENESIS_S * 2  # a deadline that does not come

_ARTIFACTS: Final = {
    "v2_factory": "@uniswap/v2-core/build/UniswapV2Factory.json",
    "v2_router": "@uniswap/v2-periphery/build/UniswapV2Router02.json",
    "weth": "@uniswap/v2-periphery/build/WETH9.json",
    "v3_factory": "@uniswap/v3-core/artifacts/contracts/UniswapV3Factory.sol/UniswapV3Factory.json",
    "v3_router": "@uniswap/v3-periphery/artifacts/contracts/SwapRouter.sol/SwapRouter.json",
    "positions": "@uniswap/v3-periphery/artifacts/contracts/NonfungiblePositionManager.sol/"
    "NonfungiblePositionManager.json",
    "quoter": "@uniswap/v3-periphery/artifacts/contracts/lens/QuoterV2.sol/QuoterV2.json",
    "erc20": "@openzeppelin/contracts/build/contracts/ERC20PresetFixedSupply.json",
}
#: Where the compiler put ``_decimals`` of that ERC-20.
_DECIMALS_SLOT: Final = 5
#: PUSH32 <symbol>, PUSH0, MSTORE, PUSH1 32, PUSH0, RETURN: answers every call with 32 bytes of text, as MKR's symbol().
_ANSWER_WORD: Final = "0x7f{word}5f5260205ff3"


def _installed(pattern: str) -> Path:
    """Return a file of the tools for tests, or fail with what to do."""
    found = sorted(MODULES.glob(pattern))
    if not found:
        raise AssertionError(f"{pattern} is missing: run make tools")
    return found[0]


def _creation_code(name: str) -> bytes:
    found = json.loads(_installed(_ARTIFACTS[name]).read_text(encoding="utf-8"))
    return bytes.fromhex(found["bytecode"].removeprefix("0x"))


def calldata(signature: str, *arguments: Any) -> str:
    """Return a call's data; the signature spells a tuple in its own parentheses."""
    types = _split(signature[signature.index("(") + 1 : -1])
    return "0x" + (function_signature_to_4byte_selector(signature) + encode(types, arguments)).hex()


def _split(types: str) -> list[str]:
    parts, depth = [""], 0
    for letter in types:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part]


@dataclass
class Node:
    """One running node, driven over JSON-RPC with its own unlocked accounts."""

    url: str
    http: httpx2.Client
    me: str = ""

    def rpc(self, method: str, *params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        answer = self.http.post(self.url, json=body).json()
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def send(self, to: str | None, data: str, *, value: int = 0) -> dict[str, Any]:
        """Mine a transaction and return its receipt."""
        transaction = {"from": self.me, "data": data, "value": hex(value), "gas": hex(15_000_000)}
        digest = self.rpc("eth_sendTransaction", {**transaction, **({} if to is None else {"to": to})})
        while (receipt := self.rpc("eth_getTransactionReceipt", digest)) is None:
            time.sleep(0.001)
        assert receipt["status"] == "0x1", receipt
        return receipt

    def deploy(self, name: str, types: Sequence[str] = (), *arguments: Any) -> str:
        code = _creation_code(name) + encode(types, arguments)
        return to_checksum_address(self.send(None, "0x" + code.hex())["contractAddress"])

    def call(self, to: str, signature: str, returns: Sequence[str], *arguments: Any) -> tuple[Any, ...]:
        asked = {"from": self.me, "to": to, "data": calldata(signature, *arguments)}
        return decode(returns, bytes.fromhex(self.rpc("eth_call", asked, "latest")[2:]))

    def mine(self, blocks: int = 1, *, seconds: int = 12) -> None:
        """Mine blocks that are ``seconds`` apart, the first as far from the head."""
        for _ in range(blocks):
            self.rpc("evm_setNextBlockTimestamp", self.now_s() + seconds)
            self.rpc("anvil_mine", "0x1")

    def head(self) -> dict[str, Any]:
        return self.rpc("eth_getBlockByNumber", "latest", False)

    def now_s(self) -> int:
        return int(self.head()["timestamp"], 16)


@dataclass
class World:
    """Uniswap on a node: WETH (18 decimals) and USDC (6) in a v2 pair and a v3 pool at about 2,000 USDC per WETH."""

    node: Node
    weth: str = ""
    usdc: str = ""
    dai: str = ""
    v2_router: str = ""
    v2_pair: str = ""
    v3_router: str = ""
    v3_pool: str = ""
    quoter: str = ""
    positions: str = ""
    v3_factory: str = ""
    approved: set[tuple[str, str]] = field(default_factory=set)

    def deploy(self) -> None:
        """Put everything on the chain."""
        node = self.node
        node.me = to_checksum_address(node.rpc("eth_accounts")[0])
        node.rpc("anvil_setBalance", node.me, hex(10**9 * E18))
        self.weth = node.deploy("weth")
        node.send(self.weth, calldata("deposit()"), value=10**6 * E18)
        self.usdc, self.dai = self.token("USDC", 6), self.token("DAI", 18)
        factory = node.deploy("v2_factory", ["address"], node.me)
        self.v2_router = node.deploy("v2_router", ["address", "address"], factory, self.weth)
        self.v3_factory = node.deploy("v3_factory")
        both = (["address", "address"], self.v3_factory, self.weth)
        self.v3_router, self.quoter = node.deploy("v3_router", *both), node.deploy("quoter", *both)
        self.positions = node.deploy("positions", ["address"] * 3, self.v3_factory, self.weth, NOBODY)
        self.add_v2(self.weth, self.usdc, 1_000 * E18, 2_000_000 * E6)
        (self.v2_pair,) = node.call(factory, "getPair(address,address)", ["address"], self.weth, self.usdc)
        self.v2_pair = to_checksum_address(self.v2_pair)
        self.v3_pool = self.create_v3(self.weth, self.usdc, 3_000, 500 * E18, 1_000_000 * E6)
        middle = self.slot0(self.v3_pool)[1] // 60 * 60
        for width, units in ((60, 50), (600, 200), (6_000, 400), (60_000, 500)):
            self.mint_v3(self.weth, self.usdc, 3_000, middle - width, middle + width, units * E18, units * 2_000 * E6)

    def token(self, symbol: str, decimals: int, *, bytes32: bool = False) -> str:
        """Deploy an ERC-20 of which the sender owns 10**33 units."""
        node = self.node
        kinds = ["string", "string", "uint256", "address"]
        address = node.deploy("erc20", kinds, symbol, symbol, 10**33, node.me)
        node.rpc("anvil_setStorageAt", address, hex(_DECIMALS_SLOT), f"0x{decimals:064x}")
        if bytes32:
            node.rpc("anvil_setCode", address, _ANSWER_WORD.format(word=symbol.encode().hex().ljust(64, "0")))
        return address

    def approve(self, token: str, spender: str) -> None:
        if (token, spender) not in self.approved:
            self.node.send(token, calldata("approve(address,uint256)", spender, 2**255))
            self.approved.add((token, spender))

    def add_v2(self, one: str, other: str, amount: int, amount_other: int) -> None:
        for token in (one, other):
            self.approve(token, self.v2_router)
        kinds = "address,address,uint256,uint256,uint256,uint256,address,uint256"
        given = (one, other, amount, amount_other, 0, 0, self.node.me, NEVER_S)
        self.node.send(self.v2_router, calldata(f"addLiquidity({kinds})", *given))

    def create_v3(self, one: str, other: str, fee: int, amount: int, amount_other: int) -> str:
        """Make a pool whose price is the ratio of the two amounts; return its address."""
        (first, units0), (second, units1) = sorted(
            [(one, amount), (other, amount_other)], key=lambda row: int(row[0], 16)
        )
        sqrt_price = int((units1 * 2**192 // units0) ** 0.5)
        signature = "createAndInitializePoolIfNecessary(address,address,uint24,uint160)"
        self.node.send(self.positions, calldata(signature, first, second, fee, sqrt_price))
        (pool,) = self.node.call(self.v3_factory, "getPool(address,address,uint24)", ["address"], first, second, fee)
        return to_checksum_address(pool)

    def mint_v3(self, one: str, other: str, fee: int, low: int, high: int, amount: int, amount_other: int) -> None:
        """Open a position between two ticks."""
        (first, units0), (second, units1) = sorted(
            [(one, amount), (other, amount_other)], key=lambda row: int(row[0], 16)
        )
        for token in (one, other):
            self.approve(token, self.positions)
        kinds = "(address,address,uint24,int24,int24,uint256,uint256,uint256,uint256,address,uint256)"
        given = (first, second, fee, low, high, units0, units1, 0, 0, self.node.me, NEVER_S)
        self.node.send(self.positions, calldata(f"mint({kinds})", given))

    def slot0(self, pool: str) -> tuple[Any, ...]:
        return self.node.call(pool, "slot0()", ["uint160", "int24", "uint16", "uint16", "uint16"])

    def balance(self, token: str) -> int:
        return self.node.call(token, "balanceOf(address)", ["uint256"], self.node.me)[0]

    def swap_v2(self, sold: str, bought: str, amount_in: int) -> int:
        """Swap on the pair and return what really came out."""
        self.approve(sold, self.v2_router)
        before = self.balance(bought)
        signature = "swapExactTokensForTokens(uint256,uint256,address[],address,uint256)"
        self.node.send(self.v2_router, calldata(signature, amount_in, 0, [sold, bought], self.node.me, NEVER_S))
        return self.balance(bought) - before

    def swap_v2_for(self, sold: str, bought: str, amount_out: int) -> int:
        """Buy exactly that much on the pair and return what really went in."""
        self.approve(sold, self.v2_router)
        before = self.balance(sold)
        signature = "swapTokensForExactTokens(uint256,uint256,address[],address,uint256)"
        given = (amount_out, 10**30, [sold, bought], self.node.me, NEVER_S)
        self.node.send(self.v2_router, calldata(signature, *given))
        return before - self.balance(sold)

    def swap_v3(self, sold: str, bought: str, amount_in: int, *, fee: int = 3_000) -> int:
        """Swap on the pool and return what really came out."""
        self.approve(sold, self.v3_router)
        before = self.balance(bought)
        kinds = "(address,address,uint24,address,uint256,uint256,uint256,uint160)"
        given = (sold, bought, fee, self.node.me, NEVER_S, amount_in, 0, 0)
        self.node.send(self.v3_router, calldata(f"exactInputSingle({kinds})", given))
        return self.balance(bought) - before

    def swap_v3_for(self, sold: str, bought: str, amount_out: int, *, fee: int = 3_000) -> int:
        """Buy exactly that much on the pool and return what really went in."""
        self.approve(sold, self.v3_router)
        before = self.balance(sold)
        kinds = "(address,address,uint24,address,uint256,uint256,uint256,uint160)"
        given = (sold, bought, fee, self.node.me, NEVER_S, amount_out, 10**30, 0)
        self.node.send(self.v3_router, calldata(f"exactOutputSingle({kinds})", given))
        return before - self.balance(sold)

    def remember_more(self, observations: int) -> None:
        """Let the v3 pool keep that many observations."""
        self.node.send(self.v3_pool, calldata("increaseObservationCardinalityNext(uint16)", observations))


@contextmanager
def running_world() -> Generator[World]:
    """Start a node on a free loopback port, deploy Uniswap, and stop the node at the end."""
    anvil = _installed("@foundry-rs/anvil-*/bin/anvil")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [anvil, "--host", "127.0.0.1", "--port", str(port), "--chain-id", str(CHAIN_ID), "--silent"]
    process = subprocess.Popen([*map(str, command), "--timestamp", str(GENESIS_S)], stdout=subprocess.DEVNULL)
    try:
        with httpx2.Client(trust_env=False, timeout=10) as http:
            node = Node(f"http://127.0.0.1:{port}", http)
            _wait_for(node, process)
            world = World(node)
            world.deploy()
            yield world
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(node: Node, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while True:
        assert process.poll() is None, "the node ended at once"
        try:
            node.rpc("eth_chainId")
        except httpx2.TransportError:
            assert time.monotonic() < deadline, "the node does not answer"
            time.sleep(0.01)
        else:
            return


@contextmanager
def put_back(world: World) -> Generator[World]:
    """Yield the world and undo afterwards whatever was done on it."""
    approved, kept = set(world.approved), world.node.rpc("evm_snapshot")
    try:
        yield world
    finally:
        world.node.rpc("evm_revert", kept)
        world.approved = approved
