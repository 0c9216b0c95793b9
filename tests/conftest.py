"""Fixtures of the whole suite."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.postgres_support import running_postgres


@pytest.fixture(scope="session")
def postgres_server() -> Generator[str]:
    """The part of a URL that follows the database's name, of a PostgreSQL server that the tests started."""
    with running_postgres() as server:
        yield server
