"""What a tool answers when the desk has no such source."""

from __future__ import annotations

from trading.domain.errors import TradingError


class NotConfigured(TradingError):
    """The desk has no such source; nothing was asked. ``suggestion`` says what its owner can set."""

    code = "NOT_CONFIGURED"
