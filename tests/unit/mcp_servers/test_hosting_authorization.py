"""Who may call over HTTP: tokens, scopes and the addresses that need none."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import OKPAlgorithm
from mcp import MCPError
from pydantic import SecretStr, ValidationError

from mcp_servers.authorization import (
    AuthorizationSettings,
    JwtVerifier,
    http_authorization,
    is_loopback,
    load_authorization,
)
from mcp_servers.hosting import ToolFailure, call, open_client
from tests.hosting_sample import build
from tests.mcp_harness import Way, listening, reach
from trading.adapters.clock import SystemClock
from trading.domain.errors import ConfigurationError, Unavailable
from trading.domain.proposals import Mode

ISSUER = "https://issuer.example"
RESOURCE = "https://desk.example/sample/mcp"
SECRET = "0123456789abcdef0123456789abcdef"

PRIVATE = Ed25519PrivateKey.generate()
OTHER = Ed25519PrivateKey.generate()


def now_s() -> int:
    return SystemClock().now_ms() // 1_000


def claims(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "iss": ISSUER,
        "aud": RESOURCE,
        "sub": "alice",
        "client_id": "desktop",
        "scope": "sample:read",
        "exp": now_s() + 600,
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def token(
    *, key: Any = PRIVATE, algorithm: str = "EdDSA", headers: dict[str, Any] | None = None, **changes: Any
) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers=headers)


@pytest.fixture
def settings(tmp_path: Path) -> AuthorizationSettings:
    file = tmp_path / "issuer.pem"
    file.write_bytes(PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return AuthorizationSettings(issuer=ISSUER, resource_urls={"sample": RESOURCE}, public_key_file=file, leeway_s=5)


@pytest.fixture
def verifier(settings: AuthorizationSettings) -> JwtVerifier:
    return JwtVerifier(settings, resource_url=RESOURCE)


async def test_a_good_token_names_its_client_subject_and_scopes(verifier: JwtVerifier) -> None:
    found = await verifier.verify_token(token(scope="sample:read sample:write * admin", nbf=now_s() - 1))
    assert found is not None
    assert (found.client_id, found.subject, found.resource) == ("desktop", "alice", RESOURCE)
    assert found.scopes == ["sample:read", "sample:write"]  # a wildcard is never granted from outside


def _unsigned() -> str:
    return jwt.encode(claims(), None, "none")  # pyright: ignore[reportArgumentType]


def _confused() -> str:
    """Return HS256 with the public key as the secret; pyjwt refuses to make one, an attacker does not."""
    import hashlib
    import hmac

    def text(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    pem = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = text(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    body = f"{head}.{text(json.dumps(claims()).encode())}"
    return f"{body}.{text(hmac.new(pem, body.encode(), hashlib.sha256).digest())}"


def _altered() -> str:
    head, _, signature = token().split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(scope="sample:write")).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


REFUSED: dict[str, Callable[[], str]] = {
    "another audience": lambda: token(aud="https://desk.example/execution/mcp"),
    "no audience": lambda: token(aud=None),
    "another issuer": lambda: token(iss="https://evil.example"),
    "no issuer": lambda: token(iss=None),
    "expired": lambda: token(exp=now_s() - 6),
    "no expiry": lambda: token(exp=None),
    "not yet valid": lambda: token(nbf=now_s() + 60),
    "issued in the future": lambda: token(iat=now_s() + 60),
    "nobody": lambda: token(sub=None, client_id=None),
    "another key": lambda: token(key=OTHER),
    "no signature": _unsigned,
    "the public key as a secret": _confused,
    "altered claims": _altered,
    "an unknown key id": lambda: token(headers={"kid": "k2"}, key=OTHER),
    "a huge token": lambda: token(filler="x" * 9_000),
    "nonsense": lambda: "nonsense",
    "empty": lambda: "",
}


@pytest.mark.parametrize("why", REFUSED)
async def test_a_token_is_refused_for(why: str, verifier: JwtVerifier, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    text = REFUSED[why]()
    assert await verifier.verify_token(text) is None
    assert not text or text not in caplog.text


async def test_a_little_clock_difference_is_forgiven(verifier: JwtVerifier) -> None:
    assert await verifier.verify_token(token(exp=now_s() - 2)) is not None


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
async def test_other_public_key_algorithms_work(algorithm: str, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else rsa.generate_private_key(65537, 2048)
    file = tmp_path / "key.pem"
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    verifier = JwtVerifier(AuthorizationSettings(issuer=ISSUER, public_key_file=file), resource_url=RESOURCE)
    assert await verifier.verify_token(token(key=key, algorithm=algorithm)) is not None
    only_eddsa = AuthorizationSettings(issuer=ISSUER, public_key_file=file, algorithms=("EdDSA",))
    assert (
        await JwtVerifier(only_eddsa, resource_url=RESOURCE).verify_token(token(key=key, algorithm=algorithm)) is None
    )


async def test_a_key_set_is_searched_by_key_id(tmp_path: Path) -> None:
    keys = [
        json.loads(OKPAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig", "alg": "EdDSA"}
        for kid, key in (("a", PRIVATE), ("b", OTHER))
    ]
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": keys}), encoding="ascii")
    verifier = JwtVerifier(AuthorizationSettings(issuer=ISSUER, jwks_file=file), resource_url=RESOURCE)
    assert await verifier.verify_token(token(headers={"kid": "a"})) is not None
    assert await verifier.verify_token(token(headers={"kid": "b"}, key=OTHER)) is not None
    assert await verifier.verify_token(token(headers={"kid": "b"})) is None
    assert await verifier.verify_token(token(headers={"kid": "c"})) is None
    assert await verifier.verify_token(token()) is None  # two keys and none named


async def test_a_shared_secret_is_used_only_when_configured_and_then_alone() -> None:
    settings = AuthorizationSettings(issuer=ISSUER, shared_secret=SecretStr(SECRET))
    verifier = JwtVerifier(settings, resource_url=RESOURCE)
    assert await verifier.verify_token(token(key=SECRET, algorithm="HS256")) is not None
    assert await verifier.verify_token(token()) is None
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"shared_secret": "short"},
        {"shared_secret": SECRET, "jwks_file": "x"},
        {"jwks_file": "x", "algorithms": ["HS256"]},
        {"jwks_file": "x", "algorithms": ["none"]},
        {"jwks_file": "x", "leeway_s": 3_600},
        {"jwks_file": "x", "typo": 1},
    ],
)
def test_unsafe_settings_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AuthorizationSettings.model_validate({"issuer": ISSUER, **given})


@pytest.mark.parametrize("content", ["", "{}", '{"keys": []}', "not json"])
def test_a_key_file_without_keys_refuses_to_start(content: str, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(content, encoding="ascii")
    with pytest.raises(ConfigurationError):
        JwtVerifier(AuthorizationSettings(issuer=ISSUER, jwks_file=file), resource_url=RESOURCE)


def test_only_paper_on_a_loopback_address_goes_without_tokens(settings: AuthorizationSettings) -> None:
    assert http_authorization(None, room="sample", host="127.0.0.1", port=1, mode=Mode.PAPER) is None
    for host, mode in (
        ("0.0.0.0", Mode.PAPER),
        ("127.0.0.1", Mode.TESTNET),
        ("127.0.0.1", Mode.LIVE),
        ("desk", Mode.PAPER),
    ):
        with pytest.raises(ConfigurationError) as caught:
            http_authorization(None, room="sample", host=host, port=1, mode=mode)
        assert caught.value.code == "AUTHORIZATION_REQUIRED"
    assert http_authorization(settings, room="sample", host="127.0.0.1", port=1, mode=Mode.PAPER) is not None
    assert [is_loopback(host) for host in ("127.9.9.9", "::1", "[::1]", "localhost", "10.0.0.1", "localhost.evil")] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_token_opens_the_tools_of_its_scopes_and_no_others(settings: AuthorizationSettings, era: str) -> None:
    way = Way("http", era)
    bearer = SecretStr(token())
    async with reach(way, lambda: build(authorization=settings), room="sample", token=bearer) as client:
        found = await call(client, "sample_echo_arguments", amount="1")
        assert found["principal"] == "oauth:desktop/alice"
        assert {item.name for item in (await client.list_tools()).tools} == {
            "sample_echo_arguments",
            "sample_fail_somehow",
        }
        with pytest.raises(ToolFailure) as caught:
            await call(client, "sample_wait_long")
        assert caught.value.code == "SCOPE_MISSING"
        assert "sample:write" in str(caught.value)


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_resource_needs_the_rooms_reading_scope(settings: AuthorizationSettings, era: str) -> None:
    async with listening(build(authorization=settings), room="sample", transport="http") as target:
        async with open_client(target, era, token=SecretStr(token())) as reader:
            assert (await reader.read_resource("sample://facts")).contents
        async with open_client(target, era, token=SecretStr(token(scope="sample:write"))) as writer:
            with pytest.raises(MCPError, match="needs the scope sample:read"):
                await writer.read_resource("sample://facts")


async def test_no_token_can_name_the_local_principal_or_another_clients_subject(
    settings: AuthorizationSettings,
) -> None:
    names: list[str] = []
    async with listening(build(authorization=settings), room="sample", transport="http") as target:
        for client_id, subject in (("local", None), ("a/b", None), ("a", "b"), ("a", "a")):
            bearer = SecretStr(token(client_id=client_id, sub=subject))
            async with open_client(target, token=bearer) as client:
                names.append((await call(client, "sample_echo_arguments", amount="1"))["principal"])
    assert names == ["oauth:local", "oauth:a%2Fb", "oauth:a/b", "oauth:a"]


async def test_two_principals_have_a_rate_each(settings: AuthorizationSettings) -> None:
    server = build(authorization=settings, requests_per_s=0.001, burst=8)
    async with listening(server, room="sample", transport="http") as target:
        async with open_client(target, token=SecretStr(token(sub="a"))) as first:
            results = [await first.call_tool("sample_echo_arguments", {"amount": "1"}) for _ in range(9)]
            assert results[-1].is_error
        async with open_client(target, token=SecretStr(token(sub="b"))) as second:
            await call(second, "sample_echo_arguments", amount="1")


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_without_a_good_token_nothing_is_reached(settings: AuthorizationSettings, era: str) -> None:
    async with listening(build(authorization=settings), room="sample", transport="http") as target:
        for bearer in (None, SecretStr(token(aud="https://elsewhere.example"))):
            with pytest.raises(Unavailable):
                async with open_client(target, era, token=bearer) as client:
                    await client.list_tools()
        async with httpx2.AsyncClient(trust_env=False) as http:
            refused = await http.post(target, json={}, headers={"accept": "application/json"})
            base = target.removesuffix("/mcp")
            metadata = await http.get(f"{base}/.well-known/oauth-protected-resource/sample/mcp")
            health = await http.get(f"{base}/health")
    assert refused.status_code == 401
    assert "resource_metadata=" in refused.headers["www-authenticate"]
    assert metadata.json()["resource"] == RESOURCE
    assert metadata.json()["authorization_servers"] == [ISSUER]
    assert health.json()["ok"] is True


async def test_a_unix_socket_needs_no_token(settings: AuthorizationSettings) -> None:
    way = Way("unix", "auto")
    async with reach(way, lambda: build(authorization=settings, mode=Mode.LIVE), room="sample") as client:
        assert (await call(client, "sample_echo_arguments", amount="1"))["principal"] == "local"


def test_the_section_is_read_from_the_desks_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREKKO_HOME", str(tmp_path))
    monkeypatch.delenv("GREKKO_CONFIG", raising=False)
    assert load_authorization() is None
    (tmp_path / "config.toml").write_text(
        f'[authorization]\nissuer = "{ISSUER}"\njwks_file = "keys.json"\n[authorization.resource_urls]\nrisk = "https://d/r"\n',
        encoding="utf-8",
    )
    found = load_authorization()
    assert found is not None
    assert found.resource_urls == {"risk": "https://d/r"}
