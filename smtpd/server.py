"""The server: start, serve, reload, drain, stop. Embed it in any event loop; there is no global state."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

from smtpd.acceptor import Acceptor, accept
from smtpd.background import Background
from smtpd.config import Config, TlsOptions
from smtpd.config.listeners import combinations
from smtpd.descriptor_watch import DescriptorWatch
from smtpd.dns import Resolver, make_resolver
from smtpd.exporter import Exporter
from smtpd.generation import AgentMaker, FilterMaker, Generation, OwnParts, check
from smtpd.journal import Journal
from smtpd.limits import ConnectionLimits, ContentBudget
from smtpd.log import Log
from smtpd.metrics import Metrics, Slots
from smtpd.sockets import Inherited, bind, describe
from smtpd.state import open_store
from smtpd.store import Store
from smtpd.store_watch import StoreWatch
from smtpd.tls import Certificates, Contexts, TlsError
from smtpd.wire import Connection, Gate

_GOODBYE = 1.0  # seconds
_GLANCE = 0.005  # seconds


class Server:
    """Receives mail as one configuration says.

    `bind` may be called first, by root; `start` does it otherwise. `serve` returns when `close` was called
    (from the same event loop) and messages in flight are finished.

        async with Server(config) as server:
            await server.serve()

    `agents` and `filters` are classes of yours that no entry point leads to, by the name of their table; see
    docs/embedding.md. `contexts` take the place of the certificates in `[smtpd.tls]`,
    `resolver` that of `[smtpd.dns]`. The server installs no signal handlers and leaves the process as it is. After
    `stop` it can be started again; its numbers go on.
    """

    def __init__(
        self,
        config: Config,
        *,
        agents: Mapping[str, AgentMaker] | None = None,
        filters: Mapping[str, FilterMaker] | None = None,
        log: Log | None = None,
        resolver: Resolver | None = None,
        environ: Mapping[str, str] | None = None,
        contexts: Contexts | None = None,
    ) -> None:
        self.config = self._begun_with = config
        self._own = OwnParts(agents or {}, filters or {})
        self.metrics = Metrics()
        self._owns_log = log is None
        self.log = log or Log(config.log)
        self._inherited = Inherited(environ or {})
        self._sockets: dict[str, list[socket.socket]] = {}
        self._limits = ConnectionLimits(config.limits.connections, config.limits.connections_per_ip)
        self._budget = ContentBudget(config.limits.memory_for_content)
        self._slots = Slots(config.metrics.ip_slots)
        # Made here to have their libraries imported: who gives up root may not be able to read them any more.
        self._store: Store = open_store(config.state.url)
        self._journal = Journal(self._store, log=self.log)
        self._contexts = contexts
        self._listens = True
        self._own_resolver = resolver
        self._resolver: Resolver = resolver or make_resolver(config.dns, self.metrics, self.log)
        self._certificates: Certificates | None = None
        self._generation: Generation | None = None
        self._gates: dict[str, Gate] = {}
        self._listening: dict[str, list[asyncio.Server | Acceptor]] = {}
        self._exporter: Exporter | None = None
        self._background = Background(self.log)
        self._closing = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._has_begun = self._is_stopped = False
        self._was_ready = False

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def bind(self) -> None:
        """Open every listening socket; OSError names the address that cannot be had."""
        for name, listener in self.config.listeners.items():
            self._sockets[name] = bind(listener.address, self._inherited)

    @property
    def addresses(self) -> dict[str, list[str]]:
        """Where each listener really listens: "127.0.0.1:2525" and so on."""
        return {name: [describe(each) for each in opened] for name, opened in self._sockets.items()}

    def port(self, listener: str) -> int:
        """The TCP port of a listener's first address, also where the configuration says 0; 0 for a unix socket."""
        name = self._sockets[listener][0].getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    async def start_quietly(self) -> Generation:
        """Start agents and filters, but listen nowhere; for conversations that come by another way."""
        self._begin()
        await self._open_surroundings()
        self._generation = self._make(self.config, self._journal, has_tls=False)
        await self._generation.start()
        return self._generation

    async def start(self, *, listens: bool = True) -> None:
        """Start agents and filters, then listen. What it raises says what is wrong; nothing keeps running then.

        `listens=False`: connections come by `connection`, from sockets of somebody else.
        """
        self._begin()
        self._listens = listens
        try:
            self._check(self.config)
            if listens and not self._sockets:
                self.bind()
            self._load_certificates(self.config)
            await self._open_surroundings()
            self._generation = self._make(self.config, self._journal, has_tls=self._has_tls(self.config))
            await self._generation.start()
            await self._listen()
            self._exporter = Exporter(self.config.metrics, self.metrics, self._problems, self.log)
            await self._exporter.start()
            if self._exporter.port:
                host = self.config.metrics.address.rpartition(":")[0]
                self.log.info("metrics", address=f"{host}:{self._exporter.port}", path=self.config.metrics.path)
        except BaseException:
            await self.stop()
            raise
        self._was_ready = True
        self.log.info("ready", hostname=self.config.hostname, pid=os.getpid())

    def connection(self, listener: str, loop: asyncio.AbstractEventLoop) -> Connection:
        """What `loop.create_server` and its like need for each connection, after `start`; TLS may be there already.

        It is served as one that came in at the listener, but for PROXY headers, which only our own sockets read.
        """
        return Connection(self._gates[listener], loop, may_be_secure=True)

    async def serve(self) -> None:
        """Wait until `close` is called, then drain and stop; RuntimeError when it was not started."""
        if self._generation is None:
            raise RuntimeError("the server has not been started")
        await self._closing.wait()
        await self.drain()
        await self.stop()

    def close(self) -> None:
        """Make `serve` come to its end; a second call waits for no client any more."""
        if self._closing.is_set():
            for channel in [channel for gate in self._gates.values() for channel in gate.channels]:
                channel.interrupt(now=True)
        self._closing.set()

    async def drain(self) -> None:
        """Take no connections, end idle ones with 421, give messages in flight `drain_timeout` seconds."""
        self.log.info("draining", connections=self._limits.active)
        if self._exporter is not None:
            self._exporter.draining = True
        self._close_listeners(*self._listening)
        await self._until_idle(self.config.drain_timeout, now=False)
        await self._until_idle(1.0, now=True)

    async def stop(self) -> None:
        """Hang up on everybody, finish deliveries that have begun, stop agents and filters. Once is enough."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._close_listeners(*self._listening)
        await self._until_idle(self.config.drain_timeout, now=True)
        await self._until_closed()
        await self._background.stop_watching()
        self._certificates = None
        await self._background.finish(self.config.drain_timeout)
        if self._generation is not None:
            await self._generation.stop()
            self._generation = None
        await self._store.stop()
        await self._resolver.stop()
        if self._exporter is not None:
            await self._exporter.stop()
            self._exporter = None
        for opened in self._sockets.values():
            for listening_socket in opened:
                listening_socket.close()
        self._sockets.clear()
        if self._was_ready:
            self.log.info("stopped")
        self._was_ready = False
        if self._owns_log:
            self.log.close()

    async def reload(self, config: Config) -> None:
        """Use another configuration for new sessions; when that raises, the old one stays in force.

        Listeners that are gone are closed; new ones and other addresses need a restart, and are logged.
        """
        async with self._reloading:  # or an older configuration that is slow to start could take over a newer one
            await self._replace(config)

    async def _replace(self, config: Config) -> None:
        if not self._has_begun:
            raise RuntimeError("the server has not been started")
        self._check(config)
        if self._listening and self._listening.keys().isdisjoint(config.listeners):  # such as one that got another name
            raise OSError("all listeners would be closed, as those in it are opened only by a restart")
        journal = _promising(self._journal, config)
        generation = self._make(config, journal, has_tls=self._has_tls(config))
        await generation.start_in_time()
        try:
            if self._is_stopped:
                raise RuntimeError("the server was stopped meanwhile")
            self._load_certificates(config)
        except (TlsError, RuntimeError):
            await generation.stop()
            raise
        old = self._generation
        self._put_in_force(config, generation, journal)
        if old is not None:
            self.spawn(self._retire(old))

    def _put_in_force(self, config: Config, generation: Generation, journal: Journal) -> None:
        """Everything for it is there: give it to the listeners, and say what only a restart can change."""
        for name in sorted(self._listening.keys() - generation.services.keys()):
            self._close_listeners(name)
            self.log.info("listener-closed", listener=name)
        for name, service in generation.services.items():
            if name in self._gates:
                self._gates[name].service = service
                self._gates[name].certificates = self._contexts or self._certificates
            if self._listens and (problem := self._needs_restart(name, config)):
                self.log.warning("restart-needed", listener=name, problem=f"{problem} only after a restart")
        self._limits.total = config.limits.connections
        self._limits.per_ip = config.limits.connections_per_ip
        self._budget.limit = config.limits.memory_for_content
        for key in ("state", "dns", "metrics", "log", "user", "group", "event_loop"):
            if getattr(config, key) != getattr(self._begun_with, key):
                self.log.warning("restart-needed", listener="", problem=f"smtpd.{key} holds only after a restart")
        self._generation, self._journal, self.config = generation, journal, config
        self.log.info("reloaded")

    def _needs_restart(self, name: str, config: Config) -> str:
        """What a listener cannot do of this configuration with the sockets it has."""
        sockets, wanted = self._listening.get(name, ()), config.listeners[name]
        if not sockets:
            return "it listens"
        if wanted.address != self._begun_with.listeners[name].address:
            return "it listens where it did, and at its new address"
        reads_headers = any(isinstance(listening, Acceptor) for listening in sockets)
        return "it reads PROXY headers" if wanted.proxy_protocol and not reads_headers else ""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something nobody waits for; an exception is logged, and `stop` waits for it."""
        self._background.spawn(work)

    def _has_tls(self, config: Config) -> bool:
        return self._contexts is not None or (config.tls is not None and bool(config.tls.cert_file))

    def _load_certificates(self, config: Config) -> None:
        """Use those that a configuration names; on TlsError those in use stay."""
        if self._contexts is not None or config.tls is None or not config.tls.cert_file:
            return
        wanted = combinations(config.listeners.values())
        if self._certificates is not None:
            self._certificates.configure(config.tls, wanted)
            return
        self._certificates = Certificates(config.tls, self.log, self.metrics, combinations=wanted)
        self._background.watch(self._certificates.watch())

    def _make(self, config: Config, journal: Journal, *, has_tls: bool) -> Generation:
        return Generation(
            config,
            log=self.log,
            metrics=self.metrics,
            slots=self._slots,
            budget=self._budget,
            spawn=self.spawn,
            has_tls=has_tls,
            journal=journal,
            store=self._store,
            resolver=self._resolver,
            own=self._own,
        )

    def _check(self, config: Config) -> None:
        if self._contexts is not None:  # they need no files, so for the check any that exist will do
            named = {"cert_file": __file__, "key_file": __file__}
            config = config.model_copy(update={"tls": (config.tls or TlsOptions()).model_copy(update=named)})
        check(config, self._own)

    def _begin(self) -> None:
        if self._has_begun and not self._is_stopped:
            raise RuntimeError("the server has been started, and not stopped since")
        self._has_begun = True
        self._begun_with = self.config
        if self._is_stopped:
            self._is_stopped = False
            self._closing.clear()
            self._inherited = Inherited({})  # what systemd handed over is closed
            if self._owns_log:
                self.log = Log(self.config.log)
        self._background = Background(self.log)

    async def _open_surroundings(self) -> None:
        self._store = open_store(self.config.state.url)
        self._journal = _promising(Journal(self._store, log=self.log), self.config)
        await self._store.start()
        self._background.watch(StoreWatch(self._store, self.log, self.metrics).run())
        self._background.watch(DescriptorWatch(self.log, time.monotonic).run())
        if self._own_resolver is None:
            self._resolver = make_resolver(self.config.dns, self.metrics, self.log)
        await self._resolver.start()

    async def _listen(self) -> None:
        assert self._generation is not None
        loop = asyncio.get_running_loop()
        for name, service in self._generation.services.items():
            gate = self._gates[name] = Gate(service, self._limits, self._contexts or self._certificates)
            for opened in self._sockets.get(name, ()):
                listener = self.config.listeners[name]
                accepting = await accept(gate, opened, loop, reads_headers=bool(listener.proxy_protocol))
                self._listening.setdefault(name, []).extend(accepting)
                self.log.info("listening", listener=name, address=describe(opened), mode=listener.mode)

    def _close_listeners(self, *names: str) -> None:
        for name in names:
            for listening in self._listening.pop(name, ()):
                listening.close()
                if isinstance(listening, Acceptor):
                    self.spawn(listening.wait_closed())
            self._gates[name].is_draining = True

    async def _until_idle(self, seconds: float, *, now: bool) -> None:
        channels = [channel for gate in self._gates.values() for channel in gate.channels]
        idle = asyncio.Event()

        def look() -> None:
            if not any(gate.channels for gate in self._gates.values()):
                idle.set()

        for gate in self._gates.values():
            gate.is_draining = True
            gate.on_idle = look
        for channel in channels:
            channel.interrupt(now=now)
        look()
        try:
            async with asyncio.timeout(seconds):
                await idle.wait()
        except TimeoutError:
            self.log.warning("still-busy", connections=self._limits.active)

    async def _until_closed(self) -> None:
        """Let clients that play along see the end; their sockets are closed a moment after the conversation."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                while self._limits.active:  # noqa: ASYNC110 - asyncio and uvloop tell it in different ways
                    await asyncio.sleep(_GLANCE)

    async def _retire(self, generation: Generation) -> None:
        """Stop an old generation when none of its conversations is left."""
        services = set(map(id, generation.services.values()))
        while any(  # noqa: ASYNC110 - rare, and nobody waits for it
            id(service) in services for gate in self._gates.values() for service in gate.channels.values()
        ):
            await asyncio.sleep(1)
        await generation.stop()

    async def _problems(self) -> list[str]:
        return await self._generation.problems() if self._generation is not None else ["not started"]


def _promising(journal: Journal, config: Config) -> Journal:
    promised = config.delivery
    return journal.renewed(
        guarantee=promised.guarantee, keep=promised.remember, remember_refusals=promised.remember_refusals
    )
