"""What a user reads when something is wrong: one sentence and what to do, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from grekko.cli import app
from grekko.doctor import configuration
from grekko.processes import ROOM_MODULES, Room, running
from grekko.supervisor import supervise
from trading.adapters.config import DeskHome
from trading.domain.errors import ConfigurationError, Unavailable


def grekko(home: Path | str, *arguments: str, mode: str = "paper") -> tuple[int, str]:
    environment = {**os.environ, "GREKKO_HOME": str(home), "GREKKO_MODE": mode}
    done = subprocess.run(
        [sys.executable, "-m", "grekko", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done.returncode, done.stderr + done.stdout


@pytest.mark.parametrize("mode", ["testnet", "live"])
def test_a_desk_without_a_venue_refuses_at_once(tmp_path: Path, mode: str) -> None:
    status, said = grekko(tmp_path / "home", "run", mode=mode)
    assert status == 78
    assert "MODE_UNSUPPORTED" in said
    assert 'set mode = "paper"' in said


def test_a_report_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    status, said = grekko(tmp_path / "home", "run", "--for", "1", "--report", str(tmp_path / "none" / "report.json"))
    assert status == 78
    assert "name a file in a folder that exists" in said


@pytest.mark.parametrize(
    ("market", "arguments"), [('source = "live"', ()), ("", ("--market", "live"))], ids=["configured", "asked for"]
)
def test_a_live_venue_that_does_not_exist_is_refused_before_the_run(
    tmp_path: Path, market: str, arguments: tuple[str, ...]
) -> None:
    home = DeskHome(tmp_path / "home").ensure()
    home.config_file.write_text(f'[market]\n{market}\nvenues = ["krakne"]\n')
    status, said = grekko(home.path, "run", "--for", "1", *arguments)
    assert status == 78
    assert "UNKNOWN_VENUE" in said
    assert "did you mean kraken?" in said


async def test_doctor_says_what_the_desk_would_trade_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREKKO_HOME", str(tmp_path))
    assert await configuration() == "paper, market: a recording at speed 1"
    live = '[market]\nsource = "live"\nvenues = ["kraken", "binance"]\n'
    (tmp_path / "config.toml").write_text(live + '[venues.kraken]\nrest_url = "http://127.0.0.1:1"\n')
    assert await configuration() == "paper, live market: binance, kraken; at addresses of its own: kraken"
    (tmp_path / "config.toml").write_text(live.replace("kraken", "krakne"))
    with pytest.raises(ConfigurationError):
        await configuration()


def test_a_home_that_cannot_be_made_is_one_sentence() -> None:
    status, said = grekko("/proc/no-such-home", "init")
    assert status == 1
    assert "FILE_ERROR" in said


def test_a_wrong_room_names_the_right_ones(tmp_path: Path) -> None:
    status, said = grekko(tmp_path / "home", "serve", "nowhere")
    assert status == 78
    assert "use one of: market, risk, execution" in said


def test_the_first_page_names_every_command() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    table = readme.partition("## The command line")[2].partition("\n## ")[0]
    commands = typer.main.get_group(app)
    missing = [name for name in commands.commands if f"`{name}" not in table and f"`grekko {name}" not in table]
    assert missing == []


def test_an_empty_desk_says_so(tmp_path: Path) -> None:
    assert grekko(tmp_path / "home", "orders") == (0, "no orders yet\n")
    assert grekko(tmp_path / "home", "positions") == (0, "no positions yet\n")


async def test_a_room_that_refuses_is_not_started_again(tmp_path: Path) -> None:
    home = DeskHome(tmp_path / "home").ensure()
    script = tmp_path / "no_such_room.py"
    script.write_text("import sys\nprint('market will not start: no luck', file=sys.stderr)\nsys.exit(78)\n")
    room = Room("market", "no_such_room", environment={"PYTHONPATH": str(script.parent)})
    with pytest.raises(Unavailable, match="market will not start: no luck") as refused:
        async with supervise(home, [room]):
            pytest.fail("it started")
    assert refused.value.code == "ROOM_REFUSED"


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_a_termination_while_starting_leaves_no_room_behind(tmp_path: Path, background: bool) -> None:
    environment = {**os.environ, "GREKKO_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "grekko", "run"]
    with subprocess.Popen(
        # A shell without job control has its background jobs ignore Ctrl-C.
        ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *command] if background else command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the first line is printed before the rooms are started
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=50)
    assert "Traceback" not in said
    assert process.returncode not in (0, -signal.SIGTERM)
    home = DeskHome(tmp_path / "home")
    assert [room for room in ROOM_MODULES if running(home, room)] == []
