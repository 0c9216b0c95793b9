"""Addresses in their EIP-55 spelling."""

from __future__ import annotations

import re
from typing import Final

from trading.domain.errors import InvalidValue

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")


def parse_address(text: str) -> str:
    """Return an address in its EIP-55 spelling.

    Raises:
        InvalidValue: not 20 bytes of hex, or mixed case that does not match the checksum.
    """
    if _ADDRESS.fullmatch(text) is None:
        raise InvalidValue("must be 0x and 40 hexadecimal digits", code="INVALID_ADDRESS")
    from eth_utils.address import to_checksum_address  # lazy: Keccak is not needed to list the tools

    spelled = str(to_checksum_address(text))
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and text != spelled:
        raise InvalidValue("the address does not match its checksum; a digit is wrong", code="INVALID_ADDRESS")
    return spelled
