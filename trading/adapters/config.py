"""Where a desk lives and how it is set up.

Precedence: environment > config file (TOML) > default. Unknown keys refuse to start; a mistyped mode is an error,
never live. Secrets are ``SecretStr`` and are never printed. State lives in one directory of mode 0700.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, cast, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from trading.domain.errors import ConfigurationError
from trading.domain.identifiers import (
    AccountId,
    Currency,
    Symbol,
    Venue,
    parse_name,
    parse_symbol,
)
from trading.domain.instruments import InstrumentId
from trading.domain.proposals import Mode

_SOCKET_PATH_MAX = 100  # bytes; sun_path holds 108 on Linux and 104 on macOS
#: Tables of the file that belong to one room each; a room validates its own and leaves the others alone.
SECTIONS = ("market", "risk", "execution", "wallet", "coordinator", "bus", "run", "authorization")

S = TypeVar("S", bound=BaseModel)


def default_home() -> Path:
    """Return ``$GREKKO_HOME``, else ``$XDG_STATE_HOME/grekko``, else ``~/.local/state/grekko``."""
    if explicit := os.environ.get("GREKKO_HOME"):
        return Path(explicit).expanduser().absolute()
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return (Path(state).expanduser() / "grekko").absolute()


class DeskHome:
    """The directory of one desk, and the only place that knows how it is laid out."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def config_file(self) -> Path:
        """``$GREKKO_CONFIG`` or config.toml in the home."""
        explicit = os.environ.get("GREKKO_CONFIG")
        return Path(explicit).expanduser().absolute() if explicit else self.path / "config.toml"

    @property
    def public_keys(self) -> Path:
        """Directory of ``<name>.pub``."""
        return self.path / "keys" / "public"

    @property
    def run(self) -> Path:
        """Directory of locks, process ids and sockets."""
        return self.path / "run"

    @property
    def bus(self) -> Path:
        """Directory of the embedded Redis server."""
        return self.path / "bus"

    @property
    def venue(self) -> Path:
        """Directory of the paper venue's journal."""
        return self.path / "venue"

    @property
    def logs(self) -> Path:
        """Directory of the supervised processes' logs."""
        return self.path / "logs"

    def keys(self, room: str) -> Path:
        """Return the directory of the private keys that one room holds."""
        return self.path / "keys" / room

    def ledger(self, room: str) -> Path:
        """Return the room's SQLite file."""
        return self.path / "ledger" / f"{room}.sqlite"

    def checkpoints(self, room: str) -> Path:
        """Return the file of the room's signed audit checkpoints, kept outside the database."""
        return self.path / "checkpoints" / f"{room}.note"

    def socket(self, room: str) -> Path:
        """Return the room's unix socket; in the temporary directory when the home's path is too long for one."""
        path = self.run / f"{room}.sock"
        if len(os.fsencode(path)) < _SOCKET_PATH_MAX:
            return path
        short = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        directory = Path(tempfile.gettempdir()) / f"grekko-{os.getuid()}-{short}"
        _make_private(directory)
        return directory / f"{room}.sock"

    def ensure(self) -> Self:
        """Create the directories that are missing and refuse those that others can read.

        Raises:
            ConfigurationError: a directory exists with a looser mode than 0700, or is not ours.
        """
        for directory in (
            self.path,
            *(
                self.path / name
                for name in (
                    "keys",
                    "ledger",
                    "checkpoints",
                    "run",
                    "bus",
                    "venue",
                    "logs",
                )
            ),
            self.public_keys,
        ):
            _make_private(directory)
        return self


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(directory)


def check_private(path: Path) -> None:
    """Refuse a file or directory that is not ours alone.

    Raises:
        ConfigurationError: group or others have any permission, or another user owns it.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigurationError(
            f"{path} must belong to this user and be closed to everybody else",
            code="LOOSE_PERMISSIONS",
            suggestion=f"chmod go-rwx {path}",
        )


def write_private(path: Path, data: bytes) -> None:
    """Create a file of mode 0600 that did not exist.

    Raises:
        FileExistsError: it is already there; nothing is changed.
    """
    _make_private(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _symbols(value: object) -> object:
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(parse_symbol(str(item)) for item in cast("list[object]", value))


class SectionModel(BaseModel):
    """Base of every room's section: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DeskSettings(BaseSettings):
    """What every room of a desk must agree on.

    Attributes:
        desk: name in all Redis keys.
        mode: paper, testnet or live.
        venue: where orders go.  market_venue: whose market data prices them.
        opening_balances: amounts a new paper account starts with.
    """

    model_config = SettingsConfigDict(env_prefix="GREKKO_", frozen=True, extra="forbid")

    desk: str = "desk"
    mode: Mode = Mode.PAPER
    account_id: AccountId = AccountId("paper-main")
    home: Path = Field(default_factory=default_home)
    redis_url: SecretStr | None = Field(default=None, validation_alias="REDIS_URL")
    database_url: SecretStr | None = Field(default=None, validation_alias="DATABASE_URL")
    venue: Venue = Venue("paper")
    market_venue: Venue = Venue("binance")
    symbols: Annotated[tuple[Symbol, ...], BeforeValidator(_symbols)] = (Symbol("BTC/USDT"),)
    quote: Currency = Currency("USDT")
    opening_balances: dict[Currency, Decimal] = Field(default={Currency("USDT"): Decimal(100_000)})

    @model_validator(mode="after")
    def _names(self) -> Self:
        for what in ("desk", "account_id", "venue", "market_venue"):
            parse_name(getattr(self, what), what=what)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  the base class names them
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, whose values arrive as init arguments."""
        return env_settings, init_settings

    @property
    def desk_home(self) -> DeskHome:
        """The desk's directory."""
        return DeskHome(self.home)

    def market_instrument(self, instrument_id: InstrumentId) -> InstrumentId:
        """Return whose market data prices that instrument: the market venue's for the paper venue, else its own."""
        if instrument_id.venue == self.venue and self.mode is Mode.PAPER:
            return InstrumentId(self.market_venue, instrument_id.symbol)
        return instrument_id

    def key(self, *parts: str) -> str:
        """Return a Redis key of this desk; the braces keep all of them in one hash slot."""
        return ":".join((f"grekko:{{{self.desk}}}", *parts))


def load_settings() -> DeskSettings:
    """Read the desk's settings from the environment and its config file.

    Raises:
        ConfigurationError: unreadable file, unknown key or illegal value; the message names it.
    """
    data = read_config(DeskHome(default_home()).config_file)
    unknown = [key for key, value in data.items() if isinstance(value, Mapping) and key not in _TABLES]
    if unknown:
        raise ConfigurationError(f"unknown section [{unknown[0]}] in the config file", allowed=SECTIONS)
    desk = {key: value for key, value in data.items() if key not in SECTIONS and key != "venues"}
    try:
        return DeskSettings(**desk)
    except (ValidationError, ValueError) as error:
        raise ConfigurationError(_explain(error)) from error


_TABLES = (*SECTIONS, "venues", "opening_balances")


def load_section(kind: type[S], section: str) -> S:
    """Read one room's section of the config file; ``GREKKO_<SECTION>_<FIELD>`` variables override it.

    A variable holds a list or a table as JSON.

    Raises:
        ConfigurationError: unknown key or illegal value.
    """
    data = dict(read_config(DeskHome(default_home()).config_file).get(section, {}))
    prefix = f"GREKKO_{section.upper()}_"
    for name, field in kind.model_fields.items():
        if (value := os.environ.get(prefix + name.upper())) is not None:
            data[name] = _from_variable(prefix + name.upper(), value, field.annotation)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError(f"[{section}] {_explain(error)}") from error


def _from_variable(name: str, value: str, kind: object) -> object:
    is_table = isinstance(kind, type) and issubclass(kind, BaseModel)
    if not is_table and get_origin(kind) not in (tuple, list, dict):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ConfigurationError(f"{name} is not JSON", suggestion='write a list as ["a", "b"]') from None


def read_config(path: Path) -> dict[str, Any]:
    """Return the parsed TOML file, empty when there is none.

    Raises:
        ConfigurationError: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path.name} cannot be read: {error}") from error


def _explain(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error)
