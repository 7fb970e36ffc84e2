"""Listening sockets: bound by us, or handed over by systemd (sd_listen_fds(3)); and sd_notify(3)."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from smtpd.config import split_address

BACKLOG = 1024  # connections the kernel may keep for us; Postfix 511 of its own choice
_ACCEPTED_AT_ONCE = 8
_DIGITS = 6  # of a number of descriptors
_FIRST_INHERITED = 3


class AddressUnavailable(OSError):  # noqa: N818 - said to the operator as it is
    """An address cannot be listened on; the text says which and why."""


def bind(addresses: Sequence[str], inherited: Inherited) -> list[socket.socket]:
    """Bind every address of one listener; AddressUnavailable closes what was opened before."""
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            kind, host, port = split_address(address)
            if kind == "systemd":
                sockets += inherited.take(host)
            elif kind == "unix":
                sockets.append(_bind_unix(host))
            else:
                sockets += _bind_tcp(host, port)
    except OSError as error:
        for opened in sockets:
            opened.close()
        if isinstance(error, AddressUnavailable):
            raise
        raise AddressUnavailable(f"cannot listen on {address}: {error.strerror or error}") from error
    return sockets


def listen(bound: socket.socket) -> None:
    """Let clients queue; AddressUnavailable when another process, bound to the same address, was faster."""
    try:
        bound.listen(BACKLOG)
    except OSError as error:
        raise AddressUnavailable(f"cannot listen on {describe(bound)}: {error.strerror or error}") from error


def describe(listening: socket.socket) -> str:
    """The address as it stands in the configuration: "127.0.0.1:25", "[::]:25", "unix:/run/x.sock"."""
    name = listening.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    return f"unix:{os.fsdecode(name)}"


def ears(listening: socket.socket, loop: asyncio.AbstractEventLoop) -> list[socket.socket]:
    """The socket, as often as it has to be listened on to take a burst of connections in one turn of the event loop.

    asyncio takes all there are, uvloop one for each descriptor. One turn for each connection costs half as much
    again as the connection, and its client a place at the end of the line.
    """
    if listening.family == socket.AF_UNIX or isinstance(loop, asyncio.BaseEventLoop):
        return [listening]
    return [listening, *(listening.dup() for _ in range(_ACCEPTED_AT_ONCE - 1))]


def _bind_tcp(host: str, port: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets = []
    for family, kind, protocol, _, address in found:
        if not host and family not in (socket.AF_INET, socket.AF_INET6):
            continue
        try:
            listening = socket.socket(family, kind, protocol)
        except OSError:
            if host:
                raise
            continue  # a kernel without IPv6
        sockets.append(listening)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.setblocking(False)
        try:
            listening.bind(address)
        except OSError:
            for opened in sockets:
                opened.close()
            raise
    return sockets


def _bind_unix(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode) and not _is_alive(path):
            Path(path).unlink()  # left behind by a server that was killed
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.setblocking(False)
    try:
        listening.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 - who may connect is decided by its folder, as for TCP by the address
    except OSError:
        listening.close()
        raise
    return listening


def _is_alive(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        return True


def _is_connected(opened: socket.socket) -> bool:
    try:
        opened.getpeername()
    except OSError:
        return False
    return True


class InheritedSocket(socket.socket):
    """One that systemd listens on when we are gone, so the file of a unix socket has to stay."""


class Inherited:
    """The sockets systemd opened for us, by the name of their unit's FileDescriptorName."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._sockets: dict[str, list[int]] = {}
        if environ.get("LISTEN_PID") != str(os.getpid()):
            return
        given = environ.get("LISTEN_FDS", "0")
        if not (given.isascii() and given.isdecimal() and len(given) < _DIGITS):
            raise AddressUnavailable(f"LISTEN_FDS should be the number of sockets that systemd handed over: {given!a}")
        count = int(given)
        names = environ.get("LISTEN_FDNAMES", "").split(":")
        for number in range(count):
            name = names[number] if number < len(names) else ""
            self._sockets.setdefault(name, []).append(_FIRST_INHERITED + number)

    def take(self, name: str) -> list[socket.socket]:
        """The sockets of this name, or all that are left for ""; AddressUnavailable when there is none."""
        if name:
            numbers = self._sockets.pop(name, [])
        else:
            numbers = [number for numbers in self._sockets.values() for number in numbers]
            self._sockets.clear()
        if not numbers:
            wanted = f' named "{name}"' if name else ""
            others = f", but {', '.join(map(repr, self._sockets))} (FileDescriptorName)" if self._sockets else ""
            raise AddressUnavailable(f"systemd handed over no socket{wanted}{others} (LISTEN_FDS)")
        sockets = [InheritedSocket(fileno=number) for number in numbers]
        for inherited in sockets:
            if inherited.type != socket.SOCK_STREAM or _is_connected(inherited):
                raise AddressUnavailable(f"systemd:{name} takes no connections: ListenStream= and Accept=no are needed")
            inherited.setblocking(False)
            inherited.set_inheritable(False)
        return [*sockets]


def notify(environ: Mapping[str, str], state: str) -> None:
    """Tell systemd how we are ("READY=1", "STOPPING=1"); does nothing without NOTIFY_SOCKET."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender, suppress(OSError):
        sender.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
