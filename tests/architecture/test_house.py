"""The house rules that no other tool checks."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("mcp_servers/market", "mcp_servers/risk", "mcp_servers/execution", "mcp_servers/wallet", "coordinator")
STANDARD_FILES = ("__main__.py", "settings.py", "bootstrap.py", "server.py", "schemas.py", "service.py")
LONGEST_FILE = 420  # lines; 300 is the aim


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def sources() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests"]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_the_same_files(room: str) -> None:
    folder = ROOT / room
    missing = [
        name
        for name in STANDARD_FILES
        if not (folder / name).is_file() and not (folder / name.removesuffix(".py") / "__init__.py").is_file()
    ]
    assert missing == []


def test_no_file_is_longer_than_a_person_can_hold() -> None:
    too_long = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if (lines := path.read_text(encoding="utf-8").count("\n")) > LONGEST_FILE
    }
    assert too_long == {}


def test_the_domain_has_no_float_and_reads_no_clock() -> None:
    found: list[str] = []
    for path in (ROOT / "trading" / "domain").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_float = isinstance(node, ast.Constant) and isinstance(node.value, float)
            names_float = isinstance(node, ast.Name) and node.id == "float"
            imports = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if is_float or names_float or {"time", "random", "os", "asyncio"} & set(imports):
                found.append(f"{path.name}:{getattr(node, 'lineno', 0)}")
    assert found == []


def test_no_unit_of_work_is_left_for_later() -> None:
    unfinished = re.compile(r"\b(TODO|FIXME|XXX)\b|NotImplementedError")
    assert [str(p.relative_to(ROOT)) for p in sources() if unfinished.search(p.read_text(encoding="utf-8"))] == []


def test_the_lock_file_names_no_address() -> None:
    assert re.search(r"https?://", (ROOT / "requirements.lock").read_text(encoding="utf-8")) is None
