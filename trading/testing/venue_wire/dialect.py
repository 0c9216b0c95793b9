"""What a dialect is: a venue's way to say what the market is, over REST and over a WebSocket."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from trading.testing.venue_wire.market import WireMarket
from trading.testing.venue_wire.recorded import Event

#: A JSON object.
Json = dict[str, object]


class Frame(NamedTuple):
    """A text frame; ``delta`` marks book changes, which faults can lose."""

    text: str
    delta: bool = False


class Answer(NamedTuple):
    """A REST answer."""

    body: object
    status: int = 200


@dataclass
class Session:
    """One client's connection as the dialect sees it.

    Attributes:
        channels: what it subscribed to, (channel, symbol), with the depth it asked for, 0 when it named none.
        sequence: of the last message sent, for venues that number them per connection; -1 before the first.
        shown: the levels the client has, for venues that send a limited depth.
        delayed: frames that a fault keeps back.
        mark: payload of the newest ping; ``read`` is set when it comes back, or nothing more will.
    """

    channels: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    sequence: int = -1
    shown: dict[str, tuple[dict[str, str], dict[str, str]]] = field(
        default_factory=dict[str, tuple[dict[str, str], dict[str, str]]]
    )
    delayed: list[str] = field(default_factory=list[str])
    mark: bytes = b""
    read: asyncio.Event = field(default_factory=asyncio.Event)


class Dialect(ABC):
    """One venue's words.

    Args:
        market: what is true.
        records: the venue's recorded REST answers.

    Attributes:
        venue: ccxt's id.
        rest_root, ws_path: what follows host and port in the addresses that a client is given.
    """

    venue: str
    rest_root = ""
    ws_path: str

    def __init__(self, market: WireMarket, records: Mapping[str, object]) -> None:
        self.market = market
        self.records = records

    @abstractmethod
    def rest(self, path: str, query: Mapping[str, str]) -> Answer | None:
        """Answer a GET; None when the venue has no such path."""

    @abstractmethod
    def refusal(self, status: int) -> Answer:
        """Return the body of an error answer, such as too many requests."""

    @abstractmethod
    def message(self, session: Session, message: Json) -> list[Frame]:
        """Answer a client's message, subscriptions above all."""

    @abstractmethod
    def event(self, session: Session, event: Event) -> list[Frame]:
        """Return what a session gets to see of an event that became true; nothing when it did not subscribe."""

    def greeting(self, session: Session) -> list[Frame]:
        """Return what a client is sent when it connects."""
        del session
        return []

    def heartbeat(self, session: Session) -> list[Frame]:
        """Return what the venue sends while nothing happens."""
        del session
        return []


def frame(message: Mapping[str, object], *, delta: bool = False) -> Frame:
    """Return a message as compact JSON."""
    return Frame(json.dumps(message, separators=(",", ":")), delta)


def objects(value: object) -> list[Json]:
    """Return recorded JSON as a list of objects."""
    return cast("list[Json]", value)


def mapping(value: object) -> Json:
    """Return recorded JSON as an object."""
    return cast("Json", value)


def texts(value: object) -> list[str]:
    """Return a message's list of texts; empty when it is something else."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [item for item in items if isinstance(item, str)]


def whole(text: str | None, default: int) -> int:
    """Return a query's integer, or the default when it is absent or no integer."""
    try:
        return int(float(text)) if text else default
    except ValueError:
        return default
