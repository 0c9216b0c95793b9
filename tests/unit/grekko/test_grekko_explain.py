"""`grekko explain` finds what there is, and claims nothing that was not there to check."""

from __future__ import annotations

from pathlib import Path

import pytest

from grekko.explain import page, tell
from grekko.initialization import initialize
from grekko.ledgers import Ledgers
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskSettings
from trading.domain.errors import InvalidValue
from trading.domain.events import ProposalRefused, VoteRefused
from trading.domain.identifiers import AgentId, ProposalId
from trading.ports.ledger import EventDraft, Unit
from trading.testing.ledger import InMemoryLedger


async def build_ledgers() -> Ledgers:
    """Return ledgers in which one proposal was refused, and one vote without an id."""
    ledgers = Ledgers(
        *(InMemoryLedger(room, SystemClock(), Uuid7Factory()) for room in ("coordinator", "risk", "execution"))
    )
    refused = ProposalRefused(proposal_id=ProposalId("a-proposal"), agent_id=AgentId("momentum"), reason="BUSY")
    vote = VoteRefused(proposal_id=ProposalId(""), agent_id=AgentId("momentum"), reason="BAD_SIGNATURE", received_ms=1)
    writer = ledgers.coordinator
    assert isinstance(writer, InMemoryLedger)
    await writer.commit(Unit(events=(EventDraft(refused), EventDraft(vote))))
    return ledgers


async def test_a_refused_proposal_is_explained_without_claiming_an_order(tmp_path: Path) -> None:
    settings = DeskSettings(home=tmp_path / "desk")
    initialize(settings)
    lines = page(await tell(settings.desk_home, await build_ledgers(), "a-proposal"))
    assert any("BUSY" in line for line in lines)
    assert lines[-1].endswith("there is no order")


async def test_an_empty_id_is_the_id_of_nothing(tmp_path: Path) -> None:
    settings = DeskSettings(home=tmp_path / "desk")
    initialize(settings)
    with pytest.raises(InvalidValue) as caught:
        await tell(settings.desk_home, await build_ledgers(), "")
    assert caught.value.code == "UNKNOWN_ID"
