"""The command line. Each command is a few lines; what it does lives in the module it names."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from grekko import risk_commands
from trading.adapters.config import DeskSettings, load_settings
from trading.domain.errors import ConfigurationError, TradingError
from trading.domain.proposals import Mode

T = TypeVar("T")

app = typer.Typer(
    name="grekko",
    help="A trading desk for LLM agents where a separate risk server signs or denies every order.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
audit_app = typer.Typer(help="Check what the desk has recorded.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
limits_app = typer.Typer(help="The limits that every order is judged by.", no_args_is_help=True)
app.add_typer(limits_app, name="limits")
app.add_typer(risk_commands.app, name="risk")
approvals_app = typer.Typer(help="Answer orders that wait for you.", no_args_is_help=True)
app.add_typer(approvals_app, name="approvals")

console = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True)


def main() -> None:
    """Run a command; an anticipated error is one sentence and exit status 1, or 78 for configuration."""
    try:
        app()
    except TradingError as error:
        errors.print(f"[red]{error.code}[/] {escape(str(error))}")
        if error.suggestion:
            errors.print(escape(error.suggestion))
        elif error.allowed:
            errors.print(escape(f"use one of: {', '.join(error.allowed)}"))
        sys.exit(78 if isinstance(error, ConfigurationError) else 1)  # 78: sysexits.h EX_CONFIG
    except OSError as error:  # a full disk, a path that cannot be written: the user's to mend, a traceback is no help
        errors.print(f"[red]FILE_ERROR[/] {escape(str(error))}")
        errors.print("check that the path exists, that this user may write it, and that the disk is not full")
        sys.exit(1)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except asyncio.CancelledError:  # a request to end that came early
        raise KeyboardInterrupt from None


def _exit(good: bool) -> NoReturn:
    raise typer.Exit(0 if good else 1)


def _settings(mode: Mode | None = None) -> DeskSettings:
    if mode is not None:
        os.environ["GREKKO_MODE"] = mode  # inherited by the rooms
    return load_settings()


@app.command()
def init() -> None:
    """Create the desk's home, keys and configuration, and its schemas in DATABASE_URL; what exists is kept."""
    from grekko.initialization import initialize, provision

    settings = _settings()
    done = initialize(settings)
    _run(provision(settings))
    console.print(f"desk home: {settings.home}")
    for name in done.created:
        console.print(f"  made {name}")
    if done.kept:
        console.print(f"  kept {len(done.kept)} files that were there")


@app.command()
def run(
    mode: Annotated[Mode | None, typer.Option(help="paper, testnet or live")] = None,
    market: Annotated[
        str | None, typer.Option(help="replay: a recorded real feed; live: public data of the venues")
    ] = None,
    speed: Annotated[float | None, typer.Option(min=0.1, max=100, help="of the replay; 1 is real time")] = None,
    seconds: Annotated[float | None, typer.Option("--for", min=1, help="stop after so many seconds")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of everything random")] = 1,
    loop: Annotated[bool, typer.Option("--loop", help="start the recording again when it ends")] = False,
    report: Annotated[Path | None, typer.Option(help="write a JSON report there")] = None,
) -> None:
    """Run the desk: agents propose and vote, risk signs or denies, execution trades. Ctrl-C stops it in order.

    What is not given here is taken from the [market] section.
    """
    from grekko.run import RunOptions, run_desk
    from mcp_servers.market.settings import load_market_settings

    if market not in (None, "replay", "live"):
        raise ConfigurationError("--market must be replay or live", allowed=("replay", "live"))
    if report is not None and (report.is_dir() or not os.access(report.parent, os.W_OK)):
        raise ConfigurationError(
            f"the report cannot be written to {report}", suggestion="name a file in a folder that exists"
        )
    settings, configured = _settings(mode), load_market_settings()
    options = RunOptions(
        market=market or configured.source,
        speed=configured.speed if speed is None else speed,
        seconds=seconds,
        seed=seed,
        loop=loop or configured.loop,
        report=report,
    )
    _exit(_run(run_desk(settings, options, console)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(room: str, context: typer.Context) -> None:
    """Run one server in the foreground: market, risk, execution, wallet or coordinator (stdio unless --http)."""
    from grekko.initialization import initialize
    from grekko.processes import ROOM_MODULES

    if room not in ROOM_MODULES:
        raise ConfigurationError(f"no such server: {room}", allowed=tuple(ROOM_MODULES))
    initialize(_settings())
    os.execv(sys.executable, [sys.executable, "-m", ROOM_MODULES[room], *context.args])  # noqa: S606  our own module


@app.command()
def status() -> None:
    """Show whether the desk runs, what may be traded, and what is open."""
    from grekko.status import show_status

    _exit(_run(show_status(_settings(), console)))


_Scope = Annotated[str, typer.Option(help="desk, agent:NAME, symbol:BASE/QUOTE or account:ID")]


@app.command()
def halt(
    reason: Annotated[str, typer.Option(help="kept in the audit log")] = "halted by hand", scope: _Scope = "desk"
) -> None:
    """Stop new risk at once: trips the breaker. Exits and cancels stay possible."""
    from grekko.control import halt_desk

    console.print(_run(halt_desk(_settings(), reason, scope)))


@app.command()
def resume(reason: Annotated[str, typer.Option(help="kept in the audit log")], scope: _Scope = "desk") -> None:
    """Allow trading again after a halt; signed with the operator's key. Each scope is resumed by its own name."""
    from grekko.control import resume_desk

    console.print(_run(resume_desk(_settings(), reason, scope)))


@app.command()
def orders(limit: Annotated[int, typer.Option(min=1, max=1000)] = 20) -> None:
    """List the newest orders with their state, fills and reason."""
    from grekko.status import show_orders

    _run(show_orders(_settings(), console, limit=limit))


@app.command()
def positions() -> None:
    """Show positions, balances, fees and realized profit and loss, from the ledger."""
    from grekko.status import show_positions

    _run(show_positions(_settings(), console))


@approvals_app.command("list")
def approvals_list(every: Annotated[bool, typer.Option("--all", help="also those that are closed")] = False) -> None:
    """List the orders that wait for your word, oldest first."""
    from grekko.approvals import show_waiting

    _run(show_waiting(_settings(), console, every=every))


@approvals_app.command("show")
def approvals_show(pending_id: str) -> None:
    """Show one order with what it costs, every rule's headroom, who asked and why."""
    from grekko.approvals import show_one

    _run(show_one(_settings(), console, pending_id))


@approvals_app.command("approve")
def approvals_approve(
    pending_id: str,
    reason: Annotated[str, typer.Option(help="kept in the audit log")],
    override: Annotated[list[str] | None, typer.Option(help="a rule that may fail this once; repeatable")] = None,
) -> None:
    """Let risk judge the order again; if every rule passes now it is signed and sent at once."""
    from grekko.approvals import rules_of
    from grekko.control import answer_waiting

    overrides = rules_of(override or [])
    work = answer_waiting(_settings(), pending_id, approve=True, reason=reason, overrides=overrides)
    console.print(_run(work), markup=False)


@approvals_app.command("refuse")
def approvals_refuse(pending_id: str, reason: Annotated[str, typer.Option(help="kept in the audit log")]) -> None:
    """Refuse an order that waits for your word."""
    from grekko.control import answer_waiting

    console.print(_run(answer_waiting(_settings(), pending_id, approve=False, reason=reason)), markup=False)


@audit_app.command("verify")
def audit_verify() -> None:
    """Check chains, checkpoints, witnesses, every signature and the venue's book; exit 0 only if all hold."""
    from grekko.audit import audit_desk
    from grekko.run import show_verdict

    audit = _run(audit_desk(_settings()))
    show_verdict(audit, console)
    _exit(audit.kept)


@limits_app.command("show")
def limits_show(
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    origin: Annotated[bool, typer.Option("--origin", help="say which values the document chose")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON Schema of the document instead")] = False,
) -> None:
    """Show the limits in force, and whether the document says something that waits for a signature."""
    from grekko.limits import show_limits, show_schema

    if schema:
        show_schema(console)
    else:
        _run(show_limits(_settings(), console, as_json=as_json, origin=origin))


@limits_app.command("diff")
def limits_diff(file: Annotated[Path | None, typer.Argument(help="instead of the desk's document")] = None) -> None:
    """Compare a document with what is in force; exit 1 when it needs the operator's signature."""
    from grekko.limits import diff_limits

    _exit(_run(diff_limits(_settings(), console, file)))


@limits_app.command("set")
def limits_set(assignments: Annotated[list[str], typer.Argument(metavar="PATH=VALUE...")]) -> None:
    """Change values of limits.toml, for example daily_loss_max=1500; `none` removes one.

    What only tightens takes effect by itself; anything else waits for `grekko limits sign`.
    """
    from grekko.limits import set_limits

    _run(set_limits(_settings(), console, assignments))


@limits_app.command("sign")
def limits_sign(
    reason: Annotated[str, typer.Option(help="kept in the audit log")],
    file: Annotated[Path | None, typer.Argument(help="becomes the desk's document")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Put a looser document in force: shows the difference, asks, and signs with the operator's key."""
    from grekko.limits import sign_limits

    def agree() -> bool:
        return yes or typer.confirm("Sign these limits as the operator?", default=False)

    _exit(_run(sign_limits(_settings(), console, file, reason, agree)))


@limits_app.command("history")
def limits_history() -> None:
    """List every version of the limits: its digest, when it came into force, and by whom."""
    from grekko.limits import show_history

    _run(show_history(_settings(), console))


@app.command()
def explain(identifier: str) -> None:
    """Tell the story of a proposal, decision, approval or order on one page, with every signature checked again."""
    from grekko.explain import page, tell
    from grekko.ledgers import open_ledgers

    async def story() -> list[str]:
        settings = _settings()
        async with open_ledgers(settings) as ledgers:
            found = await tell(settings.desk_home, ledgers, identifier)
        return page(found)

    for line in _run(story()):
        console.print(line, markup=False, highlight=False)


@app.command()
def doctor() -> None:
    """Start every server in a scratch home and shake hands over real MCP; exit 0 only if all answer."""
    from grekko.doctor import examine

    _exit(_run(examine(console)))
