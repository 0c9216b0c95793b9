"""Contract functions: how a call is written and its answer read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from trading.adapters.chain.errors import BadContract


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a contract.

    Attributes:
        name: as the contract spells it.
        takes: the types of its arguments.
        returns: the types of what it returns; further words of the answer are ignored.
    """

    name: str
    takes: tuple[str, ...]
    returns: tuple[str, ...]

    def encode(self, *arguments: object) -> bytes:
        """Return the call's data."""
        from eth_abi.abi import encode

        return _selector(f"{self.name}({','.join(self.takes)})") + encode(self.takes, arguments)

    def decode(self, data: bytes) -> tuple[object, ...]:
        """Return what the contract returned.

        Raises:
            BadContract: it returned something else, or nothing.
        """
        from eth_abi.abi import decode
        from eth_abi.exceptions import DecodingError

        try:
            return cast("tuple[object, ...]", decode(self.returns, data))
        except (DecodingError, OverflowError, ValueError):
            raise BadContract(f"what is at the address does not answer {self.name}() as expected") from None


def integer(value: object) -> int:
    """Return a decoded integer.

    Raises:
        BadContract: it is none.
    """
    if not isinstance(value, int):
        raise BadContract("the contract returned no integer")
    return value


@lru_cache(maxsize=256)
def _selector(signature: str) -> bytes:
    from eth_utils.crypto import keccak

    return bytes(keccak(text=signature)[:4])
