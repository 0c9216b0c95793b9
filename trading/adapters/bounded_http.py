"""HTTP requests to servers that nobody here controls: bounded in time, bytes and hops.

Rules kept here:

- ``https`` to anywhere, ``http`` to this machine alone; the environment's proxies are not used.
- One deadline spans the whole exchange, so that a server that drips bytes is cut off like one that is silent.
- A body is never held beyond its limit, neither as sent nor unpacked: unpacking stops at the limit.
- A redirect is followed to the same origin, or by ``https`` to an address that is public; never to a private one.
- No error or log line holds the address: a provider's URL often carries its key.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal
from urllib.parse import urljoin, urlsplit

import httpx2

from trading.domain.errors import InvalidValue, Unavailable

Failure = Literal["unreachable", "timeout", "too_large", "refused", "rate_limited", "redirect", "garbage"]
#: Turns a host and port into addresses, as text.
Resolve = Callable[[str, int], Awaitable[list[str]]]

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_PORTS: Final = {"http": 80, "https": 443}
_MAX_URL: Final = 2_048
_MAX_RETRY_AFTER_S: Final = 3_600
_REDIRECTS: Final = (301, 302, 303, 307, 308)
#: gzip or zlib, whichever the first bytes say. Source: zlib manual, inflateInit2.
_ANY_DEFLATE: Final = 47


class HttpFailed(Unavailable):
    """No usable answer came back.

    Attributes:
        failure: what kind of failure it was.
        status: the HTTP status, if there was an answer.
        after_ms: how long the server asks to be left alone, with ``rate_limited``; None when it does not say.
    """

    code = "HTTP_FAILED"

    def __init__(self, failure: Failure, message: str, *, status: int | None = None, after_ms: int | None = None):
        super().__init__(message)
        self.failure: Failure = failure
        self.status = status
        self.after_ms = after_ms


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer.

    Attributes:
        status: 200 to 299, or 304.
        headers: names in lower case.
        body: unpacked.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_url(url: str, *, what: str = "the address") -> str:
    """Return ``url`` if it may be asked: ``https``, or ``http`` on this machine.

    Raises:
        InvalidValue: another form; the message names ``what`` and not the address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    allowed = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
    if not host or not allowed or len(url) > _MAX_URL or not url.isprintable() or " " in url:
        raise InvalidValue(
            f"{what} must be https://, or http:// on this machine", code="INVALID_URL", suggestion="correct the URL"
        )
    return url


class BoundedHttp:
    """A client for one kind of server; closed by :meth:`close`.

    Args:
        max_bytes: of one body.
        timeout_s: for one whole exchange, redirects included.
        max_redirects: hops followed at most; a POST follows none.
        connections: open at once.
        resolve: looks up hosts before a redirect is followed; the system's resolver unless a test says otherwise.
        transport: instead of the network, for tests.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        timeout_s: float,
        max_redirects: int = 0,
        connections: int = 8,
        resolve: Resolve | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every URL at INFO
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._max_redirects = max_redirects
        self._resolve = resolve or _system_resolve
        self._client = httpx2.AsyncClient(
            transport=transport,
            verify=_tls(),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(timeout_s),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={"Accept-Encoding": "gzip, deflate", "User-Agent": "grekko"},
        )

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Return what ``url`` holds; 304 when ``headers`` made the request conditional and nothing changed.

        Raises:
            HttpFailed: there is no usable answer.
            InvalidValue: the address may not be asked.
        """
        return await self._within_deadline("GET", url, None, headers or {})

    async def post(self, url: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """Send ``body`` and return the answer.

        Raises:
            HttpFailed: there is no usable answer.
            InvalidValue: the address may not be asked.
        """
        return await self._within_deadline("POST", url, body, headers or {})

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _within_deadline(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(method, check_url(url), body, headers)
        except TimeoutError:
            raise HttpFailed("timeout", "the server did not answer in time") from None
        except (httpx2.TimeoutException, httpx2.NetworkError) as error:
            kind = "timeout" if isinstance(error, httpx2.TimeoutException) else "unreachable"
            raise HttpFailed(kind, f"the server cannot be reached ({type(error).__name__})") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise HttpFailed("garbage", f"the server does not speak HTTP ({type(error).__name__})") from None

    async def _follow(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        hops = self._max_redirects if method == "GET" else 0
        for _ in range(hops + 1):
            found = await self._exchange(method, url, body, headers)
            if isinstance(found, Answer):
                return found
            url = await self._checked_target(url, found)
        raise HttpFailed("redirect", "the server redirects, which is not followed here")

    async def _exchange(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Answer | str:
        """Return the answer, or where it redirects to."""
        async with self._client.stream(method, url, content=body, headers=dict(headers)) as response:
            if response.status_code in _REDIRECTS:
                return response.headers.get("location", "")
            if response.status_code != 304 and not response.is_success:
                raise _refusal(response)
            raw = bytearray()
            async for chunk in response.aiter_raw():
                raw += chunk
                if len(raw) > self._max_bytes:
                    raise HttpFailed("too_large", f"the answer is larger than {self._max_bytes} bytes")
            names = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status_code, names, self._unpacked(bytes(raw), names.get("content-encoding", "")))

    def _unpacked(self, raw: bytes, encoding: str) -> bytes:
        if encoding.strip().lower() in ("", "identity"):
            return raw
        if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
            raise HttpFailed("garbage", "the answer is packed in a way that was not asked for")
        try:
            found = zlib.decompressobj(_ANY_DEFLATE).decompress(raw, self._max_bytes + 1)
        except zlib.error:
            raise HttpFailed("garbage", "the answer cannot be unpacked") from None
        if len(found) > self._max_bytes:
            raise HttpFailed("too_large", f"the answer unpacks to more than {self._max_bytes} bytes")
        return found

    async def _checked_target(self, url: str, location: str) -> str:
        """Return where to go next, or refuse: a feed must not make the desk ask its own network."""
        refused = HttpFailed("redirect", "the server redirects to where this desk does not go")
        try:
            target = check_url(urljoin(url, location))
            if _origin(target) == _origin(url):
                return target
            parts = urlsplit(target)
            if parts.scheme != "https":
                raise refused
            addresses = await self._resolve(parts.hostname or "", parts.port or _PORTS["https"])
        except (InvalidValue, OSError, ValueError):
            raise refused from None
        if not addresses or not all(is_public(address) for address in addresses):
            raise refused
        return target


def is_public(address: str) -> bool:
    """Return whether an IP address, as text, is one of the public internet."""
    try:
        found = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_global and not (mapped or found).is_multicast


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _refusal(response: httpx2.Response) -> HttpFailed:
    status = response.status_code
    if status == 429 or (status == 503 and "retry-after" in response.headers):
        said = response.headers.get("retry-after", "")
        seconds = int(said) if said.isascii() and said.isdigit() and len(said) < 10 else None
        after_ms = None if seconds is None else min(seconds, _MAX_RETRY_AFTER_S) * 1_000
        return HttpFailed("rate_limited", "the server asks to be asked less often", status=status, after_ms=after_ms)
    return HttpFailed("refused", f"the server answered with status {status}", status=status)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Return what servers' certificates are checked with; read once, as it takes longer than most requests."""
    return httpx2.create_ssl_context(trust_env=False)


async def _system_resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]
