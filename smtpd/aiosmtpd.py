"""Our conversation inside the controllers of aiosmtpd: a program changes one import and keeps its life cycle.

    from smtpd.aiosmtpd import Controller

    controller = Controller(handler, hostname="127.0.0.1", port=8025)
    controller.start()
    controller.stop()

The controller listens, in its thread and its event loop, and hands each socket to `wire.Connection`. What aiosmtpd's
SMTP class did is done by `controller.mail_server`, a `Server` that listens nowhere itself. Options of aiosmtpd that
have a twin in our configuration are laid over it; all others are a TypeError that names what to use.

The one file that knows aiosmtpd's controllers; docs/aiosmtpd.md is for those who come from there.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any

from aiosmtpd import controller
from aiosmtpd.controller import BaseController, BaseThreadedController, BaseUnthreadedController

from smtpd import plugins
from smtpd.config import Config
from smtpd.controller_options import HANDLER, translate
from smtpd.generation import AgentMaker, FilterMaker
from smtpd.log import Log
from smtpd.server import Server
from smtpd.tls import ClientCertificates
from smtpd.wire import Connection

__all__ = ["Controller", "UnixSocketController", "UnixSocketUnthreadedController", "UnthreadedController"]


class _Bridge(BaseController):
    """What all controllers have in common: the arguments, and a mail server in the place of aiosmtpd's SMTP class."""

    def __init__(
        self,
        handler: object = None,
        *place: Any,
        config: Config | None = None,
        listener: str = "",
        agents: Mapping[str, AgentMaker] | None = None,
        filters: Mapping[str, FilterMaker] | None = None,
        log: Log | None = None,
        **options: Any,
    ) -> None:
        super().__init__(handler, *place, **options)
        if "enable_SMTPUTF8" not in {**options, **options.get("server_kwargs", {})}:
            del self.SMTP_kwargs["enable_SMTPUTF8"]  # nobody said so: it is aiosmtpd's own default
        try:
            told = translate(
                self.SMTP_kwargs, config=config, listener=listener, handler=handler, ssl_context=self.ssl_context
            )
            self._listener = told.listener
            self.mail_server = Server(
                told.config,
                agents={**_agents(handler), **(agents or {})},
                filters=filters,
                log=log,
                contexts=None if told.context is None else _OneContext(told.context),
            )
        except BaseException:
            if self.loop not in (*place, options.get("loop")):
                self.loop.close()  # aiosmtpd has made it, and nobody else knows it
            raise

    def factory(self) -> Connection:
        """What aiosmtpd asks for at each connection."""
        return self.mail_server.connection(self._listener, self.loop)

    async def _create_server(self) -> asyncio.AbstractServer:
        await self.mail_server.start(listens=False)
        try:
            return await super()._create_server()  # type: ignore[safe-super]  # the class behind us in line has one
        except BaseException:
            await self.mail_server.stop()
            raise

    async def _finish(self) -> None:
        """Hang up on everybody, but let deliveries that have begun come to their end."""
        if self.server is not None:
            self.server.close()
        await self.mail_server.stop()
        # `wait_closed` waits also for clients who do not answer the goodbye of TLS: before Python 3.13 up to 30 s.
        abort_clients: Callable[[], None] | None = getattr(self.server, "abort_clients", None)
        if abort_clients is not None:
            abort_clients()


class _Threaded(_Bridge, BaseThreadedController):
    def start(self) -> None:
        """Return when mail can come in; what cannot start is raised, and nothing keeps running then."""
        assert self._thread is None, "SMTP daemon already running"
        try:
            super().start()
        except BaseException:
            if not self.loop.is_closed():
                self.stop()
            elif self._thread is not None:
                self._thread.join()
                self._thread = None
            raise

    def stop(self, no_assert: bool = False) -> None:
        """Hang up on clients (421), finish deliveries that have begun, then stop the event loop and its thread."""
        if no_assert and self._thread is None:
            return
        if self.loop.is_running():
            asyncio.run_coroutine_threadsafe(self._finish(), self.loop).result()
        super().stop(no_assert)

    def _run(self, ready_event: threading.Event) -> None:
        super()._run(ready_event)
        if self._thread_exception is not None:  # then aiosmtpd leaves tasks and loop behind, and `start` waiting
            if left := asyncio.all_tasks(self.loop):
                self.loop.run_until_complete(asyncio.wait(left))
            self.loop.close()
            ready_event.set()

    def _trigger_server(self) -> None:
        """There aiosmtpd connects to itself, because only then its factory can fail; our server has started."""
        if self._thread_exception is not None:
            raise self._thread_exception
        self._factory_invoker()


class _Unthreaded(_Bridge, BaseUnthreadedController):
    async def finalize(self) -> None:
        """Hang up on clients (421), finish deliveries that have begun, then close the listening socket."""
        await self._finish()
        await super().finalize()  # type: ignore[no-untyped-call]


class Controller(_Threaded, controller.Controller):
    """`aiosmtpd.controller.Controller` (host and port, a thread of its own) with our conversation."""


class UnixSocketController(_Threaded, controller.UnixSocketController):
    """`aiosmtpd.controller.UnixSocketController` with our conversation."""


class UnthreadedController(_Unthreaded, controller.UnthreadedController):
    """`aiosmtpd.controller.UnthreadedController` (an event loop of yours) with our conversation."""


class UnixSocketUnthreadedController(_Unthreaded, controller.UnixSocketUnthreadedController):
    """`aiosmtpd.controller.UnixSocketUnthreadedController` with our conversation."""


class _OneContext:
    """The context that the program has; what the configuration says about contexts is for those we make."""

    def __init__(self, given: ssl.SSLContext) -> None:
        self._given = given

    def context(self, *, session_tickets: bool, client_certificates: ClientCertificates) -> ssl.SSLContext:
        return self._given


def _agents(handler: object) -> dict[str, AgentMaker]:
    if handler is None:
        return {}
    # `smtpd` imports no agent: this one is found as if it stood in a configuration.
    around: Callable[[object], AgentMaker] = plugins.find(plugins.AGENTS, "handler").around  # type: ignore[attr-defined]
    return {HANDLER: around(handler)}
