"""Puts the wallet room together."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mcp_servers.wallet.node import Node
from mcp_servers.wallet.service import WalletService
from mcp_servers.wallet.settings import WalletSettings
from trading.adapters.clock import SystemClock
from trading.ports.clock import Clock


@asynccontextmanager
async def open_wallet(settings: WalletSettings, clock: Clock | None = None) -> AsyncGenerator[WalletService]:
    """Yield the room's service; the node is contacted when a tool first needs it.

    Args:
        settings: the desk's and the room's.
        clock: the machine's unless a test says otherwise.
    """
    node = Node(settings.wallet)
    try:
        yield WalletService(settings.wallet, node, clock or SystemClock())
    finally:
        await node.close()
