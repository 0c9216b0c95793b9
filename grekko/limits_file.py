"""Writing the document of limits: one value at a time, comments kept, never half a file."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, cast

from mcp_servers.risk.limits import DEFAULTS, RiskLimits
from trading.domain.errors import ConfigurationError, InvalidValue

Table = MutableMapping[str, Any]


def minimal(limits: RiskLimits) -> dict[str, Any]:
    """Return what a person would have to write for these limits: what differs from the defaults."""
    return limits.model_dump(mode="json", exclude_defaults=True, exclude_none=True)


def changed_text(text: str, name: str, base: RiskLimits, assignments: Sequence[str]) -> str:
    """Return the document with values changed.

    Args:
        text: what the file says; empty for a new one, which begins with ``base``.
        name: the file's; ``.json`` or TOML.
        base: the limits that a new file starts from.
        assignments: ``PATH=VALUE``, VALUE as in TOML; a bare word is text, ``none`` removes the value.

    Raises:
        InvalidValue: (ASSIGNMENT) no PATH=VALUE, or a path through something that is no table.
    """
    if name.endswith(".json"):
        root = cast("Table", json.loads(text) if text else minimal(base))
        _assign_all(root, assignments, dict)
        return json.dumps(root, indent=2, ensure_ascii=False) + "\n"
    try:
        import tomlkit
    except ModuleNotFoundError:  # it keeps comments, and is no part of a bare installation
        root = cast("Table", tomllib.loads(text) if text else minimal(base))
        _assign_all(root, assignments, dict)
        return to_toml(root)
    document = tomlkit.parse(text or to_toml(minimal(base)))
    _assign_all(cast("Table", document), assignments, lambda: cast("Table", tomlkit.table()))
    return tomlkit.dumps(document)


def _assign_all(root: Table, assignments: Sequence[str], table: Callable[[], Table]) -> None:
    for assignment in assignments:
        path, sign, value = assignment.partition("=")
        keys = path.strip().split(".")
        if not sign or not all(keys):
            raise InvalidValue(
                f"{assignment[:80]!r} is no PATH=VALUE",
                code="ASSIGNMENT",
                suggestion="for example daily_loss_max=1500 or symbols.BTC/USDT.order_notional_max=20000",
            )
        if keys[0] == "symbols" and "symbols" not in root:  # the default symbol is meant to stay
            root["symbols"] = table()
            for symbol in DEFAULTS.symbols:
                root["symbols"][str(symbol)] = table()
        _assign(root, keys, read_value(value.strip()), table)


def _assign(root: Table, keys: Sequence[str], value: object, table: Callable[[], Table]) -> None:
    for key in keys[:-1]:
        if key not in root:
            if value is None:
                return
            root[key] = table()
        part: object = root[key]
        if not isinstance(part, MutableMapping):
            raise InvalidValue(f"{key} is a value and has no parts", code="ASSIGNMENT")
        root = cast("Table", part)
    if value is None:
        root.pop(keys[-1], None)
    else:
        root[keys[-1]] = value


def read_value(text: str) -> object:
    """Return the value that a person typed; a number with a fraction stays text, as amounts are written."""
    if text == "none":
        return None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return cast("object", value) if isinstance(value, (int, str, list)) else text


def to_toml(table: Table, prefix: str = "") -> str:
    """Return TOML text of plain data: values first, then tables."""
    lines = [f"{_key(name)} = {_value(value)}" for name, value in table.items() if not isinstance(value, dict)]
    text = "".join(f"{line}\n" for line in lines)
    for name, value in table.items():
        if isinstance(value, dict):
            path = f"{prefix}{_key(name)}"
            inner = to_toml(cast("Table", value), f"{path}.")
            header = "" if value and all(isinstance(each, dict) for each in cast("Table", value).values()) else path
            text += (f"\n[{header}]\n" if header else "") + inner
    return text


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _value(name)


def _value(value: object) -> str:
    # Strings, integers, booleans and lists are spelt as in JSON, but for one character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once, 0600: whoever reads sees the old document or the new one.

    Raises:
        ConfigurationError: (LIMITS_UNREADABLE) it is a symbolic link, which a rename would replace.
    """
    if path.is_symlink():
        raise ConfigurationError(f"{path} is a link; edit what it points to", code="LIMITS_UNREADABLE")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
