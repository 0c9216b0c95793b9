"""Fixtures of the whole suite."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from tests.postgres_support import running_postgres

if TYPE_CHECKING:
    from tests.chain_support import World


@pytest.fixture(scope="session")
def postgres_server() -> Generator[str]:
    """The part of a URL that follows the database's name, of a PostgreSQL server that the tests started."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def running_chain() -> Generator[World]:
    """A node with Uniswap on it that the tests started; ask for ``uniswap`` instead."""
    from tests.chain_support import running_world  # few tests need it, and it takes a moment to import

    with running_world() as world:
        yield world


@pytest.fixture
def uniswap(running_chain: World) -> Generator[World]:
    """A node with Uniswap on it; whatever a test does there is undone after it."""
    from tests.chain_support import put_back

    with put_back(running_chain) as world:
        yield world
