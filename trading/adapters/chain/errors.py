"""Why the chain could not be read.

::

    TradingError
    ├── Unavailable
    │   ├── ChainUnavailable      CHAIN_UNAVAILABLE   no answer, or none that makes sense; ask again later
    │   │   └── BlockGone         CHAIN_UNAVAILABLE   the pinned block is no longer part of the chain
    │   └── ChainRateLimited      RATE_LIMITED        the node wants to be asked less often
    ├── WrongChain                WRONG_CHAIN         the node is on another chain than configured
    ├── StateGone                 CHAIN_UNAVAILABLE   the node no longer keeps the state of that block
    ├── CallReverted              CALL_REVERTED       a contract refused the call
    └── BadContract               GARBAGE             a contract's answer is not what its kind answers
"""

from __future__ import annotations

from typing import Final

from trading.domain.errors import TradingError, Unavailable

#: How long to leave a node alone that does not say so itself.
DEFAULT_PAUSE_MS: Final = 2_000


class ChainUnavailable(Unavailable):
    """The node gave no answer, or none that makes sense."""

    code = "CHAIN_UNAVAILABLE"


class BlockGone(ChainUnavailable):
    """The block is not, or no longer, part of the chain that the node follows."""


class ChainRateLimited(Unavailable):
    """The node wants to be asked less often.

    Attributes:
        after_ms: when it will answer again.
    """

    code = "RATE_LIMITED"

    def __init__(self, after_ms: int | None = None) -> None:
        super().__init__("the chain's node limits how often it is asked", suggestion="wait, then ask again")
        self.after_ms = DEFAULT_PAUSE_MS if after_ms is None else after_ms


class WrongChain(TradingError):
    """The node is on another chain than configured; nothing it says is used."""

    code = "WRONG_CHAIN"


class StateGone(TradingError):
    """The node no longer keeps the state of so old a block; an archive node does."""

    code = "CHAIN_UNAVAILABLE"


class CallReverted(TradingError):
    """The contract refused the call.

    Attributes:
        data: what it returned with its refusal, up to 1,024 bytes.
    """

    code = "CALL_REVERTED"

    def __init__(self, data: bytes = b"") -> None:
        super().__init__("the contract refused the call")
        self.data = data[:1_024]


class BadContract(TradingError):
    """There is no contract at the address, or it is of another kind."""

    code = "GARBAGE"
