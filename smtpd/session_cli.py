"""`smtpd session`: SMTP on standard input and output, as inetd would start us; for debugging, too."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
import syslog
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smtpd.channel import Channel
    from smtpd.config import Config
    from smtpd.model import TlsInfo
    from smtpd.replies import Reply

_READ = 1 << 16


@click.command()
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Configuration file.")
@click.option("--ip", default="", metavar="ADDRESS", help="Address of the client; by default its own, or 127.0.0.1.")
@click.option("--listener", default="", metavar="NAME", help="Listener whose rules hold; the first one by default.")
def session(file: Path | None, ip: str, listener: str) -> None:
    """Speak SMTP on standard input and output, under the rules of one listener. TLS is not offered.

    What is logged goes to standard error; where that is the client's socket, as with inetd, to the file in
    [smtpd.log] or to syslog.
    """
    from smtpd.config import ConfigError, load
    from smtpd.config.models import AuthOptions

    hidden = _hide_standard_error()
    ip = ip or _peer() or "127.0.0.1"
    try:
        ip_address(ip)
        config = load(file, os.environ)
        if file is None:  # nobody can log in without TLS, and before the first `serve` there is no users file
            config = config.model_copy(update={"auth": AuthOptions()})
        name = _chosen(listener, config)
    except (ConfigError, ValueError, click.BadParameter) as error:
        for line in str(error).splitlines() if hidden else ():
            syslog.syslog(syslog.LOG_MAIL | syslog.LOG_ERR, line)
        if isinstance(error, click.BadParameter):
            raise
        if not isinstance(error, ConfigError):
            raise click.BadParameter(str(error), param_hint="--ip") from None
        click.echo(str(error), err=True)
        sys.exit(1)
    asyncio.run(_speak(config, name, ip, _log_place(config.log.to, hidden=hidden)))


def _chosen(name: str, config: Config) -> str:
    """The listener of that name, or the first one that does not begin with TLS; BadParameter."""
    begins_with_tls = {each for each, options in config.listeners.items() if options.switches().tls == "implicit"}
    name = name or next((each for each in config.listeners if each not in begins_with_tls), "")
    if name not in config.listeners:
        raise click.BadParameter(f"there is no listener {name!r}", param_hint="--listener")
    if name in begins_with_tls:
        problem = f"listener {name!r} begins with TLS, which is not spoken here"
        raise click.BadParameter(problem, param_hint="--listener")
    return name


def _hide_standard_error() -> bool:
    """Keep standard error from the client when it is the socket that the replies go to, as inetd has it, or closed."""
    with suppress(OSError):  # of one that is closed: what is opened next would get its number
        if not (os.path.sameopenfile(1, 2) and stat.S_ISSOCK(os.fstat(1).st_mode)):
            return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != 2:
        os.dup2(nowhere, 2)
        os.close(nowhere)
    return True


def _peer() -> str:
    """Address at the other end of standard input, if that is a TCP socket."""
    try:
        with socket.socket(fileno=os.dup(0)) as peer:
            return str(peer.getpeername()[0]) if peer.family in (socket.AF_INET, socket.AF_INET6) else ""
    except OSError:  # a pipe, a terminal, a file
        return ""


def _log_place(to: str, *, hidden: bool) -> str:
    if not hidden:
        return "stderr"  # standard output belongs to the client
    return "syslog" if to in ("stdout", "stderr") else to


async def _speak(config: Config, listener: str, ip: str, log_to: str) -> None:
    from smtpd.channel import Channel
    from smtpd.conversation import Conversation
    from smtpd.log import Log
    from smtpd.model import Session, new_id, plain_ip
    from smtpd.process import report_failed_start
    from smtpd.server import Server

    with closing(Log(config.log.model_copy(update={"to": log_to}))) as log:
        try:
            server = Server(config.model_copy(update={"tls": None}), log=log)
            generation = await server.start_quietly()
        except Exception as error:
            report_failed_start(log, error)
            sys.exit(1)
        service = generation.services[listener]
        carrier = _Pipes()
        channel = Channel(carrier, asyncio.get_running_loop())
        over = asyncio.Event()
        channel.on_finished = over.set
        address = plain_ip(ip_address(ip))
        speaker = Session(id=new_id(), listener=listener, ip=address, trusted=service.trusts(address))
        channel.start(Conversation(channel, speaker, service).run())
        reader = asyncio.create_task(carrier.read_into(channel))
        await over.wait()
        reader.cancel()
        await server.stop()


class _Pipes:
    """Standard input and output as a channel's transport."""

    def __init__(self) -> None:
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._is_closed = False

    async def read_into(self, channel: Channel) -> None:
        """Feed the channel until the end of input."""
        loop = asyncio.get_running_loop()
        while True:
            await self._may_read.wait()
            data = await _read(loop)
            if not data:
                channel.feed_eof()
                return
            channel.feed(data)

    def write(self, data: bytes) -> None:
        """See carrier.Transport; a terminal or pipe is waited for."""
        view = memoryview(data)
        while view and not self._is_closed:
            try:
                view = view[os.write(sys.stdout.fileno(), view) :]
            except (BrokenPipeError, ConnectionResetError):
                self._is_closed = True

    def pause_reading(self) -> None:
        """See carrier.Transport."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """See carrier.Transport."""
        self._may_read.set()

    def close(self) -> None:
        """See carrier.Transport."""
        self._is_closed = True

    def abort(self) -> None:
        """See carrier.Transport."""
        self._is_closed = True

    async def start_tls(self) -> TlsInfo:
        """TLS is not offered on standard input."""
        raise ConnectionError("no TLS on standard input and output")

    def readdress(self, ip: str) -> Reply | None:
        """There is no limit here."""
        return None


async def _read(loop: asyncio.AbstractEventLoop) -> bytes:
    """One read of standard input, whatever it is: a pipe or socket is watched, a file is read in a thread."""
    descriptor = sys.stdin.fileno()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:  # epoll does not watch regular files
        return os.read(descriptor, _READ)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    try:
        return os.read(descriptor, _READ)
    except ConnectionResetError:
        return b""
