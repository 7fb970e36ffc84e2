"""Deliver to a handler class of aiosmtpd, as it is: what has `handle_DATA` can stand behind this server.

`handler` names a class as "package.module:Class"; one object of it is made at the start, with `arguments`. For every
message `handle_DATA(server, session, envelope)` is called, and what it returns is what the client hears. What is no
reply, an exception, or no answer in time is 451 and a line in the log; then nobody knows whether the handler kept the
message, and the client sends it again.

- The envelope has `mail_from` ("<>" for the empty sender), `rcpt_tos`, `content` and `original_content` (octets, with
  our own header fields on top), `mail_options`, `rcpt_options` and `smtp_utf8`. The message is in memory as a whole, up
  to `concurrency` of them at once.
- The session has `peer`, `host_name`, `extended_smtp`, `ssl`, `authenticated` and `auth_data` (the name of a user who
  logged in, never the password). It lives as long as the message, not as long as the connection.
- The server has `hostname`, `session`, `envelope`, `loop`, `event_handler` and `transport` (None), and nothing else: a
  handler that writes to the client by itself does not work here.

If there is a `handle_RCPT`, it is asked at RCPT. When it returns a 2xx reply the recipient is taken; what it has put
into `envelope.rcpt_tos` meanwhile is what `handle_DATA` finds there, or the recipient as it is when it has put nothing
there. Other hooks (EHLO, HELO, MAIL, RSET, QUIT, AUTH, VRFY, exception) are not called.

Most handlers wait for disks and networks without letting anybody else run; in the event loop that would stall every
connection. So each call runs in a thread of its own with an event loop of its own. A handler that keeps something of an
asyncio library between messages, such as a pool of connections, needs `thread = false`, and must never block. A thread
cannot be stopped from outside: what overruns its `timeout` keeps its place among the `concurrency` until it returns.

Of those that come with aiosmtpd, `Mailbox` and `Debugging` are of use; `Mailbox` says 250 before the message has
reached the disk. `Proxy` says 250 even when the server behind it has refused the message: do not use it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from aiosmtpd.smtp import Envelope
from pydantic import BeforeValidator, Field, model_validator

from delivery_agents.calls import Begin, Calls, Overrun, Queued
from delivery_agents.handler_classes import HandlerError, check_arguments, load_handler
from delivery_agents.handler_views import ServerView, make_envelope, make_session
from delivery_agents.statuses import read_status
from smtpd import replies
from smtpd.delivery import VERIFY_SECONDS, Delivery, DeliveryAgent
from smtpd.model import Message, Recipient, Transaction
from smtpd.options import AgentOptions, Seconds, as_tuple
from smtpd.plugins import BrokenPlugin
from smtpd.replies import Reply, clean
from smtpd.services import Services

_ASKING = VERIFY_SECONDS - 5.0  # seconds for an answer at RCPT: below the limit that the server sets itself


class HandlerOptions(AgentOptions):
    """Options of `handler`."""

    handler: str
    """Class that messages are given to, such as "aiosmtpd.handlers:Mailbox"."""
    arguments: Annotated[tuple[str | int | float | bool, ...], BeforeValidator(as_tuple)] = ()
    """What its constructor is called with, such as ["/var/mail/all"]."""
    timeout: Seconds = 60.0
    """Longest time until the handler has answered, the wait for a free place included."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 10
    """How many calls may run at the same time."""
    thread: bool = True
    """Whether each call runs in a thread of its own, so that a handler may block; false: in the server's event loop."""

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        check_arguments(load_handler(self.handler), self.arguments)
        return self


class Handler(DeliveryAgent):
    """Makes the handler, and calls it."""

    Options: ClassVar[type[HandlerOptions]] = HandlerOptions
    options: HandlerOptions

    def __init__(self, name: str, options: HandlerOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self.options = options
        self.calls = Calls(limit=options.concurrency, in_threads=options.thread)
        self.handler: Any = None
        self.asks = hasattr(self.find_handler(), "handle_RCPT")

    @classmethod
    def around(cls, handler: object) -> partial[GivenHandler]:
        """What makes an agent of a handler that is there already, for `Server(agents=...)`."""
        return partial(GivenHandler, handler)

    def find_handler(self) -> object:
        """Where the hooks can be seen."""
        return load_handler(self.options.handler)

    async def start(self) -> None:
        """Make the handler; BrokenPlugin when that fails."""
        try:
            self.handler = load_handler(self.options.handler)(*self.options.arguments)
        except HandlerError as error:
            raise BrokenPlugin(f"agent {self.name}: handler: {error}") from error
        except Exception as error:  # whatever a stranger's constructor raises
            text = f"{type(error).__name__}: {error}"
            raise BrokenPlugin(f"agent {self.name}: handler: {self.options.handler} cannot be made: {text}") from error

    async def stop(self) -> None:
        """Let the calls come to their end that still may."""
        await self.calls.finish()

    def open(self, mail: Transaction) -> Delivery:
        """One envelope for all that the handler is asked about a message."""
        return HandlerDelivery(self, mail)

    async def call(self, begin: Begin, seconds: float, mail: Transaction) -> object:
        """What a hook returns; TimeoutError when it does not in so many seconds, after a line in the log."""
        try:
            return await self.calls.run(begin, seconds)
        except TimeoutError as late:
            if isinstance(late, Queued | Overrun):
                self.services.log.error("delivery-timed-out", agent=self.name, trace=mail.id, problem=str(late))
            raise

    def judge(self, status: object, mail: Transaction) -> Reply:
        """The reply that a hook has returned; 451 and a line in the log when it is none."""
        reply = read_status(status)
        if reply is None:
            answer = clean(repr(status))
            self.services.log.error("delivery-answer-unusable", agent=self.name, trace=mail.id, answer=answer)
            return replies.OUR_FAULT
        return reply


class GivenOptions(HandlerOptions):
    """Options of a handler that the program around the server has made."""

    handler: str = ""
    """Not used: the handler is there."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 100
    """How many calls may run at the same time."""
    thread: Literal[False] = False
    """It lives in the event loop that the program runs."""

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        return self


class GivenHandler(Handler):
    """Calls a handler that is there already, in the event loop of the server."""

    Options = GivenOptions

    def __init__(self, handler: object, name: str, options: GivenOptions, services: Services) -> None:
        self._given = handler
        super().__init__(name, options, services)

    def find_handler(self) -> object:
        """The handler itself."""
        return self._given

    async def start(self) -> None:
        """Nothing has to be made."""
        self.handler = self._given


class HandlerDelivery(Delivery):
    """One message on its way to the handler."""

    agent: Handler

    def __init__(self, agent: Handler, mail: Transaction) -> None:
        super().__init__(agent, mail)
        self.agent = agent
        self._session = make_session(mail, asyncio.get_running_loop())
        self._show(make_envelope(mail))
        self._taken: dict[Recipient, list[str]] = {}

    async def recipient(self, recipient: Recipient) -> Reply | None:
        """What handle_RCPT says, if there is one."""
        if not self.agent.asks:
            return None
        before = list(self._envelope.rcpt_tos)
        address = recipient.destination.text
        try:
            status = await self.agent.call(
                lambda: self._hook("handle_RCPT", address, []), min(self.agent.options.timeout, _ASKING), self.mail
            )
        except Queued:
            return replies.BACKEND_TIMEOUT
        except Overrun:
            # What it still does to its envelope must not reach the next recipient.
            self._show(copy(self._envelope), before)
            return replies.BACKEND_TIMEOUT
        reply = self.agent.judge(status, self.mail)
        if not reply.is_positive:
            self._envelope.rcpt_tos = before
            return reply
        after = self._envelope.rcpt_tos
        added = after[len(before) :] if after[: len(before)] == before else after
        self._taken[recipient] = [*added] or [address]
        self._envelope.rcpt_tos = before + self._taken[recipient]
        return None

    def _show(self, envelope: Envelope, recipients: Sequence[str] = ()) -> None:
        envelope.rcpt_tos = list(recipients)
        self._envelope = envelope
        self._server = ServerView(self.agent.services.hostname, self.agent.handler, self._session, envelope)

    async def deliver(self, message: Message) -> Reply:
        """What handle_DATA says; for the recipients that are left."""
        try:
            status = await self.agent.call(lambda: self._handle(message), self.agent.options.timeout, self.mail)
        except Queued:
            return replies.BACKEND_TIMEOUT
        except Overrun:
            return replies.OUTCOME_UNKNOWN
        return self.agent.judge(status, self.mail)

    async def _handle(self, message: Message) -> object:
        envelope = self._envelope
        # A filter may have refused some that the handler has taken.
        envelope.rcpt_tos = [
            address
            for recipient in self.mail.recipients
            for address in self._taken.get(recipient) or [recipient.destination.text]
        ]
        content = bytes(message) if self.agent.options.thread else await asyncio.to_thread(bytes, message)
        if len(content) != message.size:
            raise OSError("the message was given up before the call had begun")
        envelope.content = envelope.original_content = content
        return await self._hook("handle_DATA")

    async def _hook(self, name: str, *arguments: object) -> object:
        self._session.loop = asyncio.get_running_loop()
        found = getattr(self.agent.handler, name)(self._server, self._session, self._envelope, *arguments)
        return await found if inspect.isawaitable(found) else found
