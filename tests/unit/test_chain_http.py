"""Requests to servers that nobody here controls: what is refused, cut and never followed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest

from trading.adapters.bounded_http import Answer, BoundedHttp, HttpFailed, check_url, is_public
from trading.domain.errors import InvalidValue

HOSTS = {"public.example": ["93.184.215.14"], "private.example": ["10.0.0.5"], "both.example": ["1.1.1.1", "::1"]}


async def look_up(host: str, port: int) -> list[str]:
    if host not in HOSTS:
        raise OSError("unknown host")
    return HOSTS[host]


def client(
    handler: Callable[[httpx2.Request], httpx2.Response], *, max_bytes: int = 1_000, hops: int = 3
) -> BoundedHttp:
    transport = httpx2.MockTransport(handler)
    return BoundedHttp(max_bytes=max_bytes, timeout_s=1, max_redirects=hops, resolve=look_up, transport=transport)


async def get(handler: Callable[[httpx2.Request], httpx2.Response], url: str = "https://feed.example/") -> Answer:
    http = client(handler)
    try:
        return await http.get(url)
    finally:
        await http.close()


def redirecting(target: str) -> Callable[[httpx2.Request], httpx2.Response]:
    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/":
            return httpx2.Response(302, headers={"Location": target})
        return streamed(str(request.url).encode())

    return handle


@pytest.mark.parametrize("target", ["/next", "https://feed.example/next", "https://public.example/next"])
async def test_a_redirect_to_the_same_origin_or_a_public_https_address_is_followed(target: str) -> None:
    assert (await get(redirecting(target))).body.endswith(b"/next")


@pytest.mark.parametrize(
    "target",
    [
        "https://private.example/next",
        "https://both.example/next",
        "https://nowhere.example/next",
        "https://127.0.0.1/next",
        "http://127.0.0.1/next",
        "http://public.example/next",
        "file:///etc/passwd",
        "https://[::ffff:10.0.0.1]/next",
        "//169.254.169.254/next",
        "",
        "https://public.example:99999/next",
    ],
)
async def test_a_redirect_to_anywhere_else_is_refused(target: str) -> None:
    HOSTS.update(
        {"127.0.0.1": ["127.0.0.1"], "::ffff:10.0.0.1": ["::ffff:10.0.0.1"], "169.254.169.254": ["169.254.169.254"]}
    )
    with pytest.raises(HttpFailed) as refused:
        await get(redirecting(target))
    assert refused.value.failure == "redirect"


async def test_redirects_in_a_circle_end() -> None:
    asked: list[str] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return httpx2.Response(302, headers={"Location": "/"})

    with pytest.raises(HttpFailed, match="redirects"):
        await get(handle)
    assert len(asked) == 4


async def test_a_post_follows_no_redirect() -> None:
    http = client(redirecting("/next"))
    with pytest.raises(HttpFailed, match="redirects"):
        await http.post("https://feed.example/", b"x")
    await http.close()


def streamed(content: bytes, headers: dict[str, str] | None = None) -> httpx2.Response:
    """Return a response as the network gives it; one made of bytes is read and unpacked by the library at once."""

    async def body() -> AsyncIterator[bytes]:
        yield content

    return httpx2.Response(200, headers=headers, content=body())


def packed(content: bytes, encoding: str) -> Callable[[httpx2.Request], httpx2.Response]:
    return lambda _: streamed(content, {"Content-Encoding": encoding})


async def test_packed_answers_are_unpacked_up_to_the_limit_and_no_further() -> None:
    text = b"<rss>" * 50
    assert (await get(packed(gzip.compress(text), "gzip"))).body == text
    assert (await get(packed(zlib.compress(text), "deflate"))).body == text
    bomb = gzip.compress(b"\0" * 1_000_000)
    assert len(bomb) <= 1_010
    for content, encoding, failure in (
        (gzip.compress(b"\0" * 900_000), "gzip", "too_large"),
        (b"no gzip", "gzip", "garbage"),
        (text, "br", "garbage"),
        (b"x" * 1_001, "identity", "too_large"),
    ):
        with pytest.raises(HttpFailed) as refused:
            await get(packed(content, encoding))
        assert refused.value.failure == failure, encoding


@pytest.mark.parametrize(
    ("header", "after_ms"),
    [("5", 5_000), ("99999", 3_600_000), ("-1", None), ("soon", None), ("9" * 50, None), ("", None)],
)
async def test_how_long_to_wait_is_read_with_care(header: str, after_ms: int | None) -> None:
    with pytest.raises(HttpFailed) as refused:
        await get(lambda _: httpx2.Response(429, headers={"Retry-After": header}))
    assert (refused.value.failure, refused.value.after_ms) == ("rate_limited", after_ms)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (httpx2.ConnectError("x"), "unreachable"),
        (httpx2.ReadTimeout("x"), "timeout"),
        (httpx2.RemoteProtocolError("x"), "garbage"),
    ],
)
async def test_failures_of_the_network_have_a_kind_and_no_address(error: Exception, failure: str) -> None:
    def handle(_: httpx2.Request) -> httpx2.Response:
        raise error

    with pytest.raises(HttpFailed) as refused:
        await get(handle, "https://feed.example/?key=sk-secret")
    assert refused.value.failure == failure
    assert "sk-secret" not in repr(refused.value)


@pytest.mark.parametrize("url", ["http://feed.example/", "https://a b/", "https://a\n/", "https://" + "a" * 3_000, "x"])
def test_only_https_or_this_machine_may_be_asked(url: str) -> None:
    with pytest.raises(InvalidValue, match="must be https"):
        check_url(url)
    for fine in ("https://feed.example/rss", "http://127.0.0.1:8080/", "http://localhost/", "http://[::1]:1/"):
        assert check_url(fine) == fine


def test_public_addresses_are_told_from_private_ones() -> None:
    private = ["10.1.2.3", "127.0.0.1", "169.254.169.254", "192.168.0.1", "::1", "fe80::1%eth0", "fd00::1", "0.0.0.0"]
    private += ["::ffff:127.0.0.1", "224.0.0.1", "100.64.0.1", "x", ""]
    assert [address for address in private if is_public(address)] == []
    assert all(is_public(address) for address in ("1.1.1.1", "2606:4700:4700::1111"))
