"""What every tool of the desk has in common, checked when it is registered and when it is listed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, cast, get_args, get_origin

from mcp.types import CallToolResult, Tool, ToolAnnotations

from mcp_servers.envelope import DECIMAL_PATTERN, Reply

_TOOL_NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
_SCOPE: Final = re.compile(r"[a-z]+:[a-z]+")
#: Schemas that stand in a tool's output many times; written once under ``$defs`` and referred to.
_SHARED: Final[dict[str, dict[str, object]]] = {
    "Decimal": {"type": "string", "pattern": DECIMAL_PATTERN},
    "DecimalOrNull": {"type": ["string", "null"], "pattern": DECIMAL_PATTERN},
}


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
    """Return a tool whose schemas have no generated titles, refuse arguments they do not name, and repeat little.

    What a reply must look like stays the same to the letter; only the way it is written gets shorter. Arguments keep
    the plain form, because some hosts translate them for a model that knows fewer keywords.
    """
    inputs = {**cast("dict[str, Any]", _without_titles(item.input_schema)), "additionalProperties": False}
    outputs = None if item.output_schema is None else _brief(item.output_schema)
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


def _brief(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an output schema in its shortest form of the same meaning."""
    counts = dict.fromkeys(_SHARED, 0)
    found = cast("dict[str, Any]", _folded(_without_titles(schema), counts, {}))
    often = {name: _SHARED[name] for name, count in counts.items() if count > 1}
    if not often:
        return found
    shared = cast("dict[str, Any]", _folded(found, {}, often))
    return {**shared, "$defs": {**shared.get("$defs", {}), **often}}


def _folded(
    node: object, counts: dict[str, int], often: Mapping[str, dict[str, object]], *, names: bool = False
) -> object:
    """Drop defaults, which say nothing about a reply, write "or null" as a type, and refer to what is in ``often``.

    Args:
        node: a schema, or a part of one.
        counts: how often each shared schema was met; added to.
        often: shared schemas to refer to.
        names: the node's keys are names of properties, not keywords.
    """
    if isinstance(node, list):
        return [_folded(entry, counts, often) for entry in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    found = {
        key: _folded(value, counts, often, names=not names and key in ("properties", "$defs"))
        for key, value in cast("dict[str, object]", node).items()
        if names or key != "default"
    }
    if names:
        return found
    found = _nullable(found)
    for name, schema in _SHARED.items():
        if schema.items() <= found.items():
            counts[name] = counts.get(name, 0) + 1
            if name in often:
                return {"$ref": f"#/$defs/{name}", **{key: found[key] for key in found if key not in schema}}
    return found


def _nullable(schema: dict[str, object]) -> dict[str, object]:
    """Return ``anyOf`` of one plain type and null as a list of types; keywords of the type do not concern null."""
    choices = schema.get("anyOf")
    if not isinstance(choices, list) or len(cast("list[object]", choices)) != 2:
        return schema
    kind, null = cast("list[dict[str, object]]", choices)
    if null != {"type": "null"} or not isinstance(kind.get("type"), str) or kind.keys() & {"enum", "const"}:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**kind, "type": [kind["type"], "null"], **rest}
