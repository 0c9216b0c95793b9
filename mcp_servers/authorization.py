"""Who may call over HTTP: an OAuth 2.1 resource server that verifies JWTs and maps them to scopes.

Rules kept here:

- Public keys only, by default: EdDSA, ES256, RS256 from a PEM or JWKS file. ``none`` is never accepted; HS256 only with
  a shared secret that was configured on purpose, and then nothing else, so a public key cannot be used as an HMAC key.
- ``aud`` is this server's own resource URL: a token for the market server does not open the execution server.
- ``iss``, ``exp`` and ``sub`` or ``client_id`` must be there; ``nbf`` and ``iat`` are honoured; leeway is bounded.
- Standard input and a unix socket need no token: the file system has already said who may reach them. TCP needs one
  in every mode but paper on a loopback address.
- Why a token was refused is logged for the operator and not told to the caller; the token itself is never logged.

Source: RFC 9068 (JWT access tokens), RFC 8707 (resource indicators), RFC 9728 (protected resource metadata).
"""

from __future__ import annotations

import ipaddress
import json
import logging
from pathlib import Path
from typing import Any, Final, Literal, Self, cast
from urllib.parse import quote

import jwt
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from mcp_servers.calls import LOCAL, Principal
from trading.adapters.config import DeskHome, default_home, load_section, read_config
from trading.domain.errors import ConfigurationError
from trading.domain.proposals import Mode

Algorithm = Literal["EdDSA", "ES256", "RS256"]

_MIN_SECRET: Final = 32  # bytes, RFC 7518 section 3.2
_MAX_TOKEN: Final = 8_192  # characters

log = logging.getLogger("grekko.authorization")


class AuthorizationSettings(BaseModel):
    """The ``[authorization]`` section: whose tokens open this desk's servers.

    Attributes:
        issuer: the authorization server, exactly as its tokens spell ``iss``.
        resource_urls: by room, the URL that tokens name as ``aud``; a room that is missing uses the address it
            listens on.
        algorithms: accepted signatures, of those with public keys.
        public_key_file: PEM with one public key.
        jwks_file: JSON Web Key Set; chosen by ``kid``.
        shared_secret: HS256 instead of public keys, at least 32 bytes. For a desk that mints its own tokens.
        leeway_s: clock difference forgiven, 0 to 120 seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str
    resource_urls: dict[str, str] = Field(default_factory=dict[str, str])
    algorithms: tuple[Algorithm, ...] = ("EdDSA", "ES256", "RS256")
    public_key_file: Path | None = None
    jwks_file: Path | None = None
    shared_secret: SecretStr | None = None
    leeway_s: int = Field(default=30, ge=0, le=120)

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Self:
        given = [self.public_key_file, self.jwks_file, self.shared_secret]
        if sum(source is not None for source in given) != 1:
            raise ValueError("give exactly one of public_key_file, jwks_file and shared_secret")
        if self.shared_secret is not None and len(self.shared_secret.get_secret_value().encode()) < _MIN_SECRET:
            raise ValueError(f"shared_secret must have at least {_MIN_SECRET} bytes")
        return self


def load_authorization() -> AuthorizationSettings | None:
    """Read ``[authorization]`` of the config file; None when there is no such section.

    Raises:
        ConfigurationError: unknown key or illegal value.
    """
    if "authorization" not in read_config(DeskHome(default_home()).config_file):
        return None
    return load_section(AuthorizationSettings, "authorization")


class JwtVerifier(TokenVerifier):
    """Verify access tokens for one resource.

    Args:
        settings: keys, issuer and leeway.
        resource_url: what ``aud`` must contain.

    Raises:
        ConfigurationError: the key file cannot be read or holds no usable key.
    """

    def __init__(self, settings: AuthorizationSettings, *, resource_url: str) -> None:
        self._settings = settings
        self._resource = resource_url
        self._keys = _load_keys(settings)
        self._algorithms = ["HS256"] if settings.shared_secret is not None else list(settings.algorithms)

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return what ``token`` allows, or None when it must be refused."""
        try:
            return self._verify(token)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
            log.info("token refused: %s", type(error).__name__)
            return None

    def _verify(self, token: str) -> AccessToken:
        if len(token) > _MAX_TOKEN:
            raise ValueError("token too long")
        claims = jwt.decode(
            token,
            self._key_for(token),
            algorithms=self._algorithms,
            audience=self._resource,
            issuer=self._settings.issuer,
            leeway=self._settings.leeway_s,
            options={"require": ["exp", "iss", "aud"]},
        )
        client = str(claims.get("client_id") or claims.get("azp") or claims["sub"])
        subject = claims.get("sub")
        return AccessToken(
            token=token,
            client_id=client,
            subject=None if subject is None else str(subject),
            scopes=_scopes_of(claims),
            expires_at=int(claims["exp"]) + self._settings.leeway_s,
            resource=self._resource,
            claims={"iss": claims["iss"]},
        )

    def _key_for(self, token: str) -> Any:
        """Return the key that the token's header names; the only key when the header names none."""
        named = jwt.get_unverified_header(token).get("kid")
        if named is not None and named in self._keys:
            return self._keys[named]
        if len(self._keys) == 1 and (named is None or "" in self._keys):
            return next(iter(self._keys.values()))
        raise KeyError("no such key")


def _load_keys(settings: AuthorizationSettings) -> dict[str, Any]:
    """Return verification keys by ``kid``; the empty name for a key without one."""
    if settings.shared_secret is not None:
        return {"": settings.shared_secret.get_secret_value()}
    path = settings.public_key_file or settings.jwks_file
    assert path is not None  # the settings have exactly one source
    try:
        text = path.read_text(encoding="ascii")
        if settings.public_key_file is not None:
            return {"": _public_pem(text)}
        found = jwt.PyJWKSet.from_dict(json.loads(text)).keys
    except (OSError, ValueError, jwt.PyJWTError) as error:
        raise ConfigurationError(f"{path.name} holds no usable public key: {type(error).__name__}") from error
    keys = {key.key_id or "": key.key for key in found if key.algorithm_name in settings.algorithms}
    if not keys:
        raise ConfigurationError(f"{path.name} holds no key for {', '.join(settings.algorithms)}")
    return keys


def _public_pem(text: str) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return load_pem_public_key(text.encode("ascii"))


def _scopes_of(claims: dict[str, Any]) -> list[str]:
    """Return the scopes of a token: ``scope`` as text (RFC 8693) or ``scp`` as a list; never the wildcard."""
    raw: object = claims.get("scope", claims.get("scp", ""))
    names = raw.split() if isinstance(raw, str) else cast("list[object]", raw) if isinstance(raw, list) else []
    return [name for name in map(str, names) if ":" in name]


def principal_now() -> Principal:
    """Return for whom this task works: the verified token's client, or the local principal where none is needed."""
    token = get_access_token()
    if token is None:
        return LOCAL
    # Quoted and prefixed, so that no client can be named like another's subject, or like the local principal.
    parts = [token.client_id] if token.subject in (None, token.client_id) else [token.client_id, token.subject or ""]
    name = "oauth:" + "/".join(quote(part, safe="@.") for part in parts)
    return Principal(name=name, scopes=frozenset(token.scopes), local=False)


def is_loopback(host: str) -> bool:
    """Return whether ``host`` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def http_authorization(
    settings: AuthorizationSettings | None, *, room: str, host: str, port: int, mode: Mode
) -> tuple[AuthSettings, JwtVerifier] | None:
    """Return how a TCP listener checks its callers; None when it may go without.

    Args:
        settings: the desk's ``[authorization]``, if there is one; when there is, it is always used.
        room: picks the resource URL.
        host, port: where it listens.
        mode: the desk's mode.

    Raises:
        ConfigurationError: a token is needed and none can be checked.
    """
    if settings is None:
        if mode is Mode.PAPER and is_loopback(host):
            return None
        raise ConfigurationError(
            f"{room} will not listen on {host} in mode {mode} without checking tokens",
            code="AUTHORIZATION_REQUIRED",
            suggestion="configure [authorization], or use --socket or standard input",
        )
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    resource = settings.resource_urls.get(room, f"http://{bracketed}:{port}/mcp")
    auth = AuthSettings.model_validate(
        {"issuer_url": settings.issuer, "resource_server_url": resource, "validate_token_resource": True}
    )
    return auth, JwtVerifier(settings, resource_url=resource)
