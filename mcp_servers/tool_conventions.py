"""What every tool of the desk has in common, checked when it is registered and when it is listed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, cast, get_args, get_origin

from mcp.types import CallToolResult, Tool, ToolAnnotations

from mcp_servers.envelope import Reply

_TOOL_NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
_SCOPE: Final = re.compile(r"[a-z]+:[a-z]+")


def broken_convention(
    fn: Callable[..., Any], name: str, title: str | None, text: str, hints: ToolAnnotations | None, scope: str
) -> str:
    """Return what is wrong with a tool about to be registered; empty when nothing is."""
    if _TOOL_NAME.fullmatch(name) is None:
        return "name it <room>_<verb>_<object> in snake_case"
    if not title or not text:
        return "give it a title and a docstring"
    if hints is None or None in (
        hints.read_only_hint,
        hints.destructive_hint,
        hints.idempotent_hint,
        hints.open_world_hint,
    ):
        return "set all four hints: read_only, destructive, idempotent, open_world"
    if hints.read_only_hint and hints.destructive_hint:
        return "it cannot be both read-only and destructive"
    if _SCOPE.fullmatch(scope) is None:
        return "give it a scope of the form room:verb"
    if not inspect.iscoroutinefunction(fn):
        return "make it async: a plain function costs a thread hop per call"
    if not _is_reply(inspect.signature(fn, eval_str=True).return_annotation):
        return "return Reply[...] of its own data class, so that it has a real outputSchema"
    return ""


def _is_reply(returned: object) -> bool:
    """Return whether an annotation is ``Reply[...]``, or with pictures ``Annotated[CallToolResult, Reply[...]]``."""
    if get_origin(returned) is Annotated:
        inner, *rest = get_args(returned)  # the SDK checks the data of such a result against what comes second
        return inner is CallToolResult and len(rest) == 1 and _is_reply(rest[0])
    return isinstance(returned, type) and issubclass(returned, Reply)


def app_of(meta: Mapping[str, Any] | None) -> str:
    """Return the address of the page that shows a tool's results; empty when there is none."""
    return str((meta or {}).get("ui", {}).get("resourceUri", ""))


def lean(item: Tool) -> Tool:
    """Return a tool whose schemas have no generated titles and refuse arguments they do not name."""
    inputs = {**cast("dict[str, Any]", _without_titles(item.input_schema)), "additionalProperties": False}
    outputs = None if item.output_schema is None else _without_titles(item.output_schema)
    return item.model_copy(update={"input_schema": inputs, "output_schema": outputs})


def _without_titles(node: object, *, names: bool = False) -> object:
    """Drop ``title`` where it is a schema keyword; a property that is called title stays."""
    if isinstance(node, list):
        return [_without_titles(entry) for entry in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    found = cast("dict[str, object]", node)
    return {
        key: _without_titles(value, names=not names and key in ("properties", "$defs"))
        for key, value in found.items()
        if names or key != "title"
    }
