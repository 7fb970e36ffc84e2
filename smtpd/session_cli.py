"""`smtpd session`: SMTP on standard input and output, as inetd would start us; for debugging, too."""

from __future__ import annotations

import asyncio
import os
import sys
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
@click.option("--ip", default="127.0.0.1", metavar="ADDRESS", help="Address the client seems to come from.")
@click.option("--listener", default="", metavar="NAME", help="Listener whose rules hold; the first one by default.")
def session(file: Path | None, ip: str, listener: str) -> None:
    """Speak SMTP on standard input and output, under the rules of one listener. TLS is not offered."""
    from smtpd.config import ConfigError, load

    try:
        ip_address(ip)
        config = load(file, os.environ)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--ip") from None
    name = listener or next(iter(config.listeners), "")
    if name not in config.listeners:
        raise click.BadParameter(f"there is no listener {name!r}", param_hint="--listener")
    asyncio.run(_speak(config, name, ip))


async def _speak(config: Config, listener: str, ip: str) -> None:
    from smtpd.channel import Channel
    from smtpd.conversation import Conversation
    from smtpd.log import Log
    from smtpd.model import Session, new_id, plain_ip
    from smtpd.server import Server

    log = Log(config.log.model_copy(update={"to": "stderr"}))  # standard output belongs to the client
    server = Server(config.model_copy(update={"tls": None}), log=log)
    generation = await server.start_quietly()
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
            except BrokenPipeError:
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
    return os.read(descriptor, _READ)
