"""The server as a process of its own: event loop, signals, privileges, systemd."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from smtpd.certificates import TlsError, make_developer_certificate
from smtpd.config import Config, ConfigError, load
from smtpd.identity import acting_as, become, find_identity, name_of_user
from smtpd.leaving import leave_in_time
from smtpd.log import Log
from smtpd.plugins import PluginError, describe
from smtpd.policy.startup import PolicyError
from smtpd.server import Server
from smtpd.signals import EarlySignals
from smtpd.sockets import notify
from smtpd.users import DEVELOPER_LOGIN, UserFileError, make_developer_user

_OPERATORS_TURN = (OSError, PluginError, PolicyError, TlsError, UserFileError)
"""Not a mistake of ours: one line says what it is, a traceback would only hide it."""
_OTHER_FILES = 500  # descriptors for what is no connection: agents, DNS, log, state
_MANY = 30_000  # connections to have descriptors for when their number has no limit


def run(config: Config, *, path: Path | None, environ: Mapping[str, str], signals: EarlySignals) -> int:
    """Run until SIGTERM or SIGINT; the exit status. SIGHUP reads `path` again, SIGUSR1 opens the log again."""
    try:
        log = _open_log(config)
    except OSError as error:
        print(f"smtpd: the log cannot be opened: {error}", file=sys.stderr)
        return 1
    handler = log.capture_stdlib()
    _ask_for_descriptors(config, log)
    try:
        if path is None:
            _prepare_developer_setup(config, log)
        factory, server = _loop_factory(config), Server(config, log=log, environ=environ)
        signals.hold()
    except Exception as error:
        report_failed_start(log, error)
        return 1
    else:
        with asyncio.Runner(loop_factory=factory) as runner:
            status = runner.run(_serve(server, path, environ, signals))
            leave_in_time(status, partial(_tell_what_keeps_us, log, handler))
            return status
    finally:
        logging.getLogger().removeHandler(handler)
        log.close()


def _tell_what_keeps_us(log: Log, handler: logging.Handler, places: list[str]) -> None:
    """In the log as long as that is open; the interpreter's own end comes after it."""
    if handler in logging.getLogger().handlers:
        log.error("left-running", threads=places)
    else:
        print("smtpd: the end does not wait for", "; ".join(places), file=sys.stderr, flush=True)


def report_failed_start(log: Log, error: BaseException) -> None:
    """Say in the log why the server cannot start."""
    exception = None if isinstance(error, _OPERATORS_TURN) else error
    log.error("cannot-start", run_as=name_of_user(), problem=describe(error), exception=exception)


async def _serve(server: Server, path: Path | None, environ: Mapping[str, str], signals: EarlySignals) -> int:
    loop = asyncio.get_running_loop()
    starting, reloads = loop.create_task(_start(server)), _Reloads(server, path, environ)
    actions: dict[int, Callable[[], None]] = {
        signal.SIGTERM: partial(_close, server, environ, starting, reloads),
        signal.SIGINT: partial(_close, server, environ, starting, reloads),
        signal.SIGHUP: reloads.ask,
        signal.SIGUSR1: server.log.reopen,
    }
    for number, action in actions.items():
        loop.add_signal_handler(number, action)
    for number in tuple(signals.seen):
        actions[number]()
    try:
        return await _until_closed(server, starting, reloads, environ)
    finally:
        for number in actions:  # one after the other: what comes in between ends the process on the spot
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        signals.is_over = True


async def _until_closed(
    server: Server, starting: asyncio.Task[None], reloads: _Reloads, environ: Mapping[str, str]
) -> int:
    await asyncio.wait([starting])
    if starting.cancelled():
        server.log.info("stopped")
        return 0
    if error := starting.exception():
        report_failed_start(server.log, error)
        await server.stop()
        return 0 if starting.cancelling() else 1
    _set_aside_what_lasts()
    notify(environ, "READY=1")
    reloads.begin()
    await server.serve()
    return 0


async def _start(server: Server) -> None:
    server.bind()
    become(find_identity(server.config.user, server.config.group))
    await server.start()


def _close(server: Server, environ: Mapping[str, str], starting: asyncio.Task[None], reloads: _Reloads) -> None:
    notify(environ, "STOPPING=1")
    server.close()  # so that it ends also when it has just started
    if not starting.cancelling():  # a second time would break off the stopping
        starting.cancel()
    reloads.end()


class _Reloads:
    """Reads the configuration again when asked to: as soon as the server has started, and one at a time.

    Whoever asks while one is under way has another one read afterwards what is there then, so that nothing older
    comes last; who asks meanwhile is content with that one, too.
    """

    def __init__(self, server: Server, path: Path | None, environ: Mapping[str, str]) -> None:
        self._server = server
        self._path = path
        self._environ = environ
        self._is_asked = False
        self._is_busy = True
        self._reading: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """From now on it may be read."""
        self._is_busy = False
        self._go_on()

    def ask(self) -> None:
        """Have it read; the log is opened again at once."""
        self._server.log.reopen()
        self._is_asked = self._path is not None
        self._go_on()

    def end(self) -> None:
        """Read nothing more: the server is about to end, and waits for nothing it will not use."""
        if self._reading is not None and self._path is not None:
            self._reading.cancel()
        self._is_asked, self._path = False, None

    def _go_on(self) -> None:
        if self._is_asked and not self._is_busy and self._path is not None:
            self._is_busy = True
            self._server.spawn(self._read(self._path))

    async def _read(self, path: Path) -> None:
        self._reading = asyncio.current_task()
        while self._is_asked:
            self._is_asked = False
            await _reload(self._server, path, self._environ)
        self._is_busy = False


async def _reload(server: Server, path: Path, environ: Mapping[str, str]) -> None:
    try:
        config = await asyncio.to_thread(load, path, environ)
        _ask_for_descriptors(config, server.log)
        await server.reload(config)
        _set_aside_what_lasts()
    except ConfigError as error:
        for problem in error.problems:
            server.log.error("reload-refused", problem=str(problem))
    except _OPERATORS_TURN as error:
        server.log.error("reload-refused", problem=describe(error))
    except Exception as error:
        server.log.error("reload-failed", problem=describe(error), exception=error)


def _set_aside_what_lasts() -> None:
    """Keep the garbage collector from what is there now: to look at it all stops everybody for 50 ms and more."""
    gc.unfreeze()  # what an earlier configuration has left behind
    gc.collect()
    gc.freeze()


def _ask_for_descriptors(config: Config, log: Log) -> None:
    """One for each connection, and one for its content; with none left all mail is put off, by uvloop in silence."""
    wanted = 2 * (config.limits.connections or _MANY) + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    # No more than needed: programs that agents start may look at each number there can be.
    got = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (got, hard))
    if got < wanted and config.limits.connections:
        log.warning("few-descriptors", limit=got, wanted=wanted)


def _loop_factory(config: Config) -> type[asyncio.AbstractEventLoop] | None:
    if config.event_loop == "asyncio":
        return None
    try:
        import uvloop
    except ImportError as error:
        if config.event_loop == "uvloop":
            raise OSError(f'event_loop = "uvloop": {error}') from error
        return None
    factory: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return factory


def _open_log(config: Config) -> Log:
    """Open it as the user we become: whoever opens it again after rotation is not root any more."""
    try:
        identity = find_identity(config.user, config.group)
    except OSError:
        identity = None  # the log is where this will be said
    with acting_as(identity):
        return Log(config.log)


def _prepare_developer_setup(config: Config, log: Log) -> None:
    assert config.tls is not None
    make_developer_certificate(Path(config.tls.cert_file), Path(config.tls.key_file), config.hostname)
    for name in config.auth.providers:
        users = Path(getattr(config.auth.tables[name], "path"))  # noqa: B009 - an option of this provider alone
        made = make_developer_user(users)
        if made is not None:
            print(f"A user to log in with: {made[0]}, password {made[1]} (shown only now)", flush=True)
        else:
            command = f"smtpd user passwd --file {users} {DEVELOPER_LOGIN}"
            print(f"The user to log in with was made before; for another password: {command}", flush=True)
