"""The numbers over HTTP, for Prometheus and for whoever asks whether the server is alive.

A deliberately small HTTP/1.1 server (RFC 9112): GET and HEAD, one request per connection, with limits
on size, time and number. Three paths answer:

- the metrics path: all numbers, as text or OpenMetrics; wants the bearer token when there is one;
- /healthz: 200 as long as the event loop turns;
- /readyz: 200 when mail can be taken, else 503, and one line per reason (with a token: only to its bearer).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from smtpd import files
from smtpd.config.listeners import split_address
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.replies import clean

MAX_HEAD = 8192  # bytes of request line and header fields
MAX_CONNECTIONS = 32
MAX_PROBLEMS = 100  # lines of /readyz
REQUEST_SECONDS = 5.0
READY_SECONDS = 5.0
STOP_SECONDS = 1.0
PLAIN = "text/plain; charset=utf-8"


class Secret(Protocol):
    """A value that is shown to nobody by accident."""

    def get_secret_value(self) -> str:
        """The value."""


class ExporterOptions(Protocol):
    """What the exporter needs to be told: the table `[smtpd.metrics]`."""

    @property
    def enabled(self) -> bool:
        """Whether there is an exporter at all."""

    @property
    def address(self) -> str:
        """Where it listens: "127.0.0.1:9100", "[::1]:9100" or ":9100"."""

    @property
    def path(self) -> str:
        """Path of the numbers."""

    @property
    def token(self) -> Secret | None:
        """What a scraper must send as `Authorization: Bearer`; None: nothing."""

    @property
    def cert_file(self) -> str | None:
        """PEM file of the certificate; unset: no TLS."""

    @property
    def key_file(self) -> str | None:
        """PEM file of its key."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; field names in lower case, of several equal fields the last."""

    method: str
    path: str
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered."""

    status: HTTPStatus
    body: bytes
    content_type: str = PLAIN
    fields: tuple[str, ...] = ()

    def encode(self, *, head_only: bool = False) -> bytes:
        """The octets on the wire."""
        lines = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *self.fields,
        )
        head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
        return head if head_only else head + self.body


class Exporter:
    """Answers scrapes and probes. `ready` returns one line per reason why mail cannot be taken now.

    Set `draining` when the server stops: /readyz says 503 from then on.
    """

    def __init__(
        self,
        options: ExporterOptions,
        metrics: Metrics,
        ready: Callable[[], Awaitable[list[str]]],
        log: Log | None = None,
    ) -> None:
        self.draining = False
        self._options = options
        self._metrics = metrics
        self._ready = ready
        self._log = log
        self._token = None if options.token is None else options.token.get_secret_value().encode()
        self._context: ssl.SSLContext | None = None
        self._stamps: list[files.Stamp | None] = []
        self._complaint = ""
        self._server: asyncio.Server | None = None
        self._requests: set[asyncio.Task[None]] = set()
        self._check: asyncio.Task[list[str]] | None = None

    async def start(self) -> None:
        """Listen, unless switched off. OSError: the address or a file cannot be used."""
        if not self._options.enabled:
            return
        kind, host, port = split_address(self._options.address)
        if kind != "tcp":
            raise ValueError("the exporter listens on a TCP address")
        self._load_certificate()
        try:
            self._server = await asyncio.start_server(self._accept, host or None, port, limit=MAX_HEAD)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
            raise OSError(f"cannot listen on {self._options.address} for the metrics: {reason}") from error

    async def stop(self) -> None:
        """Stop listening and end what is being answered."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        running = [*self._requests, *([self._check] if self._check is not None else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await server.wait_closed()

    @property
    def port(self) -> int:
        """The TCP port that is listened on; 0 when there is none."""
        name = self._server.sockets[0].getsockname() if self._server is not None else ()
        return name[1] if isinstance(name, tuple) and len(name) > 1 else 0

    def _load_certificate(self) -> None:
        """Read the files when they have changed; OSError, which names them, when they cannot be used now."""
        certificate, key = self._options.cert_file, self._options.key_file or None
        stamps = [files.stamp(Path(name)) for name in (certificate, key) if name]
        if not certificate or stamps == self._stamps:
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
        try:
            context.load_cert_chain(certificate, key, password="")  # nobody is there to ask for a pass phrase
        except OSError as error:
            paths = " and ".join(dict.fromkeys((certificate, key or certificate)))
            raise OSError(f"{paths}: {error.strerror or error}") from error
        self._context, self._stamps = context, stamps

    async def _shake_hands(self, writer: asyncio.StreamWriter) -> None:
        try:
            self._load_certificate()
            self._complaint = ""
        except OSError as error:  # tried again for the next client: it may have been a matter of a moment
            if self._log is not None and str(error) != self._complaint:
                self._log.warning("certificates-kept", error=str(error))
            self._complaint = str(error)
        if self._context is not None:
            await writer.start_tls(self._context, ssl_handshake_timeout=REQUEST_SECONDS)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._requests) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        # Eagerly: TLS has to be there before the first octet is read. A handshake counts as a connection, too.
        task = asyncio.Task(self._serve(reader, writer), loop=asyncio.get_running_loop(), eager_start=True)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS + READY_SECONDS):
                if self._options.cert_file:
                    await self._shake_hands(writer)
                answer = await self._answer(reader)
                if answer:
                    writer.write(answer)
                    await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):  # the client is gone or does not read
            writer.transport.abort()
        except BaseException:
            writer.transport.abort()
            raise

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = parse_request(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError:
            return b""
        except asyncio.LimitOverrunError:
            return _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE).encode()
        except TimeoutError:
            return _plain(HTTPStatus.REQUEST_TIMEOUT).encode()
        except ValueError:
            return _plain(HTTPStatus.BAD_REQUEST).encode()
        try:
            response = await self._respond(request)
        except Exception as exception:  # ours or a plug-in's bug; the scraper hears 500, the log has the rest
            if self._log is not None:
                self._log.error("exporter-broken", exception=exception)
            response = _plain(HTTPStatus.INTERNAL_SERVER_ERROR)
        return response.encode(head_only=request.method == "HEAD")

    async def _respond(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
        if request.path == "/healthz":
            return _plain(HTTPStatus.OK)
        if request.path == "/readyz":
            return await self._readiness(may_see_reasons=self._is_authorized(request))
        if request.path != self._options.path:
            return _plain(HTTPStatus.NOT_FOUND)
        if not self._is_authorized(request):
            return _plain(HTTPStatus.UNAUTHORIZED, 'WWW-Authenticate: Bearer realm="smtpd"')
        body, content_type = self._metrics.exposition(request.fields.get("accept", ""))
        return Response(HTTPStatus.OK, body, content_type)

    def _is_authorized(self, request: Request) -> bool:
        if self._token is None:
            return True
        scheme, _, given = request.fields.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._token)

    async def _readiness(self, *, may_see_reasons: bool) -> Response:
        problems = ["the server is shutting down"] if self.draining else await self._problems()
        if not problems:
            return _plain(HTTPStatus.OK)
        if not may_see_reasons:
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE)
        body = "".join(f"{clean(problem)}\n" for problem in problems[:MAX_PROBLEMS])
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, body.encode("ascii"))

    async def _problems(self) -> list[str]:
        # Everybody who asks meanwhile waits for one and the same check: probing costs backends little.
        if self._check is None or self._check.done():
            self._check = asyncio.get_running_loop().create_task(self._checked())
        return await asyncio.shield(self._check)

    async def _checked(self) -> list[str]:
        try:
            async with asyncio.timeout(READY_SECONDS):
                return await self._ready()
        except TimeoutError:
            return [f"the checks took longer than {READY_SECONDS:g} s"]


def parse_request(head: bytes) -> Request:
    """Take a request's head apart (RFC 9112 §3, §5); ValueError when it is none."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, version = first.split(" ")
    if not version.startswith("HTTP/1.") or not target.startswith("/"):
        raise ValueError("neither HTTP/1.1 nor a path")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ValueError("a field without a name")
        fields[name.lower()] = value.strip()
    return Request(method, target.partition("?")[0], fields)


def _plain(status: HTTPStatus, *fields: str) -> Response:
    text = "ok" if status is HTTPStatus.OK else status.phrase
    return Response(status, f"{text}\n".encode("ascii"), PLAIN, fields)
