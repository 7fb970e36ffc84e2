"""Delivery agents: what they are, how one transaction is handed to them, how their answers become one reply.

Nothing is queued: the client hears 250 after an agent has made the message safe, never before.
Which agent a recipient goes to is decided in `routing.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from smtpd import replies
from smtpd.model import Message, Recipient, Transaction
from smtpd.options import AgentOptions
from smtpd.replies import Reply

if TYPE_CHECKING:
    from smtpd.log import Log
    from smtpd.services import Services

AgentAnswer = Reply | Mapping[Recipient, Reply]
"""What `deliver` returns: one reply for all recipients, or one for each."""

VERIFY_SECONDS = 30.0  # for an agent's answer at RCPT; clients wait five minutes (RFC 5321 §4.5.3.2.3)
MAX_REMEMBERED = 10_000  # answers of `verify` per agent


class DeliveryAgent:
    """Somewhere mail can go. Most agents override `verify` and `deliver`, and nothing else.

    An exception that escapes, sys.exit() among them, is logged and becomes 451: mail is never refused because an
    agent broke.
    """

    Options: ClassVar[type[AgentOptions]] = AgentOptions
    carries_utf8: bool = True
    """Whether addresses and header fields beyond ASCII may be handed over (RFC 6531); it may change at any time."""
    asks: bool = False
    """Whether it has something to say at RCPT: true when `verify` or `open` is overridden; an agent whose
    options make `verify` pointless may set it to False in its `__init__`."""
    opens: bool = False
    """Whether it has a kind of delivery of its own: true when `open` is overridden."""
    remembered: RememberedAnswers | None = None
    """What `verify` said before, when the options allow to remember it."""

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        cls.opens = cls.open is not DeliveryAgent.open
        cls.asks = cls.opens or cls.verify is not DeliveryAgent.verify

    def __init__(self, name: str, options: AgentOptions, services: Services) -> None:
        self.name = name
        self.options = options
        self.services = services
        if options.remember_known or options.remember_unknown:
            self.remembered = RememberedAnswers(
                known=options.remember_known, unknown=options.remember_unknown, clock=time.monotonic
            )

    async def start(self) -> None:
        """Get ready before the first connection; an exception keeps the server from starting."""

    async def stop(self) -> None:
        """Finish what has begun and give everything back."""

    async def health(self) -> str | None:
        """None when mail can be delivered, else one sentence saying why not."""
        return None

    async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
        """Say at RCPT whether the mailbox takes mail: None for yes, else the refusal. Must be cheap."""
        return None

    async def deliver(self, mail: Transaction, message: Message) -> AgentAnswer:
        """Store the message durably for `mail.recipients` (only this agent's): one reply, or one each."""
        raise NotImplementedError(type(self).__name__)

    def open(self, mail: Transaction) -> Delivery:
        """Begin a delivery at the first recipient; override to talk to a server while the conversation goes on."""
        return Delivery(self, mail)


class Delivery:
    """One agent's share of one transaction; this default is built from `verify` and `deliver`."""

    def __init__(self, agent: DeliveryAgent, mail: Transaction) -> None:
        self.agent = agent
        self.mail = mail

    async def recipient(self, recipient: Recipient) -> Reply | None:
        """Ask for one recipient at RCPT: None when it is taken, else the refusal.

        A filter may still refuse it afterwards: only `mail.recipients` counts when it comes to `deliver`.
        """
        return await self.agent.verify(recipient, self.mail)

    async def deliver(self, message: Message) -> AgentAnswer:
        """Hand the message over for the recipients of `mail`."""
        return await self.agent.deliver(self.mail, message)

    async def abandon(self) -> None:
        """The transaction ended without delivery."""


class Deliveries:
    """All agents' shares of one transaction, made at its first recipient."""

    __slots__ = ("_agents", "_log", "_mail", "_opened")

    def __init__(self, agents: Mapping[str, DeliveryAgent], mail: Transaction, log: Log) -> None:
        self._agents = agents
        self._mail = mail
        self._log = log
        self._opened: dict[str, tuple[Delivery, Transaction]] | None = None

    @property
    def opened(self) -> bool:
        """Whether an agent has been asked for a recipient, and must hear when the transaction is given up."""
        return self._opened is not None

    def asks(self, recipient: Recipient) -> bool:
        """Whether its agent wants to hear of it at RCPT, by `add`; else its delivery is opened with the message."""
        agent = self._agents.get(recipient.agent)
        return agent is None or agent.asks

    async def add(self, recipient: Recipient) -> Reply | None:
        """Ask the recipient's agent: None when it takes mail for it, else the refusal (451 when the agent broke)."""
        try:
            async with asyncio.timeout(VERIFY_SECONDS):
                return await self._ask(self._agents[recipient.agent], recipient)
        except asyncio.CancelledError as exception:
            return self._cancelled(recipient.agent, exception)
        except TimeoutError as exception:
            self._failed(recipient.agent, exception)
            return replies.BACKEND_TIMEOUT
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as exception:
            return self._failed(recipient.agent, exception)

    def deliver(self, message: Message) -> Coroutine[Any, Any, dict[Recipient, Reply]]:
        """Hand the message to every agent at once; every recipient of the transaction has an answer."""
        recipients = self._mail.recipients
        if recipients and self._opened is None:
            name = recipients[0].agent
            if len(recipients) == 1 or all(recipient.agent == name for recipient in recipients):
                # The transaction holds this agent's recipients and no others: no view needed.
                return self._hand_over(name, None, self._mail, message)
        return self._hand_over_shares(message)

    async def _hand_over_shares(self, message: Message) -> dict[Recipient, Reply]:
        opened, self._opened = self._opened, None
        shares = self._share(opened or {})
        for unused in (opened or {}).keys() - shares.keys():
            await self._abandon(unused, (opened or {})[unused][0])
        handed = [self._hand_over(name, *share, message) for name, share in shares.items()]
        answers = [await handed[0]] if len(handed) == 1 else await asyncio.gather(*handed)
        return {recipient: reply for answer in answers for recipient, reply in answer.items()}

    async def abandon(self) -> None:
        """The transaction ended without delivery; after `deliver` this does nothing."""
        opened, self._opened = self._opened, None
        for name, (delivery, _) in (opened or {}).items():
            await self._abandon(name, delivery)

    async def _ask(self, agent: DeliveryAgent, recipient: Recipient) -> Reply | None:
        remembered = agent.remembered
        address = recipient.destination.text
        if remembered is not None:
            found, reply = remembered.get(address)
            # A server behind `open` has to hear of every recipient, so only its refusals are final here.
            if found and (reply is not None or not agent.opens):
                return reply
        if self._opened is None:
            self._opened = {}
        if agent.name not in self._opened:
            view = replace(self._mail, recipients=[])
            self._opened[agent.name] = agent.open(view), view
        delivery, view = self._opened[agent.name]
        answer: object = await delivery.recipient(recipient)
        reply = answer if isinstance(answer, Reply) and _is_final(answer) else None
        if reply is None and answer is not None:
            return self._nonsense(agent.name, answer)
        if reply is not None and reply.is_positive:
            reply = None
        if reply is None:
            view.recipients.append(recipient)
        if remembered is not None:
            remembered.put(address, reply)
        return reply

    def _share(self, opened: dict[str, tuple[Delivery, Transaction]]) -> dict[str, tuple[Delivery | None, Transaction]]:
        """Give each agent a transaction that holds its own recipients only, and what was learned since RCPT."""
        shares: dict[str, tuple[Delivery | None, Transaction]] = {}
        for recipient in self._mail.recipients:
            name = recipient.agent
            if name not in shares:
                delivery, view = opened.get(name) or (None, replace(self._mail))
                _renew(view, self._mail)
                shares[name] = delivery, view
            shares[name][1].recipients.append(recipient)
        return shares

    async def _hand_over(
        self, name: str, delivery: Delivery | None, mail: Transaction, message: Message
    ) -> dict[Recipient, Reply]:
        answer: object
        recipients = mail.recipients.copy()
        try:
            if delivery is None:
                agent = self._agents[name]
                answer = await (agent.open(mail).deliver(message) if agent.opens else agent.deliver(mail, message))
            else:
                answer = await delivery.deliver(message)
        except asyncio.CancelledError as exception:
            answer = self._cancelled(name, exception)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as exception:
            answer = self._failed(name, exception)
        if isinstance(answer, Reply) and _is_final(answer) and mail.recipients == recipients:
            return dict.fromkeys(recipients, answer)
        if isinstance(answer, Mapping):
            return {recipient: self._answer_for(recipient, answer, name) for recipient in recipients}
        reply = answer if isinstance(answer, Reply) and _is_final(answer) else self._nonsense(name, answer)
        if reply.is_positive:  # whom it struck off the list it may have served, or given up: they are tried again
            struck = [recipient for recipient in recipients if recipient not in mail.recipients]
            return dict.fromkeys(recipients, reply) | {one: self._nonsense(name, None, one) for one in struck}
        return dict.fromkeys(recipients, reply)

    def _answer_for(self, recipient: Recipient, answers: Mapping[Recipient, object], agent: str) -> Reply:
        try:
            reply = answers.get(recipient)
        except Exception as exception:
            return self._failed(agent, exception)
        return reply if isinstance(reply, Reply) and _is_final(reply) else self._nonsense(agent, reply, recipient)

    async def _abandon(self, name: str, delivery: Delivery) -> None:
        try:
            async with asyncio.timeout(VERIFY_SECONDS):
                await delivery.abandon()
        except asyncio.CancelledError as exception:
            self._cancelled(name, exception)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as exception:
            self._failed(name, exception)

    def _failed(self, agent: str, exception: BaseException) -> Reply:
        self._log.error("delivery-failed", agent=agent, trace=self._mail.id, exception=exception)
        return replies.OUR_FAULT

    def _cancelled(self, agent: str, exception: asyncio.CancelledError) -> Reply:
        """Tell our own cancellation from one that happened inside the agent, which is a failure like any other."""
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise exception
        return self._failed(agent, exception)

    def _nonsense(self, agent: str, answer: object, recipient: Recipient | None = None) -> Reply:
        try:
            text = repr(answer)
        except Exception:  # it is somebody else's
            text = f"a {type(answer).__name__}"
        if recipient is not None:
            text += f" for {recipient.address}"
        self._log.error("delivery-answer-unusable", agent=agent, trace=self._mail.id, answer=text)
        return replies.OUR_FAULT


class RememberedAnswers:
    """What an agent's `verify` said, for a while: known recipients, and unknown ones (5.1.1), nothing else.

    Temporary refusals and full mailboxes are never remembered. `known` and `unknown` are seconds, 0 for never;
    `clock` gives monotonic seconds.
    """

    __slots__ = ("_answers", "_clock", "_known", "_unknown")

    def __init__(self, *, known: float, unknown: float, clock: Callable[[], float]) -> None:
        self._known = known
        self._unknown = unknown
        self._clock = clock
        self._answers: dict[str, tuple[float, Reply | None]] = {}

    def get(self, address: str) -> tuple[bool, Reply | None]:
        """Whether something is remembered, and if so what: None for a known recipient, else the refusal."""
        entry = self._answers.get(address)
        if entry is None:
            return False, None
        if entry[0] <= self._clock():
            del self._answers[address]
            return False, None
        return True, entry[1]

    def put(self, address: str, reply: Reply | None) -> None:
        """Remember an answer if it is one of the kinds that may be; the oldest goes when there are too many."""
        if reply is None:
            seconds = self._known
        elif reply.code == 550 and reply.status == "5.1.1":
            seconds = self._unknown
        else:
            seconds = 0.0
        self._answers.pop(address, None)
        if not seconds:
            return
        if len(self._answers) >= MAX_REMEMBERED:
            del self._answers[next(iter(self._answers))]
        self._answers[address] = self._clock() + seconds, reply


# What one client hears when its recipients fared differently. The first line that fits counts:
#
#   outcomes                         reply
#   ------------------------------   ------------------------------------------------------------------
#   all of one class                 that reply (of several, the first)
#   some 2xx, some 4xx               451: the retry delivers to the rest
#   some 2xx, some 5.1.x or 5.2.x    451: on the retry those hear their 5xx at RCPT
#   some 2xx, other 5xx              550 naming the refused
#   4xx and 5xx, no 2xx              451
#
# A backend lost after the final dot answers 451 for its recipients and falls under the lines above.
# With PRDR every recipient has heard its own reply already, so as soon as one has the message the last
# reply is 250: there is nothing left to try again for the transaction as a whole.
def combine(outcomes: Mapping[Recipient, Reply], *, prdr: bool) -> Reply:
    """Make one reply of the recipients' replies."""
    if len(outcomes) == 1:
        (reply,) = outcomes.values()
        return reply
    answers = list(outcomes.values())
    taken = [reply for reply in answers if reply.is_positive]
    if taken and (prdr or len(taken) == len(answers)):
        return taken[0]
    deferred = [reply for reply in answers if reply.is_temporary]
    refused = [reply for reply in answers if reply.is_permanent]
    if len(deferred) == len(answers) or len(refused) == len(answers):
        return answers[0] if answers else replies.OUR_FAULT
    if deferred:
        return _quoting(deferred[0], replies.SOME_DEFERRED)
    for reply in refused:
        if reply.status.startswith(("5.1.", "5.2.")):
            return _quoting(reply, replies.SOME_DEFERRED)
    names = ", ".join(recipient.address.text for recipient, reply in outcomes.items() if reply.is_permanent)
    return _quoting(refused[0], replies.SOME_REFUSED(recipients=names))


def _quoting(reason: Reply, reply: Reply) -> Reply:
    """The reply with another one as its reason, and with the name of the filter that spoke that one."""
    by = reason.values.get("filter")
    return reply(reason=reason.message, filter=by) if by else reply(reason=reason.message)


def _is_final(reply: Reply) -> bool:
    return reply.code // 100 in (2, 4, 5)


def _renew(view: Transaction, mail: Transaction) -> None:
    """Copy what filters have found since the view was made; its recipients start anew."""
    for name in _FIELDS:
        setattr(view, name, getattr(mail, name))
    view.recipients = []


_FIELDS = tuple(field.name for field in fields(Transaction))
