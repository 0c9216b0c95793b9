"""What the wallet's tools answer: coins as decimal strings in whole units, the chain's own integers beside them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from mcp_servers.envelope import DecimalText, Row
from trading.domain.errors import InvalidValue

#: Largest value of an EVM word.
_WORD_MAX = 2**256 - 1


def _read_units(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _WORD_MAX:
        return value
    raise InvalidValue("is not an amount of the chain's smallest unit", code="INVALID_NUMBER")


#: An integer of the chain (wei, a token's smallest unit), as a string: JSON numbers lose digits above 2**53.
UnitsText = Annotated[
    int,
    PlainValidator(_read_units),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,78}$"}),
]

#: A transaction's hash in an argument.
TransactionHash = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{64}$", description="0x and 64 hex digits")]
#: A watched account in an argument.
AccountRef = Annotated[str, Field(max_length=64, description="name or address of a watched account")]


class AccountRow(Row):
    """A watched account."""

    name: str
    address: str


class Accounts(Row):
    """All watched accounts."""

    chain_id: int | None
    accounts: list[AccountRow]


class BalanceRow(Row):
    """What one account holds of one asset; ``amount`` is None when it is too large to be shown as a decimal."""

    account: str
    asset: str
    token: str | None
    amount: DecimalText | None
    units: UnitsText


class Balances(Row):
    """Balances at one block."""

    block: int
    balances: list[BalanceRow]


class FeeRow(Row):
    """What to offer for a speed; ``max_fee`` stays valid through about six full blocks."""

    speed: Literal["slow", "normal", "fast"]
    priority_wei: UnitsText
    priority_gwei: DecimalText
    max_fee_wei: UnitsText
    max_fee_gwei: DecimalText


class Gas(Row):
    """EIP-1559 fees for the next block."""

    next_block: int
    base_fee_wei: UnitsText
    base_fee_gwei: DecimalText
    blocks_observed: int
    used_ratio: DecimalText
    fees: list[FeeRow]


class Transaction(Row):
    """One transaction; ``fee`` is known once it is in a block."""

    hash: str
    state: Literal["pending", "succeeded", "reverted"]
    sender: str
    recipient: str | None
    amount: DecimalText | None
    amount_wei: UnitsText
    nonce: int
    data_bytes: int
    block: int | None
    confirmations: int
    gas_used: int | None
    fee: DecimalText | None


class Status(Row):
    """Whether the room can answer, and that it cannot send."""

    configured: bool
    reachable: bool
    chain_id: int | None
    block: int | None
    block_age_ms: int | None
    accounts: int
    tokens: int
    can_send: Literal[False]
    reasons: list[str]


class Sent(Row):
    """A transaction that was sent."""

    hash: str
    state: Literal["pending"]
