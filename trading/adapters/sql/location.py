"""Where the ledgers of a desk are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trading.adapters.config import DeskSettings
from trading.adapters.sql.tables import metadata_for
from trading.domain.errors import ConfigurationError

#: PostgreSQL roles and schemas all start with this.
PREFIX: Final = "grekko_"
OWNER_ROLE: Final = PREFIX + "owner"
READER_ROLE: Final = PREFIX + "reader"

_SCHEMES: Final = ("postgresql://", "postgres://")


@dataclass(frozen=True, slots=True)
class LedgerLocation:
    """A directory of SQLite files, or a PostgreSQL database. Make one with ``sqlite`` or ``postgres``.

    Attributes:
        directory: holds ``<room>.sqlite`` and its lock, or None.
        url: of the PostgreSQL database, or None; may hold a password, so it is not shown.
    """

    directory: Path | None
    url: str | None

    @classmethod
    def sqlite(cls, directory: Path) -> LedgerLocation:
        """Return the location of one SQLite file per room in ``directory``."""
        return cls(Path(directory).absolute(), None)

    @classmethod
    def postgres(cls, url: str) -> LedgerLocation:
        """Return the location of one schema per room in the database at ``url`` (``postgresql://…``).

        Raises:
            ConfigurationError: not a PostgreSQL URL.
        """
        scheme, _, rest = url.partition("://")
        plain = f"{scheme.partition('+')[0]}://{rest}"  # postgresql+asyncpg:// is accepted too
        if not plain.startswith(_SCHEMES):
            raise ConfigurationError("the database URL must start with postgresql://", code="BAD_DATABASE_URL")
        return cls(None, plain)

    @classmethod
    def of(cls, settings: DeskSettings) -> LedgerLocation:
        """Return where a desk keeps its ledgers: PostgreSQL if it names a database, else files in its home."""
        if settings.database_url is not None:
            return cls.postgres(settings.database_url.get_secret_value())
        return cls.sqlite(settings.desk_home.ledger("risk").parent)

    def file(self, room: str) -> Path:
        """Return the SQLite file of a room.

        Raises:
            ConfigurationError: this is not a directory of SQLite files.
        """
        metadata_for(room)
        if self.directory is None:
            raise ConfigurationError("a PostgreSQL ledger has no file", code="BAD_LEDGER_LOCATION")
        return self.directory / f"{room}.sqlite"

    def __repr__(self) -> str:
        return f"LedgerLocation({self.directory})" if self.directory else "LedgerLocation(postgresql://…)"


def schema_of(room: str) -> str:
    """Return the PostgreSQL schema of a room, which is also the name of its role."""
    metadata_for(room)
    return PREFIX + room
