"""The ``[wallet]`` section: which chain is read, and which addresses and tokens are watched.

Rules kept here:

- There is no private key, seed or keystore in this section, and none is read from anywhere else.
- The node's URL may carry an access key: it is a secret, and is never printed or returned.
- Addresses in mixed case must match their EIP-55 checksum; a mistyped digit refuses to start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from trading.adapters.chain.addresses import parse_address
from trading.adapters.config import DeskSettings, SectionModel, load_section, load_settings
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import parse_name

_LABEL: Final = re.compile(r"[A-Za-z0-9._-]{1,16}")

Address = Annotated[str, AfterValidator(parse_address)]


class WatchedAccount(SectionModel):
    """An address to watch.

    Attributes:
        name: how tools call it.
        address: EIP-55, all lower or all upper case.
    """

    name: str
    address: Address

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        return parse_name(value, what="account name")


class WatchedToken(SectionModel):
    """An ERC-20 contract whose balances are read.

    Attributes:
        symbol: what the owner of the desk calls it; the contract's own name is not trusted.
        address: the contract.
        decimals: places of its unit; checked against the contract before the first amount is shown.
    """

    symbol: str
    address: Address
    decimals: int = Field(ge=0, le=36)

    @field_validator("symbol")
    @classmethod
    def _labelled(cls, value: str) -> str:
        if _LABEL.fullmatch(value) is None:
            raise InvalidValue("a token symbol is 1-16 of A-Z a-z 0-9 . _ -", code="INVALID_NAME")
        return value


class WalletSection(SectionModel):
    """What the wallet room needs to know.

    Attributes:
        rpc_url: any JSON-RPC node, ``https://`` or loopback ``http://``; without it the room only says so.
        chain_id: the chain it must be on, EIP-155; required with ``rpc_url``.
        native: symbol of the chain's own coin.
        accounts: at most 64.
        tokens: at most 64.
        timeout_s: for one request to the node, 0.1 to 60.
    """

    rpc_url: SecretStr | None = None
    chain_id: int | None = Field(default=None, ge=1)
    native: str = "ETH"
    accounts: tuple[WatchedAccount, ...] = Field(default=(), max_length=64)
    tokens: tuple[WatchedToken, ...] = Field(default=(), max_length=64)
    timeout_s: float = Field(default=5.0, ge=0.1, le=60)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, names in (
            ("account name", [account.name for account in self.accounts]),
            ("account address", [account.address for account in self.accounts]),
            ("token symbol", [token.symbol for token in self.tokens] + [self.native]),
            ("token address", [token.address for token in self.tokens]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"the same {what} is listed twice")
        if self.rpc_url is not None:
            _check_url(self.rpc_url.get_secret_value())
            if self.chain_id is None:
                raise ValueError("chain_id is required with rpc_url: the node's own word is not enough")
        return self


def _check_url(url: str) -> None:
    """Refuse an address that would carry balances and the access key in the clear over a network."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https" and host:
        return
    if parts.scheme == "http" and host in ("127.0.0.1", "localhost", "::1"):
        return
    raise ValueError("rpc_url must be https://, or http:// on this machine")


@dataclass(frozen=True, slots=True)
class WalletSettings:
    """The desk's settings and the room's own."""

    desk: DeskSettings
    wallet: WalletSection


def load_wallet_settings() -> WalletSettings:
    """Read the environment and the config file.

    Raises:
        ConfigurationError: unknown key or illegal value.
    """
    return WalletSettings(load_settings(), load_section(WalletSection, "wallet"))
