"""How the venue misbehaves: switched by a test while clients are connected."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

#: What a proxy in front of a venue sends when the venue is away.
HTML = "<html><head><title>Error</title></head><body><h1>Service unavailable</h1></body></html>"


@dataclass
class HttpFault:
    """An answer that replaces the venue's own, for requests whose path contains ``path``.

    Attributes:
        times: for how many requests; None until it is removed.
        body: sent as it is; None lets the dialect say it in its own words.
        hold: waited for before the answer; with status 200 the venue's own answer follows, only late.
        headers: such as Retry-After, in seconds.
    """

    status: int
    path: str = ""
    times: int | None = 1
    body: str | None = None
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    hold: asyncio.Event | None = None


class Faults:
    """Everything that can be switched.

    Attributes:
        silent: take everything and send nothing, not even answers to pings; connections stay open.
    """

    def __init__(self) -> None:
        self._http: list[HttpFault] = []
        self._drop: set[int] = set()
        self._duplicate: set[int] = set()
        self._delay: set[int] = set()
        self._seen = 0
        self.silent = False

    def answer(
        self,
        status: int,
        *,
        path: str = "",
        times: int | None = 1,
        retry_after_s: int | None = None,
    ) -> None:
        """Answer the next matching requests, WebSocket handshakes included, with an error in the venue's words."""
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        self._http.append(HttpFault(status, path, times, headers=headers))

    def answer_html(self, *, status: int = 200, path: str = "", times: int | None = 1) -> None:
        """Answer the next matching requests with a web page."""
        self._http.append(HttpFault(status, path, times, HTML, "text/html"))

    def answer_text(self, body: str, *, status: int = 200, path: str = "", times: int | None = 1) -> None:
        """Answer the next matching requests with ``body`` and claim that it is JSON."""
        self._http.append(HttpFault(status, path, times, body))

    def hold(self, *, path: str = "", times: int | None = 1) -> asyncio.Event:
        """Let the next matching requests wait; the caller sets the event that is returned."""
        release = asyncio.Event()
        self._http.append(HttpFault(200, path, times, hold=release))
        return release

    def drop_delta(self, number: int = 1) -> None:
        """Lose the ``number``-th book change from now, counted per connection that should get it."""
        self._drop.add(self._seen + number)

    def duplicate_delta(self, number: int = 1) -> None:
        """Send the ``number``-th book change from now twice."""
        self._duplicate.add(self._seen + number)

    def swap_delta(self, number: int = 1) -> None:
        """Send the ``number``-th book change from now after the one that follows it."""
        self._delay.add(self._seen + number)

    def heal(self) -> None:
        """Switch everything off; a request that is held stays held until its event is set."""
        self._http.clear()
        self._drop.clear()
        self._duplicate.clear()
        self._delay.clear()
        self.silent = False

    def take_http(self, path: str) -> HttpFault | None:
        """Return the fault for a request, and count it as used."""
        for fault in self._http:
            if fault.path in path:
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self._http.remove(fault)
                return fault
        return None

    def pass_delta(self, text: str, delayed: list[str]) -> list[str]:
        """Return the frames that leave instead of one book change.

        Args:
            delayed: frames that the connection still owes; they follow the next change.
        """
        self._seen += 1
        owed = delayed[:]
        delayed.clear()
        if self._seen in self._drop:
            return owed
        if self._seen in self._delay:
            delayed.append(text)
            return owed
        return [text, *([text] if self._seen in self._duplicate else []), *owed]
