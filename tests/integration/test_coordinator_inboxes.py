"""What an agent leaves in its inbox, whatever it is, never stops the meeting."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from coordinator.inboxes import InboxReader
from tests.coordinator_support import open_agents, open_bus
from trading.domain.identifiers import AgentId


async def test_bytes_that_are_no_text_are_handed_over_like_any_other_entry() -> None:
    seen: list[tuple[AgentId, str, str]] = []
    two = asyncio.Event()

    async def handle(batch: list[tuple[AgentId, str, str]]) -> None:
        seen.extend(batch)
        if len(seen) >= 2:
            two.set()

    async with open_bus() as (home, settings, redis), open_agents(home, settings, ("momentum",)) as agents:
        inbox = settings.key("vote:in:momentum")
        await agents["momentum"].xadd(inbox, {b"\xff": b"\xfe", b"t": b"vote", b"e": b"\xff\xfe"})
        await agents["momentum"].xadd(inbox, {"t": "vote", "e": "{}"})
        reader = InboxReader(redis, settings.key(""), lambda: [AgentId("momentum")])
        async with asyncio.TaskGroup() as group:
            task = group.create_task(reader.run(handle))
            with suppress(TimeoutError):
                await asyncio.wait_for(two.wait(), 5)
            task.cancel()
    assert [(agent, kind) for agent, kind, _ in seen] == [("momentum", "vote"), ("momentum", "vote")]
    assert seen[1][2] == "{}"
