"""Why the wallet room could not answer.

::

    TradingError
    ├── WalletNotConfigured    WALLET_NOT_CONFIGURED     there is no node to ask
    ├── SendingDisabled        WALLET_SENDING_DISABLED   this release does not send
    ├── WrongChain             WALLET_WRONG_CHAIN        the node is on another chain than configured
    ├── NodeRefused            WALLET_NODE_REFUSED       the node answered with an error
    └── Unavailable
        └── NodeUnreachable    WALLET_NODE_UNREACHABLE   the node did not answer
"""

from __future__ import annotations

from trading.domain.errors import TradingError, Unavailable


class WalletNotConfigured(TradingError):
    """There is no node to ask."""

    code = "WALLET_NOT_CONFIGURED"

    def __init__(self) -> None:
        super().__init__(
            "no chain is configured for this desk",
            suggestion="the owner of the desk sets rpc_url and chain_id under [wallet] in the config file",
        )


class SendingDisabled(TradingError):
    """This release does not send transactions; nothing was signed and nothing left the desk."""

    code = "WALLET_SENDING_DISABLED"

    def __init__(self) -> None:
        super().__init__(
            "sending is disabled: a transaction needs risk's signed approval, and risk does not sign "
            "transactions in this release; nothing was signed and nothing was sent",
            suggestion="use the reading tools; the wallet holds no key with which it could send",
        )


class WrongChain(TradingError):
    """The node is on another chain than configured; what it says about balances is not shown."""

    code = "WALLET_WRONG_CHAIN"


class NodeRefused(TradingError):
    """The node answered with an error."""

    code = "WALLET_NODE_REFUSED"


class NodeUnreachable(Unavailable):
    """The node did not answer, or not in time."""

    code = "WALLET_NODE_UNREACHABLE"
