"""Who belongs to the desk: a fold of the ledger's agent events, one version for each change.

An agent id is bound to one key for life: a new key is a new agent. A revoked agent never returns.
"""

from __future__ import annotations

from typing import cast

from trading.adapters.signing import key_id_of
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.events import AgentRegistered, AgentRevoked
from trading.domain.identifiers import AgentId, KeyId, parse_name
from trading.domain.standing_exits import PROTECTION
from trading.domain.voting import Role, Roster, RosterMember
from trading.ports.ledger import EventDraft, Insert, Ledger, LedgerReader, Row, Unit, Upsert


class Registry:
    """The roster at every version. Reads from memory; writes go to the ledger first.

    Args:
        rows: the ledger's ``roster`` table.
    """

    def __init__(self, rows: list[Row]) -> None:
        self._rows: dict[AgentId, Row] = {AgentId(str(row["agent_id"])): row for row in rows}
        self._present = self._roster_at(self._newest())

    @classmethod
    async def load(cls, ledger: LedgerReader) -> Registry:
        """Return the registry as the ledger has it."""
        return cls(await ledger.rows("roster"))

    @property
    def version(self) -> int:
        """The newest version; 0 for an empty desk."""
        return self._present.version

    def _newest(self) -> int:
        changes = [_int(row, name) for row in self._rows.values() for name in ("roster_version", "revoked_version")]
        return max(changes, default=0)

    def roster(self, version: int | None = None) -> Roster:
        """Return the members at a version (the newest if not given), by agent id."""
        return self._present if version is None or version == self._present.version else self._roster_at(version)

    def _roster_at(self, at: int) -> Roster:
        members = [
            _member(row)
            for _, row in sorted(self._rows.items())
            if _int(row, "roster_version") <= at and not 0 < _int(row, "revoked_version") <= at
        ]
        return Roster(at, tuple(members))

    def is_revoked(self, agent_id: AgentId) -> bool:
        """Return whether the agent was a member once and is no longer."""
        row = self._rows.get(agent_id)
        return row is not None and _int(row, "revoked_version") > 0

    async def register(
        self, ledger: Ledger, *, agent_id: AgentId, role: Role, family: str, public_key: str
    ) -> RosterMember:
        """Admit an agent; repeating it with the same role and key changes nothing.

        Raises:
            ConfigurationError: (AGENT_KEY_CHANGED) the id belongs to another key or role, or was revoked.
            InvalidValue: the id is not a name, or AGENT_RESERVED.
        """
        parse_name(agent_id, what="agent_id")
        if agent_id == PROTECTION:
            raise InvalidValue(f"{PROTECTION} is the name under which stops act, no agent's", code="AGENT_RESERVED")
        known = self._rows.get(agent_id)
        if known is not None:
            member = _member(known)
            if self.is_revoked(agent_id) or member.public_key != public_key or member.role is not role:
                raise ConfigurationError(
                    f"agent {agent_id} is registered with another key or role, or was revoked",
                    code="AGENT_KEY_CHANGED",
                    suggestion="register it under a new id",
                )
            return member
        version = self.version + 1
        key_id = key_id_of(public_key)
        row: Row = {
            "agent_id": agent_id,
            "role": role.value,
            "family": family,
            "key_id": key_id,
            "public_key": public_key,
            "roster_version": version,
            "revoked_version": None,
        }
        event = AgentRegistered(
            agent_id=agent_id,
            role=role,
            family=family,
            key_id=key_id,
            public_key=public_key,
            roster_version=version,
        )
        await ledger.commit(Unit(events=(EventDraft(event),), claims=(Insert("roster", row),)))
        self._keep(agent_id, row)
        return _member(row)

    async def revoke(self, ledger: Ledger, agent_id: AgentId, reason: str) -> None:
        """Take an agent's vote away from the next version on; votes of it that are not decided yet no longer count.

        Raises:
            ConfigurationError: there is no such agent.
        """
        known = self._rows.get(agent_id)
        if known is None:
            raise ConfigurationError(f"there is no agent {agent_id[:64]!r}", allowed=tuple(self._rows))
        if self.is_revoked(agent_id):
            return
        version = self.version + 1
        row: Row = {**known, "revoked_version": version}
        event = AgentRevoked(agent_id=agent_id, roster_version=version, reason=reason[:280])
        await ledger.commit(Unit(events=(EventDraft(event),), writes=(Upsert("roster", row),)))
        self._keep(agent_id, row)

    def _keep(self, agent_id: AgentId, row: Row) -> None:
        self._rows[agent_id] = row
        self._present = self._roster_at(self._newest())


def _int(row: Row, name: str) -> int:
    return cast("int | None", row[name]) or 0


def _member(row: Row) -> RosterMember:
    return RosterMember(
        agent_id=AgentId(str(row["agent_id"])),
        role=Role(str(row["role"])),
        key_id=KeyId(str(row["key_id"])),
        public_key=str(row["public_key"]),
        family=str(row["family"]),
    )
