"""Members of the desk that the coordinator hosts. Each has its own key, its own Redis user and its own connection."""

from __future__ import annotations

from typing import Final

from trading.domain.identifiers import AgentId

#: The rule-based traders, from the most cautious to the boldest, and the member whose consent every trade needs.
AGENT_IDS: Final = (
    AgentId("conservative"),
    AgentId("balanced"),
    AgentId("aggressive"),
    AgentId("risk-officer"),
)
