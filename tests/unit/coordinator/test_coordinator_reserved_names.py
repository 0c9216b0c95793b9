"""The name under which stops act is no agent's."""

from __future__ import annotations

import pytest

from coordinator.registry import Registry
from trading.domain.errors import InvalidValue
from trading.domain.standing_exits import PROTECTION
from trading.domain.voting import Role
from trading.testing.clock import ManualClock, SeededIds
from trading.testing.keys import make_test_signer
from trading.testing.ledger import InMemoryLedger


async def test_no_agent_can_be_registered_under_the_name_of_the_stops() -> None:
    ledger = InMemoryLedger("coordinator", ManualClock(), SeededIds(1))
    registry = Registry([])
    key = make_test_signer("agent").public_key
    with pytest.raises(InvalidValue) as refused:
        await registry.register(ledger, agent_id=PROTECTION, role=Role.TRADER, family="rules", public_key=key)
    assert refused.value.code == "AGENT_RESERVED"
    assert (registry.version, ledger.events) == (0, ())
