"""How a conversation answers: it says, refuses, leaves; and what it forgets when a transaction is over."""

from __future__ import annotations

from smtpd import replies
from smtpd.account import Account
from smtpd.channel import Channel
from smtpd.content import Receiver
from smtpd.delivery import Deliveries
from smtpd.model import Session, Transaction
from smtpd.replies import Reply
from smtpd.service import Service

TRIES = 10  # times `max_recipients`: RCPT commands of one transaction that filters and agents are asked about


class InFlight:
    """All that lives from MAIL to the reply behind the data."""

    __slots__ = ("asked", "deliveries", "mail", "receiver")

    def __init__(self, mail: Transaction, deliveries: Deliveries) -> None:
        self.mail = mail
        self.asked = 0
        self.deliveries = deliveries
        self.receiver: Receiver | None = None
        """Where content goes; a ChunkReceiver from the first BDAT on."""

    def takes_another(self, limit: int) -> bool:
        """Count one RCPT; False when there are recipients enough, or when far too many were put off."""
        self.asked += 1
        return not limit or (len(self.mail.recipients) < limit and self.asked <= limit * TRIES)


class Answering:
    """The state of a conversation, and its voice."""

    __slots__ = ("account", "channel", "clock", "in_flight", "is_over", "is_welcome", "service", "session", "verb")

    def __init__(self, channel: Channel, session: Session, service: Service) -> None:
        self.channel = channel
        self.session = session
        self.service = service
        self.account = Account(session, service)
        self.in_flight: InFlight | None = None
        self.verb = ""
        self.clock = 0.0
        self.is_over = False
        self.is_welcome = True

    @property
    def _mail(self) -> Transaction | None:
        return self.in_flight.mail if self.in_flight is not None else None

    def _say(self, reply: Reply, tag: str = "") -> None:
        self.channel.write(reply.encode(tag, self.service.texts))

    def _refuse(self, reply: Reply, address: object = None, *, traced: bool = False, logged: bool = False) -> None:
        """Say no, count it, and hang up on a client that is told so too often."""
        traced = traced or (self.verb in ("MAIL", "RCPT") and not reply.is_syntax_error)
        if traced and not logged:
            self.account.refused(reply, self.verb, self._mail, address)
        self._say(reply, self.account.tag(reply, self._mail) if traced else "")
        self.session.errors += reply.is_permanent
        limit = self.service.config.limits.errors_per_session
        if reply.code == 421:
            self.is_over = True
        elif limit and self.session.errors > limit and not self.is_over:
            self._leave(replies.TOO_MANY_ERRORS)

    def _leave(self, reply: Reply) -> None:
        """RFC 5321 §3.8: 421 may answer anything, and the connection is over."""
        reply = reply(hostname=self.service.config.hostname)
        self.account.left(reply, self._mail)
        self._say(reply, self.account.tag(reply, self._mail))
        self.is_over = True

    def _forget_mail(self, outcome: Reply | None = None) -> None:
        in_flight, self.in_flight = self.in_flight, None
        if in_flight is None:
            return
        if in_flight.receiver is not None:
            in_flight.receiver.content.close()
        self.service.policy.abort(in_flight.mail)
        if in_flight.deliveries.opened:
            self.service.spawn(in_flight.deliveries.abandon())
        if self.service.policy.watches_end:
            self.service.spawn(self.service.policy.end(in_flight.mail, outcome))

    def _finish(self) -> None:
        self._forget_mail()
        if self.service.policy.watches_close:
            self.service.spawn(self.service.policy.close(self.session))
        self.account.closed()
        self.channel.close()
