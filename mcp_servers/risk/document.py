"""The limits as a document: ``limits.toml`` (or ``.json``) in the desk's home, else ``[risk.limits]`` of the config.

Rules kept here:

- One document: a file and a section that say different things are an error, never a mixture.
- Unknown keys, floats and values of another kind are refused with the path of the field and the nearest legal value.
- A file that says nothing is refused: it is more likely half written than meant.
"""

from __future__ import annotations

import hashlib
import json
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, cast, get_args

from pydantic import ValidationError

from trading.adapters.config import SectionModel
from trading.domain.errors import ConfigurationError, InvalidValue

from .limits import RiskLimits, document_of

NAMES: Final = ("limits.toml", "limits.json")
_BYTES_MAX: Final = 256 * 1024
_PROBLEMS_SHOWN: Final = 3
_INT_SHOWN: Final = 10**18  # of more than some thousand digits Python writes none
#: Where limits are when there is no file.
SECTION: Final = "[risk.limits] of the config file"


@dataclass(frozen=True, slots=True)
class Document:
    """One reading.

    Attributes:
        path: the file it came from; None when it came from the config or nobody said anything.
    """

    limits: RiskLimits
    path: Path | None

    @property
    def origin(self) -> str:
        """Where a person finds it."""
        return SECTION if self.path is None else self.path.name


@dataclass(frozen=True, slots=True)
class Configured:
    """What the config says of limits.

    Attributes:
        limits: of the section; None when the section has none.
        file: another file's name or path, relative to the desk's home.
    """

    limits: RiskLimits | None
    file: Path | None


class LimitsSource:
    """Reads the document, wherever it is.

    Args:
        home: the desk's directory.
        config_file: watched together with the file, since the section may change too.
        configured: reads the config's part.
        check: refuses limits that cannot work on this desk; raises ``ConfigurationError``.
    """

    def __init__(
        self,
        home: Path,
        config_file: Path,
        configured: Callable[[], Configured],
        check: Callable[[RiskLimits], None] = lambda _limits: None,
    ) -> None:
        self.home = home
        self._config_file = config_file
        self._configured = configured
        self.check = check

    def path(self) -> Path | None:
        """Return the file that holds the document, None when the config does.

        Raises:
            ConfigurationError: two files, or the one that was named is missing.
        """
        return self._path(self._configured())

    def in_config(self) -> bool:
        """Return whether the config has a section of limits; raises ``ConfigurationError`` when it cannot be read."""
        return self._configured().limits is not None

    def read(self) -> Document:
        """Return the document.

        Raises:
            ConfigurationError: it is not one; the message names the field.
        """
        configured = self._configured()
        path = self._path(configured)
        if path is None:
            document = Document(configured.limits or RiskLimits(), None)
        else:
            document = Document(parse(*_data(path)), path)
            if configured.limits is not None and configured.limits != document.limits:
                raise ConfigurationError(
                    f"{path.name} and {SECTION} say different things",
                    code="LIMITS_TWICE",
                    suggestion=f"remove [risk.limits] from {self._config_file.name}; {path.name} is the document",
                )
        self.check(document.limits)
        return document

    def fingerprint(self) -> str:
        """Return a digest of every file that the document may come from; cheap, and never raises for a bad one."""
        found = hashlib.sha256()
        named = self._named()
        for path in dict.fromkeys((*(self.home / name for name in NAMES), self._config_file, *named)):
            try:
                content = _bytes(path)
            except (OSError, ConfigurationError) as error:
                content = type(error).__name__.encode()
            found.update(b"%d:%s" % (len(content), content))
        return found.hexdigest()

    def _named(self) -> tuple[Path, ...]:
        try:
            file = self._configured().file
        except ConfigurationError:
            return ()
        return () if file is None else (self.home / file,)

    def _path(self, configured: Configured) -> Path | None:
        if configured.file is not None:
            path = self.home / configured.file
            if not path.exists():
                raise ConfigurationError(f"limits_file {path} does not exist", code="LIMITS_FILE_MISSING")
            return path
        found = [path for name in NAMES if (path := self.home / name).exists()]
        if len(found) > 1:
            raise ConfigurationError("there is a limits.toml and a limits.json; keep one", code="LIMITS_TWICE")
        return found[0] if found else None


def read_file(path: Path) -> RiskLimits:
    """Return the limits of one file.

    Raises:
        ConfigurationError: LIMITS_UNREADABLE, LIMITS_EMPTY or LIMITS_INVALID.
    """
    return parse(*_data(path))


def read_data(path: Path) -> dict[str, Any]:
    """Return what a file says, unchecked; raises as :func:`read_file` does."""
    return _data(path)[0]


def parse(data: Mapping[str, Any], name: str) -> RiskLimits:
    """Return the limits that parsed data spells.

    Args:
        data: the whole document.
        name: where it came from, for the message.

    Raises:
        ConfigurationError: LIMITS_INVALID, with the path of each wrong field and the nearest legal value.
    """
    try:
        limits = RiskLimits.model_validate(data)
        document_of(limits)  # what cannot be written down, a number beyond 64 bits for one, can never be in force
    except ValidationError as error:
        raise ConfigurationError(f"{name}: {explain(error)}", code="LIMITS_INVALID") from error
    except InvalidValue as error:  # a symbol that is none
        raise ConfigurationError(f"{name}: {error}", code="LIMITS_INVALID") from error
    return limits


def parse_stored(text: str) -> RiskLimits:
    """Return limits as the ledger holds them; keys that a later release no longer knows are passed over.

    Raises:
        ConfigurationError: LIMITS_INVALID.
    """
    data = cast("dict[str, Any]", json.loads(text))
    try:
        return RiskLimits.model_validate(data)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            if problem["type"] == "extra_forbidden":
                _forget(data, problem["loc"])
    return parse(data, "the limits in risk's ledger")


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RiskLimits.model_json_schema(),
        "title": "Limits of a Grekko desk",
    }


def explain(error: ValidationError) -> str:
    """Return what is wrong: path, value and the nearest legal value of each field, the first three."""
    problems = error.errors(include_url=False)
    shown = [_problem(cast("dict[str, Any]", problem)) for problem in problems[:_PROBLEMS_SHOWN]]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _problem(problem: dict[str, Any]) -> str:
    loc = [str(part) for part in problem["loc"] if part != "[key]"]
    path, context = ".".join(loc) or "document", cast("dict[str, Any]", problem.get("ctx") or {})
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(loc[-1], _fields_at(loc[:-1]), n=1)
        return f"{path}: no such limit" + (f"; did you mean {near[0]}?" if near else "")
    value = problem.get("input")
    bounds = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    near = [f"{word} {context[name]}" for name, word in bounds.items() if name in context]
    message = f"must be {near[0]}" if near else str(problem["msg"]).removeprefix("Value error, ")
    is_short = isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < _INT_SHOWN)
    given = f"{value!r} "[:60] if is_short else ""
    return f"{path}: {given}{message}"


def _fields_at(loc: list[str]) -> list[str]:
    """Return the names that are known at a path."""
    model: type[SectionModel] = RiskLimits
    for part in loc:
        if part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: object) -> type[SectionModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, SectionModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)


def _forget(data: dict[str, Any], loc: tuple[int | str, ...]) -> None:
    for part in loc[:-1]:
        data = data[str(part)]
    data.pop(str(loc[-1]), None)


def _data(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = _bytes(path).decode()
        loose = stat.S_IMODE(path.stat().st_mode) & 0o022
        data: object = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path} does not exist", code="LIMITS_FILE_MISSING") from error
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path.name} cannot be read: {error}", code="LIMITS_UNREADABLE") from error
    if loose:
        raise ConfigurationError(
            f"{path.name} may be written by others", code="LOOSE_PERMISSIONS", suggestion=f"chmod go-w {path}"
        )
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path.name} is no table of limits", code="LIMITS_UNREADABLE")
    if not data:
        raise ConfigurationError(
            f"{path.name} says nothing", code="LIMITS_EMPTY", suggestion="write at least one limit, or remove the file"
        )
    return cast("dict[str, Any]", data), path.name


def _bytes(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _BYTES_MAX:
        raise ConfigurationError(f"{path.name} is no file of at most {_BYTES_MAX} bytes", code="LIMITS_UNREADABLE")
    return path.read_bytes()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found
