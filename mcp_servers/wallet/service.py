"""What the wallet room knows: the watched accounts and what the chain says about them.

Rules kept here:

- All balances of one answer are read at one block, so they add up.
- A token whose contract does not have the configured number of places is refused: the amount would be off by powers
  of ten.
- Only watched accounts are read; a transaction is looked up by its hash and may be anybody's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from statistics import median_low
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from mcp_servers.tool_errors import did_you_mean
from mcp_servers.wallet.errors import NodeRefused, SendingDisabled
from mcp_servers.wallet.node import Node
from mcp_servers.wallet.schemas import (
    AccountRow,
    Accounts,
    BalanceRow,
    Balances,
    FeeRow,
    Gas,
    Sent,
    Status,
    Transaction,
)
from mcp_servers.wallet.settings import WalletSection, WatchedAccount, WatchedToken, parse_address
from trading.domain.errors import InvalidValue, TradingError
from trading.domain.money import MAX_MAGNITUDE
from trading.ports.clock import Clock

if TYPE_CHECKING:
    from web3 import AsyncWeb3

_GWEI_PLACES: Final = 9
_NATIVE_PLACES: Final = 18
_FEE_BLOCKS: Final = 20
#: Percentiles of the tips that were paid in each block.
_PERCENTILES: Final = (10.0, 50.0, 90.0)
_SPEEDS: Final[tuple[Literal["slow", "normal", "fast"], ...]] = ("slow", "normal", "fast")
#: Tip offered when nobody paid one lately, in wei.
_MINIMUM_TIP: Final = 1
#: First four bytes of Keccak-256 of ``balanceOf(address)`` and ``decimals()``. Source: ERC-20.
_BALANCE_OF: Final = "0x70a08231"
_DECIMALS: Final = "0x313ce567"
_WORD_DIGITS: Final = 64


class WalletService:
    """The room's only state: its settings and one node.

    Args:
        section: chain, accounts and tokens.
        node: asks the chain.
        clock: for the age of a block.
    """

    def __init__(self, section: WalletSection, node: Node, clock: Clock) -> None:
        self._section = section
        self._node = node
        self._clock = clock
        self._checked_tokens: set[str] = set()

    def accounts(self) -> Accounts:
        """Return the watched accounts; asks nobody."""
        rows = [AccountRow(name=account.name, address=account.address) for account in self._section.accounts]
        return Accounts(chain_id=self._section.chain_id, accounts=rows)

    async def balances(self, account: str | None, *, cursor: str, limit: int) -> tuple[Balances, str | None]:
        """Return native and token balances at the latest block, and a cursor when there are more.

        Args:
            account: name or address of a watched account; None for all.
            cursor: ``<account>:<asset>``, the last row of the page before; empty for the first page.
            limit: rows at most, each one request to the node.

        Raises:
            InvalidValue: the account is not watched, or the cursor is not one of ours.
            TradingError: the node did not answer as it should.
        """
        chosen = self._section.accounts if account is None else (self._watched(account),)
        pairs = [(holder, token) for holder in chosen for token in (None, *self._section.tokens)]
        start = self._after(cursor, pairs)
        page = pairs[start : start + limit]
        block = int(await self._node.ask(lambda web3: web3.eth.block_number))
        used = {token.address: token for _, token in page if token is not None}
        await asyncio.gather(*(self._check_places(token, block) for token in used.values()))
        rows = await asyncio.gather(*(self._balance(holder, token, block) for holder, token in page))
        more = start + limit < len(pairs)
        return Balances(block=block, balances=rows), self._key(*page[-1]) if more else None

    async def gas(self) -> Gas:
        """Return EIP-1559 fees for the next block, from what the last 20 blocks paid.

        ``max_fee`` is twice the base fee plus the tip: the base fee grows by at most an eighth a block, so it holds
        for about six blocks. Source: EIP-1559.
        """
        history: Any = await self._node.ask(
            lambda web3: web3.eth.fee_history(_FEE_BLOCKS, "latest", list(_PERCENTILES))
        )
        base_fees = [int(fee) for fee in history["baseFeePerGas"]]
        ratios = [Decimal(str(ratio)) for ratio in history["gasUsedRatio"]]
        if not base_fees or not ratios:
            raise NodeRefused("the chain's node has no fee history", suggestion="the chain may not have EIP-1559 fees")
        tips = _tips(cast("Sequence[Sequence[int]]", history.get("reward") or ()))
        base = base_fees[-1]  # one more than the blocks observed: the next one's
        fees = [
            FeeRow(
                speed=speed,
                priority_wei=tip,
                priority_gwei=_scaled(tip, _GWEI_PLACES),
                max_fee_wei=2 * base + tip,
                max_fee_gwei=_scaled(2 * base + tip, _GWEI_PLACES),
            )
            for speed, tip in zip(_SPEEDS, tips, strict=True)
        ]
        return Gas(
            next_block=int(history["oldestBlock"]) + len(ratios),
            base_fee_wei=base,
            base_fee_gwei=_scaled(base, _GWEI_PLACES),
            blocks_observed=len(ratios),
            used_ratio=sum(ratios, Decimal(0)) / len(ratios),
            fees=fees,
        )

    async def transaction(self, transaction_hash: str) -> Transaction:
        """Return what the chain knows of a transaction.

        Raises:
            InvalidValue: the node does not know it; it may never have been sent, or have been replaced.
            TradingError: the node did not answer as it should.
        """
        from web3.exceptions import TransactionNotFound

        found: Any
        try:
            found = await self._node.ask(lambda web3: web3.eth.get_transaction(cast("Any", transaction_hash)))
        except TransactionNotFound:
            raise InvalidValue(
                "the node knows no such transaction",
                code="UNKNOWN_TRANSACTION",
                suggestion="check the hash and the chain; a replaced transaction is known by its successor's hash",
            ) from None
        receipt: Any = None
        if found.get("blockNumber") is not None:
            try:
                receipt = await self._node.ask(
                    lambda web3: web3.eth.get_transaction_receipt(cast("Any", transaction_hash))
                )
            except TransactionNotFound:
                receipt = None  # reorganized away between the two requests: pending again
        return await self._described(transaction_hash, found, receipt)

    async def status(self) -> Status:
        """Return whether the chain can be read and how old its last block is; never fails because of the node."""
        reasons = ["sending is not part of this release"]
        block: int | None = None
        age: int | None = None
        try:
            head: Any = await self._node.ask(lambda web3: web3.eth.get_block("latest"))
            block = int(head["number"])
            age = max(0, self._clock.now_ms() - int(head["timestamp"]) * 1_000)
        except TradingError as error:
            reasons.append(f"{error.code}: {error}")
        return Status(
            configured=self._section.rpc_url is not None,
            reachable=block is not None,
            chain_id=self._section.chain_id,
            block=block,
            block_age_ms=age,
            accounts=len(self._section.accounts),
            tokens=len(self._section.tokens),
            can_send=False,
            reasons=reasons,
        )

    def send(self, approval_id: str) -> Sent:
        """Refuse.

        Raises:
            SendingDisabled: always.
        """
        del approval_id  # whatever it says, this room has no key to act on it
        raise SendingDisabled

    def _key(self, holder: WatchedAccount, token: WatchedToken | None) -> str:
        return f"{holder.name}:{self._section.native if token is None else token.symbol}"

    def _after(self, cursor: str, pairs: Sequence[tuple[WatchedAccount, WatchedToken | None]]) -> int:
        if not cursor:
            return 0
        for index, pair in enumerate(pairs):
            if self._key(*pair) == cursor:
                return index + 1
        raise InvalidValue("cursor: no such row", code="INVALID_CURSOR", suggestion="start again without a cursor")

    def _watched(self, text: str) -> WatchedAccount:
        for account in self._section.accounts:
            if text == account.name or text.lower() == account.address.lower():
                return account
        raise InvalidValue(
            "this account is not watched",
            code="UNKNOWN_ACCOUNT",
            suggestion="wallet_list_accounts names the watched accounts",
            allowed=did_you_mean(text, [account.name for account in self._section.accounts]),
        )

    async def _balance(self, holder: WatchedAccount, token: WatchedToken | None, block: int) -> BalanceRow:
        if token is None:
            units = int(await self._node.ask(lambda web3: web3.eth.get_balance(cast("Any", holder.address), block)))
            symbol, places = self._section.native, _NATIVE_PLACES
        else:
            argument = holder.address[2:].lower().rjust(_WORD_DIGITS, "0")
            units = await self._read_word(token, _BALANCE_OF + argument, block)
            symbol, places = token.symbol, token.decimals
        return BalanceRow(
            account=holder.name,
            asset=symbol,
            token=None if token is None else token.address,
            amount=_shown(units, places),
            units=units,
        )

    async def _check_places(self, token: WatchedToken, block: int) -> None:
        if token.address in self._checked_tokens:
            return
        places = await self._read_word(token, _DECIMALS, block)
        if places != token.decimals:
            raise NodeRefused(
                f"the contract of {token.symbol} has {places} decimals, the desk is configured for {token.decimals}",
                code="WALLET_TOKEN_MISMATCH",
                suggestion="the owner of the desk corrects decimals or address of the token",
            )
        self._checked_tokens.add(token.address)

    async def _read_word(self, token: WatchedToken, data: str, block: int) -> int:
        async def read(web3: AsyncWeb3[Any]) -> bytes:
            return bytes(await web3.eth.call(cast("Any", {"to": token.address, "data": data}), block))

        found = await self._node.ask(read)
        if len(found) < _WORD_DIGITS // 2:  # an address without code answers with nothing
            raise NodeRefused(
                f"there is no ERC-20 contract at the address of {token.symbol}",
                code="WALLET_TOKEN_MISMATCH",
                suggestion="the owner of the desk corrects the token's address",
            )
        return int.from_bytes(found[: _WORD_DIGITS // 2], "big")

    async def _described(self, transaction_hash: str, found: Any, receipt: Any) -> Transaction:
        state: Literal["pending", "succeeded", "reverted"] = "pending"
        confirmations, gas_used, fee = 0, None, None
        if receipt is not None:
            head = int(await self._node.ask(lambda web3: web3.eth.block_number))
            state = "succeeded" if receipt["status"] == 1 else "reverted"
            confirmations = max(1, head - int(receipt["blockNumber"]) + 1)
            gas_used = int(receipt["gasUsed"])
            fee = _shown(gas_used * int(receipt["effectiveGasPrice"]), _NATIVE_PLACES)
        recipient = found.get("to")
        return Transaction(
            hash=transaction_hash.lower(),
            state=state,
            sender=parse_address(str(found["from"])),
            recipient=None if recipient is None else parse_address(str(recipient)),
            amount=_shown(int(found["value"]), _NATIVE_PLACES),
            amount_wei=int(found["value"]),
            nonce=int(found["nonce"]),
            data_bytes=len(bytes(found["input"])),
            block=None if receipt is None else int(receipt["blockNumber"]),
            confirmations=confirmations,
            gas_used=gas_used,
            fee=fee,
        )


def _tips(rewards: Sequence[Sequence[int]]) -> list[int]:
    """Return one tip for each percentile: the median over the blocks, never falling from slow to fast."""
    tips: list[int] = []
    for column in range(len(_PERCENTILES)):
        paid = [int(row[column]) for row in rewards if len(row) == len(_PERCENTILES)]
        floor = tips[-1] if tips else _MINIMUM_TIP
        tips.append(max(floor, median_low(paid) if paid else _MINIMUM_TIP))
    return tips


def _scaled(units: int, places: int) -> Decimal:
    # From digits, not by arithmetic: a word has up to 78 of them, the process's default context 28.
    return Decimal((0, tuple(map(int, str(units))), -places))


def _shown(units: int, places: int) -> Decimal | None:
    """Return an amount in whole coins; None beyond what a decimal of this desk may be."""
    amount = _scaled(units, places)
    return amount if amount < MAX_MAGNITUDE else None
