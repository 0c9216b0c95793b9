"""How a room's process runs: standard input and output, TCP, or a unix socket, until it is told to stop.

Rules kept here:

- Standard output carries the protocol alone; every log line goes to standard error.
- Host and Origin are always checked, with explicit lists, so that a web page cannot reach a server on this machine.
- A unix socket is 0600 from the moment it exists, and a leftover is removed only when nobody answers on it.
- SIGTERM and SIGINT end the room's lifespan (leases released, ledgers closed) before the process exits with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import anyio
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from mcp_servers.authorization import http_authorization, is_loopback
from mcp_servers.clients import only_leaf
from mcp_servers.desk_server import DeskServer
from trading.domain.errors import ConfigurationError, TradingError

#: Seconds that requests may take to end after the stop signal.
GRACE_S: Final = 2
_EXIT_CONFIGURATION: Final = 78  # sysexits.h EX_CONFIG

log = logging.getLogger("grekko.serving")


def serve(build: Callable[[], DeskServer[Any]], argv: Sequence[str], name: str) -> int:
    """Run a room until its input ends or it is told to stop; the whole of a room's ``__main__``.

    Args:
        build: reads the settings and returns the room's server. Must not connect to anything: the lifespan does.
        argv: command line without the program's name: nothing for standard input, ``--http HOST:PORT`` or
            ``--socket PATH``.
        name: the room.

    Returns:
        Exit status: 0 after a clean stop, 78 when the configuration refuses to start.
    """
    options = _parse(argv, name)
    _log_to_stderr(options.log_level)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            server = build()
            settle_collector()
            runner.run(_serve(server, options, name))
    except Exception as error:  # noqa: BLE001 - the process's boundary: say why and stop
        return _report(error, name)
    return 0


def _report(error: BaseException, name: str) -> int:
    """Log why a room ended and return the exit status that says so."""
    leaf = only_leaf(error) or error
    if isinstance(leaf, ConfigurationError):
        log.error("%s will not start: %s (%s) %s", name, leaf, leaf.code, leaf.suggestion)
        return _EXIT_CONFIGURATION
    if isinstance(leaf, TradingError):
        log.error("%s stopped: %s (%s) %s", name, leaf, leaf.code, leaf.suggestion)
    else:
        log.error("%s stopped", name, exc_info=leaf)
    return 1


def _parse(argv: Sequence[str], name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"grekko {name}", description=f"The {name} MCP server.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--http", metavar="HOST:PORT", help="streamable HTTP at /mcp instead of standard input")
    where.add_argument("--socket", metavar="PATH", type=Path, help="streamable HTTP on a unix socket (0600)")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser.parse_args(argv)


def _log_to_stderr(level: str) -> None:
    """Configure the root logger before the SDK does, which would install a terminal handler of its own."""
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    for noisy in ("httpx2", "httpcore2", "mcp", "alembic", "ccxt"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # an optional speed-up
        return None
    return uvloop.new_event_loop


def settle_collector() -> None:
    """Keep the cycle collector away from everything that lives as long as the process; call it once, at the start.

    A full collection walks all modules: measured 100 ms, in which nothing is signed, sent or heard. What exists now is
    never walked again, and what comes is collected every 10,000 objects instead of every 700 (an eighth of all
    processor time before).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def _serve(server: DeskServer[Any], options: argparse.Namespace, name: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.http:
        await serve_http(server, options.http, name, stop)
    elif options.socket:
        await serve_socket(server, options.socket, name, stop)
    else:
        await serve_stdio(server, name, stop)


async def serve_stdio(server: DeskServer[Any], name: str, stop: asyncio.Event) -> None:
    """Serve standard input until it ends; end the process when ``stop`` is set or the room fails.

    Standard input is read by a worker thread that nothing can wake, so that returning would wait for the client to
    write or close. Where that matters the process is ended here, after the room's lifespan.
    """
    async with stdio_server() as (read, write):
        # The stop looks like the end of the input. Cancelling the server instead would also cancel every await in
        # the end of the room's lifespan, so that leases and ledgers would be left open.
        feed, inbox = anyio.create_memory_object_stream[Any](0)
        forward = asyncio.create_task(_forward(read, feed))
        watcher = asyncio.create_task(_when(stop, forward.cancel))
        try:
            await server.run_streams(inbox, write)
        except Exception as error:  # noqa: BLE001 - the process's boundary: say why and stop
            _leave(_report(error, name))
        finally:
            watcher.cancel()
            forward.cancel()
        if stop.is_set():
            _leave(0)


def _leave(status: int) -> NoReturn:
    logging.shutdown()
    os._exit(status)


async def _forward(source: Any, feed: Any) -> None:
    async with feed:
        async for message in source:
            await feed.send(message)


async def _when(stop: asyncio.Event, act: Callable[[], object]) -> None:
    await stop.wait()
    act()


def _unheard(_: str) -> None:
    """Do nothing with the address that a listener got."""


async def serve_http(
    server: DeskServer[Any], address: str, name: str, stop: asyncio.Event, ready: Callable[[str], None] = _unheard
) -> None:
    """Serve streamable HTTP on ``HOST:PORT`` until ``stop`` is set.

    Args:
        server: the room.
        address: port 0 takes a free one.
        name: the room's name.
        stop: ends it.
        ready: called with the target for ``open_client`` as soon as connections are taken.

    Raises:
        ConfigurationError: the address is not HOST:PORT or taken, or a token is needed and none can be checked.
    """
    host, port = parse_address(address)
    with _listen_tcp(host, port) as listener:
        port = listener.getsockname()[1]
        checked = http_authorization(server.authorization, room=name, host=host, port=port, mode=server.mode)
        auth, verifier = checked or (None, None)
        app = server.http_app(security=_tcp_security(server, name, host, port), auth=auth, token_verifier=verifier)
        log.info("%s listens on http://%s:%d/mcp (%s)", name, host, port, "tokens" if auth else "local, no tokens")
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/mcp")
        await _run(server, _with_health(app, server, name), listener, stop)


async def serve_socket(
    server: DeskServer[Any], path: Path, name: str, stop: asyncio.Event, ready: Callable[[str], None] = _unheard
) -> None:
    """Serve streamable HTTP on a unix socket until ``stop`` is set; its callers are local principals.

    Args:
        server: the room.
        path: at most about 100 bytes; its directory must be closed to others.
        name: the room's name.
        stop: ends it.
        ready: called with the target for ``open_client`` as soon as connections are taken.

    Raises:
        ConfigurationError: another process listens there, or something that is no socket is in the way.
    """
    with _listen_unix(path) as listener:
        security = TransportSecuritySettings(allowed_hosts=["localhost"], allowed_origins=[])
        log.info("%s listens on %s", name, path)
        ready(f"unix:{path}")
        await _run(server, _with_health(server.http_app(security=security), server, name), listener, stop)


async def _run(server: DeskServer[Any], app: Starlette, listener: socket.socket, stop: asyncio.Event) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves the stop signals to us: uvicorn's own handlers end the process by the signal, not with status 0."""

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            yield

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        proxy_headers=False,
    )
    # It logs the traceback of a room that refuses to start; the refusal itself is reported by serve.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    uvicorn_server = Server(config)
    watcher = asyncio.create_task(_when(stop, lambda: setattr(uvicorn_server, "should_exit", True)))
    try:
        await uvicorn_server.serve(sockets=[listener])
    except SystemExit:
        raise server.startup_failure or ConfigurationError("the room could not start") from None
    finally:
        watcher.cancel()


def _with_health(app: Starlette, server: DeskServer[Any], name: str) -> Starlette:
    """Add ``/health``: whether the process answers, for supervisors. It says nothing that a stranger may not know."""

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"ok": True, "server": name, "mode": server.mode, "pid": os.getpid()})

    app.router.routes.append(Route("/health", health))
    return app


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` (``[::1]:8000`` for IPv6).

    Raises:
        ConfigurationError: it has another form.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigurationError(f"{text[:80]} is not HOST:PORT", suggestion="write 127.0.0.1:8001")
    return host.strip("[]"), int(port)


def _tcp_security(server: DeskServer[Any], name: str, host: str, port: int) -> TransportSecuritySettings:
    from urllib.parse import urlsplit

    names = {f"[{host}]" if ":" in host else host}
    if is_loopback(host):
        names |= {"127.0.0.1", "localhost", "[::1]"}
    hosts = [f"{entry}:{port}" for entry in sorted(names)]
    origins = [f"http://{entry}" for entry in hosts]
    public = server.authorization.resource_urls.get(name) if server.authorization else None
    if public:  # behind a proxy the browser sees this name
        parts = urlsplit(public)
        hosts.append(parts.netloc)
        origins.append(f"{parts.scheme}://{parts.netloc}")
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


@contextlib.contextmanager
def _listen_tcp(host: str, port: int) -> Generator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        listener.listen(128)
        listener.settimeout(0)
        yield listener


@contextlib.contextmanager
def _listen_unix(path: Path) -> Generator[socket.socket]:
    _remove_leftover(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)  # the socket must not be open to others even for a moment
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {path}: {error.strerror}") from error
        finally:
            os.umask(before)
        inode = path.lstat().st_ino
        try:
            listener.listen(128)
            listener.settimeout(0)
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_ino == inode:  # not a successor's
                    path.unlink()


def _remove_leftover(path: Path) -> None:
    """Remove a socket on which nobody answers.

    Raises:
        ConfigurationError: somebody answers, or it is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{path} is in the way and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise ConfigurationError(f"{path} is in use: {error.strerror}") from error
    raise ConfigurationError(f"another process already listens on {path}", code="ALREADY_RUNNING")


def stop_process() -> None:
    """Ask this process to stop as an operator would: a room whose inner work has failed must not look alive."""
    os.kill(os.getpid(), signal.SIGTERM)
