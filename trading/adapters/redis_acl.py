"""Who may do what on the bus: one ACL user per writer, ``default`` switched off.

Rules kept:

1. Only ``market`` writes ``market:*``; only ``risk`` writes ``risk:*``; only ``execution`` writes ``execution:*``.
2. Only ``agent-<id>`` appends to ``vote:in:<id>``; it reads ``vote:out`` and ``market:*`` and nothing else. The
   coordinator reads, groups and trims inboxes but cannot speak for an agent.
3. A room appends events only of the categories whose facts it writes, and may not delete or overwrite a stream.
4. ``console`` reads; ``admin`` is for the desk's own supervision and is used by no room.

The ACL is a second wall: what counts is signed, and is verified by whoever acts on it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

from trading.adapters.config import check_private, write_private
from trading.domain.errors import ConfigurationError
from trading.domain.events import Category
from trading.domain.identifiers import parse_name

#: Users that every desk has; ``agent-<id>`` users come and go with the registry.
ROOM_USERS: Final = ("market", "risk", "execution", "coordinator", "wallet", "console", "admin")

_AGENT: Final = "agent-"
_SUFFIX: Final = ".password"
_CONNECTION: Final = ("+ping", "+time", "+hello", "+auth", "+select", "+client|setname", "+client|id", "+@transaction")
_ALL_DATA: Final = ("+@read", "+@write", "-@dangerous")
_STREAM_READ: Final = ("+xread", "+xrange", "+xrevrange", "+xlen", "+xinfo|stream", "+exists")
_GROUPS: Final = (
    "+xreadgroup",
    "+xack",
    "+xautoclaim",
    "+xclaim",
    "+xpending",
    "+xgroup|create",
    "+xgroup|createconsumer",
    "+xgroup|delconsumer",
)
_WRITES: Final[dict[str, tuple[Category, ...]]] = {
    "risk": (Category.RISK, Category.SYSTEM),
    "execution": (Category.TRADING, Category.SYSTEM),
    "coordinator": (Category.COORDINATION, Category.SYSTEM),
    "wallet": (Category.SYSTEM,),
}
_READS: Final[dict[str, tuple[str, ...]]] = {
    "risk": ("market", "execution"),
    "execution": ("market", "risk"),
    "coordinator": ("market", "risk", "execution"),
    "wallet": ("market", "risk"),
}


def acl_rules(user: str, prefix: str) -> tuple[str, ...]:
    """Return the ACL rules of a user, without its password.

    Args:
        user: one of ``ROOM_USERS`` or ``agent-<id>``.
        prefix: what all keys of the desk start with, colon included (``settings.key("")``).

    Raises:
        InvalidValue: an agent id that is not a name.
        ConfigurationError: no such user.
    """
    if user.startswith(_AGENT):
        return _agent(parse_name(user.removeprefix(_AGENT), what="agent_id"), prefix)
    if user == "admin":
        return ("~*", "&*", "+@all")
    if user == "console":
        return (f"%R~{prefix}*", "-@all", *_CONNECTION, "+@read", "-@dangerous")
    if user == "market":
        return (f"~{prefix}market:*", "-@all", *_CONNECTION, *_ALL_DATA)
    if user in _WRITES:
        return _room(user, prefix)
    raise ConfigurationError(f"the bus has no user {user[:64]!r}", allowed=(*ROOM_USERS, "agent-<id>"))


def _agent(agent_id: str, prefix: str) -> tuple[str, ...]:
    reads = _selector(
        (*_STREAM_READ, "+get", "+hget", "+hmget", "+hgetall"), f"%R~{prefix}vote:out", f"%R~{prefix}market:*"
    )
    return (f"%W~{prefix}vote:in:{agent_id}", "-@all", *_CONNECTION, "+xadd", reads)


def _room(user: str, prefix: str) -> tuple[str, ...]:
    rules = [
        f"~{prefix}{user}:*",
        f"~{prefix}relay:{user}",
        f"~{prefix}consumers:{user}:*",
        *(f"%R~{prefix}{room}:*" for room in _READS[user]),
        f"%R~{prefix}events:*",
        f"%R~{prefix}vote:out",
        "-@all",
        *_CONNECTION,
        *_ALL_DATA,
        # Appending is all a writer may do to an event stream; selectors keep @write away from it.
        _selector(("+xadd",), *(f"%W~{prefix}events:{category}" for category in _WRITES[user])),
        _selector(_GROUPS, f"~{prefix}events:*"),
    ]
    if user == "coordinator":
        # A glob cannot say "all but vote:in:"; [^i] comes to that, as no other vote key starts with an i.
        rules += [
            f"~{prefix}vote:[^i]*",
            "+eval",
            "+evalsha",
            "+script|load",
            "+script|exists",
            _selector((*_STREAM_READ, *_GROUPS, "+xtrim", "+del", "+unlink"), f"~{prefix}vote:in:*"),
        ]
    return tuple(rules)


def _selector(commands: tuple[str, ...], *keys: str) -> str:
    return f"({' '.join((*commands, *keys))})"


def password_file(directory: Path, user: str) -> Path:
    """Return the file, mode 0600, that holds a user's password."""
    return directory / f"{user}{_SUFFIX}"


def read_password(directory: Path, user: str) -> str:
    """Return a user's password.

    Raises:
        ConfigurationError: no such user was provisioned, or its file is open to others.
    """
    path = password_file(directory, user)
    try:
        check_private(path)
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"the bus has no user {user[:64]!r}",
            suggestion="provision the agent first" if user.startswith(_AGENT) else "use one of the rooms",
            allowed=ROOM_USERS,
        ) from error


def ensure_password(directory: Path, user: str) -> str:
    """Return a user's password, making a random one of 256 bits first if there is none.

    The caller holds the desk's start lock, so nobody reads a file that is half written.
    """
    path = password_file(directory, user)
    if not path.exists():
        write_private(path, secrets.token_hex(32).encode("ascii"))
    return read_password(directory, user)


def known_users(directory: Path) -> tuple[str, ...]:
    """Return the rooms and every agent that has a password here."""
    agents = sorted(path.name.removesuffix(_SUFFIX) for path in directory.glob(f"{_AGENT}*{_SUFFIX}"))
    return (*ROOM_USERS, *agents)


def write_acl_file(directory: Path, prefix: str) -> Path:
    """Write the server's ACL file from the passwords in the directory; return its path.

    Passwords are stored as SHA-256 there, as Redis itself does.
    """
    lines = ["user default off resetpass -@all"]
    for user in known_users(directory):
        digest = hashlib.sha256(ensure_password(directory, user).encode()).hexdigest()
        lines.append(" ".join(("user", user, "on", f"#{digest}", "resetchannels", *acl_rules(user, prefix))))
    path = directory / "users.acl"
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    write_private(fresh, ("\n".join(lines) + "\n").encode())
    os.replace(fresh, path)  # noqa: PTH105  one atomic step, so a start after a crash reads the old file or the new
    return path
