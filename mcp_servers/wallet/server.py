"""The wallet's tools."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mcp_servers.envelope import Meta, Reply, ok
from mcp_servers.hosting import Context, DeskServer, build_server, load_authorization, state, tool, tool_kind
from mcp_servers.wallet.bootstrap import open_wallet
from mcp_servers.wallet.schemas import (
    AccountRef,
    Accounts,
    Balances,
    Gas,
    Sent,
    Status,
    Transaction,
    TransactionHash,
)
from mcp_servers.wallet.service import WalletService
from mcp_servers.wallet.settings import WalletSettings, load_wallet_settings

_INSTRUCTIONS = """
    Reads accounts on one EVM chain: balances, fees, transactions. It holds no key and sends nothing in this release.
    Call wallet_get_status first: it says which chain is configured and whether its node answers.
    Amounts are decimal strings in whole coins; fields that end in units or wei are the chain's own integers.
"""

_NODE = Meta(source="json-rpc")
_CONFIG = Meta(source="configuration")

ApprovalRef = Annotated[str, Field(max_length=64, description="approval of a transaction, signed by risk")]


def build(settings: WalletSettings | None = None) -> DeskServer[WalletService]:
    """Return the room's server.

    Raises:
        ConfigurationError: the settings refuse to start.
    """
    found = settings or load_wallet_settings()
    server = build_server(
        "grekko-wallet",
        title="Wallet",
        instructions=_INSTRUCTIONS,
        lifespan=lambda: open_wallet(found),
        mode=found.desk.mode,
        authorization=load_authorization(),
    )
    _register_reads(server)
    _register_sending(server)
    return server


def _register_reads(server: DeskServer[WalletService]) -> None:
    local = tool_kind(server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="wallet:read")
    chain = tool_kind(server, read_only=True, destructive=False, idempotent=True, open_world=True, scope="wallet:read")

    @local(title="List accounts")
    async def wallet_list_accounts(ctx: Context[WalletService]) -> Reply[Accounts]:
        """List the watched accounts with their addresses. Holds no balances: use wallet_get_balances."""
        return ok(state(ctx).accounts(), _CONFIG)

    @chain(title="Get balances")
    async def wallet_get_balances(
        ctx: Context[WalletService],
        account: AccountRef | None = None,
        limit: Annotated[int, Field(ge=1, le=40)] = 20,
        cursor: Annotated[str, Field(max_length=64)] = "",
    ) -> Reply[Balances]:
        """Get native and token balances of watched accounts at one block.

        Only tokens in the configuration are read. For venue balances use execution_get_account.
        Example: account="treasury".
        """
        found, more = await state(ctx).balances(account, cursor=cursor, limit=limit)
        return ok(found, Meta(source="json-rpc", truncated=more is not None, next_cursor=more))

    @chain(title="Get gas fees")
    async def wallet_get_gas(ctx: Context[WalletService]) -> Reply[Gas]:
        """Get EIP-1559 fees for the next block at three speeds.

        From the tips paid in the last 20 blocks (10th, 50th, 90th percentile), in wei and gwei.
        """
        return ok(await state(ctx).gas(), _NODE)

    @chain(title="Get transaction")
    async def wallet_get_transaction(ctx: Context[WalletService], hash: TransactionHash) -> Reply[Transaction]:  # noqa: A002
        """Get the state, confirmations and fee of one transaction by its hash.

        Not for orders on an exchange: use execution_get_order.
        """
        return ok(await state(ctx).transaction(hash), _NODE)

    @chain(title="Get wallet status")
    async def wallet_get_status(ctx: Context[WalletService]) -> Reply[Status]:
        """Get whether the chain can be read, its last block's age, and what is not possible and why."""
        return ok(await state(ctx).status(), _NODE)


def _register_sending(server: DeskServer[WalletService]) -> None:
    @tool(
        server,
        title="Send transaction",
        read_only=False,
        destructive=True,
        idempotent=True,
        open_world=True,
        scope="wallet:send",
    )
    async def wallet_send_transaction(ctx: Context[WalletService], approval_id: ApprovalRef) -> Reply[Sent]:
        """Send an approved transaction; always refused in this release.

        It answers WALLET_SENDING_DISABLED: no key is held and risk does not sign transactions yet.
        """
        return ok(state(ctx).send(approval_id))
