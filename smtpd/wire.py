"""Sockets: one protocol per connection between an asyncio transport and a channel.

The only file that knows asyncio transports. Public asyncio API only, so it runs on uvloop and on asyncio.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from smtpd import replies, tls
from smtpd.channel import Channel
from smtpd.conversation import Conversation
from smtpd.endings import Disconnected
from smtpd.limits import ConnectionLimits
from smtpd.model import IPAddress, Session, TlsInfo, new_id, plain_ip
from smtpd.proxy import V1_START, V2_START, Origin
from smtpd.replies import Reply
from smtpd.service import Service
from smtpd.turn import Turn

LAST_WORDS = 10.0  # seconds that a client which does not read may keep us from hanging up
_TLS_RECORD = b"\x16"  # RFC 8446 §5.1: what a TLS client says first; no SMTP command starts like this
_FIRST_OF_OTHERS = V1_START[:1] + V2_START[:1] + _TLS_RECORD
_LOCAL_SOCKET = "127.0.0.1"


class Gate:
    """One listener of the running server: what its next connection meets. A reload puts another `service` here."""

    __slots__ = ("certificates", "channels", "is_draining", "limits", "on_idle", "service", "turn")

    def __init__(self, service: Service, limits: ConnectionLimits, certificates: tls.Contexts | None) -> None:
        self.service = service
        self.limits = limits
        self.certificates = certificates
        self.channels: dict[Channel, Service] = {}
        self.turn = Turn()
        self.is_draining = False
        self.on_idle: Callable[[], None] | None = None

    def refusal(self, ip: str) -> Reply | None:
        """Why no connection from this address is taken now; None counts it."""
        if self.is_draining:
            return replies.SHUTTING_DOWN(hostname=self.service.config.hostname)
        reason = self.limits.admit(ip)
        if reason is None:
            return None
        hostname = self.service.config.hostname
        self.service.meters.refused_connection(reason)
        if reason == "total":
            return replies.TOO_MANY_CONNECTIONS(hostname=hostname)
        return replies.TOO_MANY_FROM_ADDRESS(hostname=hostname, ip=ip)

    def expects_header(self, ip: IPAddress) -> bool:
        """Whether connections from this address begin with a PROXY header."""
        service = self.service
        return any(ip in network for network in service.config.listeners[service.listener].proxy_protocol)

    def move(self, old: str, new: str) -> Reply | None:
        """Count a connection for another address from now on, or say why not; then it stays where it was."""
        reason = self.limits.move(old, new)
        if reason is None:
            self.service.meters.disconnected()
            self.service.meters.connected(new)
            return None
        self.service.meters.refused_connection(reason)
        return replies.TOO_MANY_FROM_ADDRESS(hostname=self.service.config.hostname, ip=new)

    def dropped(self, reason: str, ip: str | None, problem: str = "") -> None:
        """Count and log that a connection is cut because its peer does not speak our protocol."""
        details: dict[str, Any] = {"problem": problem} if problem else {}
        self.service.meters.dropped(reason)
        self.service.log.warning("dropped", listener=self.service.listener, ip=ip, reason=reason, **details)

    def context(self) -> ssl.SSLContext:
        """The TLS context for a handshake that begins now."""
        assert self.certificates is not None
        switches = self.service.switches
        return self.certificates.context(
            session_tickets=switches.session_tickets, client_certificates=switches.client_certificates
        )

    def finished(self, channel: Channel) -> None:
        """A conversation is over."""
        self.channels.pop(channel, None)
        if not self.channels and self.on_idle is not None:
            self.on_idle()


class Connection(asyncio.Protocol):
    """One client. Feeds its channel, and is the transport of that channel.

    `origin` is what the PROXY header said, None where there was none. `may_be_secure`: whoever listens for us may
    have shaken hands before we are told of the connection.
    """

    __slots__ = (
        "_channel", "_gate", "_hang_up", "_ip", "_is_check", "_is_new", "_loop", "_may_be_secure", "_origin", "_start",
        "_transport",
    )  # fmt: skip

    def __init__(
        self,
        gate: Gate,
        loop: asyncio.AbstractEventLoop,
        origin: Origin | None = None,
        *,
        may_be_secure: bool = False,
    ) -> None:
        self._gate = gate
        self._loop = loop
        self._origin = origin
        self._is_check = origin is not None and origin.kind == "local"
        """The balancer only looks whether we live, every second or so: not worth a line."""
        self._may_be_secure = may_be_secure
        self._start = b""
        self._transport: asyncio.Transport | None = None
        self._channel: Channel | None = None
        self._ip: str | None = None
        self._is_new = True
        self._hang_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit or refuse, then start the conversation."""
        if TYPE_CHECKING:
            assert isinstance(transport, asyncio.Transport)  # uvloop's classes do not derive from asyncio's
        self._transport = transport
        gate, service = self._gate, self._gate.service
        peer = transport.get_extra_info("peername")
        if peer is None:  # gone already, and what it has sent would be mail from nobody knows where
            transport.abort()
            return
        ip, text, port = address_of(peer)
        local_ip, local_port = _name(transport.get_extra_info("sockname"))
        origin = self._origin
        if origin is not None and origin.source is not None:
            ip, text, port = origin.source, str(origin.source), origin.source_port
            local_ip, local_port = str(origin.destination), origin.destination_port
        if refusal := gate.refusal(text):
            self._turn_away(refusal, text)
            return
        self._ip = text
        service.meters.connected(text)
        session = Session(new_id(), service.listener, ip, text, port, local_ip, local_port)
        session.trusted = service.trusts(ip)
        if self._may_be_secure and (negotiated := _negotiated(transport)):
            session.tls = negotiated
            service.meters.tls(negotiated.version)
        channel = self._channel = Channel(self, self._loop, gate.turn)
        channel.on_finished = self._finished
        gate.channels[channel] = service
        if self._is_check:
            service = replace(service, log=service.log.without_connections())
        channel.start(Conversation(channel, session, service).run())

    def _turn_away(self, refusal: Reply, ip: str) -> None:
        service, trace = self._gate.service, new_id()
        if service.switches.tls != "implicit" or not self._transport_is_plain():  # else nobody could read it
            self.write(refusal.encode(trace, service.texts))
        why, log = str(refusal), service.log.debug if self._is_check else service.log.info
        log("refused", listener=service.listener, ip=ip, trace=trace, at="CONNECT", reply=why, reason=refusal.key)
        self.close()

    def data_received(self, data: bytes) -> None:
        """Octets came, decrypted."""
        channel = self._channel
        if channel is None or (self._is_new and self._is_misplaced(data)):
            return
        channel.feed(data)

    def _is_misplaced(self, data: bytes) -> bool:
        """Look at the first octets, and hang up where they are something else than SMTP."""
        if not self._start and data[:1] not in _FIRST_OF_OTHERS:
            self._is_new = False
            return False
        start = self._start = self._start + data[: len(V2_START)]
        self._is_new = V1_START.startswith(start) or V2_START.startswith(start)
        if start.startswith((V1_START, V2_START)):
            reason = "proxy-not-expected"  # it would speak for others, and nobody has allowed it to
        elif start.startswith(_TLS_RECORD) and self._gate.service.switches.tls != "implicit":
            reason = "tls-on-plain-port"
        else:
            return False
        self._gate.dropped(reason, self._ip)
        self.abort()
        return True

    def eof_received(self) -> bool:
        """The client closed its sending side; it may still read our replies."""
        if self._channel is not None:
            self._channel.feed_eof()
        return self._channel is not None and self._transport_is_plain()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        if self._hang_up is not None:
            self._hang_up.cancel()
        self._release()
        if self._channel is not None:
            self._channel.lost()

    def pause_writing(self) -> None:
        """The client does not read."""
        if self._channel is not None:
            self._channel.blocked(True)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._channel is not None:
            self._channel.blocked(False)

    # The channel's transport

    def write(self, data: bytes) -> None:
        """See carrier.Transport."""
        if self._transport is not None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        """See carrier.Transport."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See carrier.Transport."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """See carrier.Transport."""
        transport = self._transport
        if transport is None or transport.is_closing():  # asyncio's encrypted one breaks when it is closed twice
            return
        transport.close()
        if transport.get_write_buffer_size():  # a client that reads no more would keep its place for ever
            self._hang_up = self._loop.call_later(LAST_WORDS, transport.abort)

    def abort(self) -> None:
        """See carrier.Transport."""
        if self._transport is not None:
            self._transport.abort()

    async def start_tls(self) -> TlsInfo:
        """RFC 3207 §4: a handshake that fails ends the connection, there is no way back to plain text."""
        plain, self._transport = self._transport, None  # the loop has it until the handshake is done
        assert plain is not None
        self._is_new = False
        try:
            self._transport, negotiated = await self._shake_hands(plain)
        except BaseException:
            if not plain.is_closing():  # as uvloop has it
                plain.abort()
            self._release()  # asyncio does not tell us of a connection that is lost during the handshake
            raise
        return negotiated

    async def _shake_hands(self, plain: asyncio.Transport) -> tuple[asyncio.Transport, TlsInfo]:
        service = self._gate.service
        try:
            transport = await self._loop.start_tls(
                plain,
                self,
                self._gate.context(),
                server_side=True,
                ssl_handshake_timeout=service.config.timeouts.tls_handshake or None,
            )
            negotiated = None if transport is None else _negotiated(transport)
            if negotiated is None:  # uvloop says nothing of a client that hung up before the handshake
                raise ConnectionAbortedError
        except (OSError, tls.TlsError) as error:
            if not self._is_check:
                service.meters.dropped("tls-handshake")
                problem = str(error) or "the client hung up"
                service.log.info("tls-failed", listener=service.listener, ip=self._ip, problem=problem)
            raise Disconnected from error
        assert transport is not None
        return transport, negotiated

    def readdress(self, ip: str) -> Reply | None:
        """See carrier.Transport."""
        if self._ip is None:  # lost while the message before was delivered
            raise Disconnected
        refusal = self._gate.move(self._ip, ip)
        if refusal is None:
            self._ip = ip
        return refusal

    def _release(self) -> None:
        ip, self._ip = self._ip, None
        if ip is not None:
            gate = self._gate
            gate.limits.release(ip)
            gate.service.meters.disconnected()

    def _finished(self) -> None:
        channel, self._channel = self._channel, None  # or they would hold each other until the garbage collector comes
        assert channel is not None
        self._gate.finished(channel)

    def _transport_is_plain(self) -> bool:
        return self._transport is not None and self._transport.get_extra_info("ssl_object") is None


def _negotiated(transport: asyncio.Transport) -> TlsInfo | None:
    """None without TLS."""
    connection = transport.get_extra_info("ssl_object")
    return tls.describe(connection) if isinstance(connection, ssl.SSLObject) else None


def address_of(name: object) -> tuple[IPAddress, str, int]:
    """Address, the same as text, and port of a socket's name; 127.0.0.1 and 0 for a unix socket."""
    text, port = _name(name)
    ip, text = _parsed(text)
    return ip, text, port


def _name(name: object) -> tuple[str, int]:
    return (name[0], name[1]) if isinstance(name, tuple) else (_LOCAL_SOCKET, 0)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[IPAddress, str]:
    """The address without its zone, an IPv4 one as such, and its usual spelling."""
    ip = plain_ip(ip_address(text.partition("%")[0]))
    return ip, str(ip)
