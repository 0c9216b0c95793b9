"""The output schemas that a client sees are short, and refuse exactly what the long ones refuse."""

from __future__ import annotations

from typing import Any, Literal

import jsonschema
import pytest
from mcp.types import Tool
from pydantic import Field

from mcp_servers.envelope import DecimalText, Reply, Row
from mcp_servers.tool_conventions import lean


class Choice(Row):
    """Has a field for each form that is written shorter."""

    price: DecimalText
    low: DecimalText | None
    high: DecimalText | None = None
    count: int | None
    kind: Literal["a", "b"] | None
    default: str | None = None
    by: dict[str, DecimalText] = Field(description="by agent")
    noted: DecimalText = Field(description="quote")
    inner: Choice | None = None


GOOD: dict[str, Any] = {
    "price": "1.5",
    "low": None,
    "high": "2",
    "count": 1,
    "kind": "a",
    "default": None,
    "by": {"x": "1"},
    "noted": "3",
    "inner": None,
}


def both() -> tuple[dict[str, Any], dict[str, Any]]:
    long = Reply[Choice].model_json_schema()
    short = lean(Tool(name="x", input_schema={"type": "object"}, output_schema=long)).output_schema
    assert short is not None
    return long, short


def accepts(schema: dict[str, Any], choice: dict[str, Any]) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid({"ok": True, "data": choice, "meta": {"truncated": False}})


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("field", sorted(GOOD))
@pytest.mark.parametrize(
    "value", ["1.5", "1e5", "a", "c", None, 1, 1.5, {}, {"x": "1"}, {"x": None}, [], True, "ABSENT"]
)
def test_short_schema_decides_as_the_long_one(field: str, value: object, nested: bool) -> None:
    changed = {**GOOD, field: value}
    if value == "ABSENT":
        del changed[field]
    choice = {**GOOD, "inner": changed} if nested else changed
    long, short = both()
    assert accepts(long, GOOD)
    assert accepts(short, choice) == accepts(long, choice)


def test_short_schema_writes_a_decimal_once_and_keeps_names_and_descriptions() -> None:
    long, short = both()
    assert str(short).count("pattern") == 2  # a decimal, and a decimal or null
    assert str(long).count("pattern") == 5
    found = short["$defs"]["Choice"]["properties"]
    assert list(found) == list(GOOD)
    assert found["noted"] == {"$ref": "#/$defs/Decimal", "description": "quote"}
    assert found["default"] == {"type": ["string", "null"]}


def test_arguments_keep_the_form_that_every_host_understands() -> None:
    plain = {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}}}
    shown = lean(Tool(name="x", input_schema=plain)).input_schema
    assert shown == {**plain, "additionalProperties": False}
