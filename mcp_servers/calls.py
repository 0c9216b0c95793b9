"""Who is calling and which call this is, for as long as one request runs.

The middleware of ``desk_server`` sets the current call before a tool runs; everything below it (the reply's trace id,
the error's trace id, a room that binds an idempotency key to its caller) reads it here. Outside a request there is no
current call: the principal is then the process itself.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

#: Every scope; held by principals that reached us through the file system's permissions instead of a token.
ALL_SCOPES: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whoever a request is answered for.

    Attributes:
        name: stable over requests; ``local`` for stdio, a unix socket and an in-process client, else
            ``oauth:<client>`` or ``oauth:<client>/<subject>`` of the verified token.
        scopes: what the token allows; ``*`` allows everything.
        local: whether no token was needed to get here.
    """

    name: str
    scopes: frozenset[str]
    local: bool

    def may(self, scope: str) -> bool:
        """Return whether this principal holds ``scope``."""
        return ALL_SCOPES in self.scopes or scope in self.scopes


LOCAL: Final = Principal(name="local", scopes=frozenset({ALL_SCOPES}), local=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One inbound request.

    Attributes:
        trace_id: names this request in the reply, the error and the log.
        principal: for whom.
        mode: the desk's mode (paper, testnet, live); copied into every reply.
    """

    trace_id: str
    principal: Principal
    mode: str


_current: ContextVar[Call | None] = ContextVar("grekko_call", default=None)


def current_call() -> Call | None:
    """Return the request being answered by this task, or None outside one."""
    return _current.get()


def current_principal() -> Principal:
    """Return for whom the current tool runs; the local principal outside a request."""
    call = _current.get()
    return LOCAL if call is None else call.principal


class answering:  # noqa: N801 - reads as a statement: ``with answering(call):``
    """Make ``call`` the current call inside a ``with`` block."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> Call:
        self._token = _current.set(self._call)
        return self._call

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
