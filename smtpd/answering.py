"""How a conversation answers: it says, refuses, leaves; and what it forgets when a transaction is over."""

from __future__ import annotations

from smtpd import replies
from smtpd.account import Account
from smtpd.channel import Channel
from smtpd.content import Receiver
from smtpd.delivery import Deliveries
from smtpd.model import Recipient, Session, Transaction
from smtpd.outcome import Outcome
from smtpd.replies import Reply
from smtpd.service import Service
from smtpd.unread import Unread

TRIES = 10  # times `max_recipients`: RCPT commands of one transaction that filters and agents are asked about


class InFlight:
    """All that lives from MAIL to the reply behind the data."""

    __slots__ = ("accepted", "asked", "deliveries", "mail", "receiver", "reminded")

    def __init__(self, mail: Transaction, deliveries: Deliveries) -> None:
        self.mail = mail
        self.asked = 0
        self.accepted: list[Recipient] = []
        """One entry for each RCPT that was accepted, so the same recipient may stand there twice."""
        self.reminded: list[Recipient] = []
        """Who heard at RCPT how an earlier attempt of the message was refused for him."""
        self.deliveries = deliveries
        self.receiver: Receiver | None = None
        """Where content goes; a ChunkReceiver from the first BDAT on."""

    def takes_another(self, limit: int) -> bool:
        """Count one RCPT; False when there are recipients enough, or when far too many were put off."""
        self.asked += 1
        return len(self.mail.recipients) < limit and self.asked <= limit * TRIES

    def known(self, recipient: Recipient) -> Recipient | None:
        """The recipient with this very address, when it was accepted before."""
        text = recipient.address.text
        return next((known for known in self.mail.recipients if known.address.text == text), None)

    @property
    def answers_each(self) -> bool:
        """Whether each recipient hears a reply of its own: LMTP, and PRDR as Exim does it, with several."""
        return self.mail.session.lmtp or (self.mail.prdr and len(self.accepted) > 1)


class Answering:
    """The state of a conversation, and its voice."""

    __slots__ = (
        "account", "began", "channel", "in_flight", "is_over", "is_welcome", "may_xclient", "service", "session",
        "unread", "verb",
    )  # fmt: skip

    def __init__(self, channel: Channel, session: Session, service: Service) -> None:
        self.channel = channel
        self.session = session
        self.service = service
        session.lmtp = service.switches.lmtp
        self.account = Account(session, service)
        self.in_flight: InFlight | None = None
        self.unread: list[Unread] = []
        """Messages that were taken; the client has not shown yet that it knows."""
        self.verb = ""
        """The command that is carried out; "" for one that we do not know."""
        self.began = 0.0
        """When it could be begun with, seconds of `perf_counter`; for content that is when its end had come."""
        self.is_over = False
        self.is_welcome = True
        """Whether commands are carried out; False once the connection was refused, until QUIT."""
        self.may_xclient = service.may_xclient(session.ip)

    @property
    def _mail(self) -> Transaction | None:
        return self.in_flight.mail if self.in_flight is not None else None

    def _say(self, reply: Reply, tag: str = "") -> None:
        texts = self.service.texts
        self.channel.write(reply.encode(tag, texts) if tag or texts else reply.plain)

    def _refuse(self, reply: Reply, address: object = None, *, traced: bool = False, logged: bool = False) -> None:
        """Say no, count it, and hang up on a client that is told so too often."""
        traced = traced or (self.verb in ("MAIL", "RCPT") and not reply.is_syntax_error)
        if traced and not logged:
            self.account.refused(reply, self.verb, self._mail, address)
        self._say(reply, self.account.tag(reply, self._mail) if traced else "")
        self.session.errors += reply.is_permanent
        if reply.code == 421:
            self.is_over = True
        elif self._errs_too_often:
            self._leave(replies.TOO_MANY_ERRORS)

    def _refuse_sender(self, reply: Reply, mail: Transaction) -> None:
        """Say no to MAIL: there is no transaction, and the filters hear of no end."""
        self._refuse(reply)
        self.service.policy.abort(mail)
        self.in_flight = None
        self.channel.burst = 0

    @property
    def _errs_too_often(self) -> bool:
        limit = self.service.config.limits.errors_per_session
        # An MTA that hands over what others sent keeps its connection, however much of it is refused.
        return bool(limit) and self.session.errors > limit and not self.is_over and not self.session.lmtp

    def _answer(self, in_flight: InFlight, outcome: Outcome) -> None:
        """Say how the message fared: once, or for each recipient (RFC 2033 §4.2, PRDR) and then once (PRDR)."""
        reply, mail = outcome.reply, in_flight.mail
        if in_flight.answers_each and (outcome.each is not None or mail.session.lmtp):
            if not mail.session.lmtp:
                self._say(replies.EACH_RECIPIENT)
            for recipient in in_flight.accepted:
                one = reply if outcome.each is None else outcome.each[recipient]
                self._say(one, self.account.tag(one, mail))
            if mail.session.lmtp:
                return
        if reply.is_positive:
            self._say(reply, mail.id)
        else:
            self._refuse(reply, traced=True, logged=True)

    def _keep_until_read(self, unread: Unread | None) -> None:
        """One message was answered; only the last one needs its content, or a burst could fill memory or disk."""
        if unread is not None:
            if self.unread:
                self.unread[-1].shrink()
            self.unread.append(unread)

    def _note_what_was_read(self) -> None:
        """The client goes on: has it read what became of its messages?"""
        if self.channel.was_read(self.unread[-1].flushes):
            for unread in self.unread:
                unread.confirm()
            self.unread.clear()

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
        if outcome is None and self.channel.pending:
            self.channel.burst = 0  # filters were asked for nothing, and a thousand such transactions fit in one piece
        if in_flight.receiver is not None:
            in_flight.receiver.content.close()
        service = self.service
        if in_flight.mail.pending is not None:
            service.policy.abort(in_flight.mail)
        if in_flight.deliveries.opened:
            service.spawn(in_flight.deliveries.abandon())
        if service.policy.watches_end:
            service.spawn(service.policy.end(in_flight.mail, outcome))

    def _begin_again(self, session: Session) -> None:
        """Leave the session to the filters that want to see it end, and go on with another."""
        if self.service.policy.watches_close:
            self.service.spawn(self.service.policy.close(self.session))
        self.account.closed()
        self.session = session
        self.account = Account(session, self.service)

    def _finish(self) -> None:
        self._forget_mail()
        if self.unread:
            self._note_what_was_read()
        for unread in self.unread:
            self.service.spawn(unread.remember())
        if self.service.policy.watches_close:
            self.service.spawn(self.service.policy.close(self.session))
        self.account.closed()
        self.channel.close()

    def _login_failed(self, mechanism: str, reply: Reply, user: str) -> None:
        self.account.login(mechanism, reply, user)
        # What cannot be checked counts, too: each try is a line in the log, and 454 is no error of the client.
        self.session.auth_failures += reply in (replies.AUTH_FAILED, replies.AUTH_BACKEND_DOWN)
        self._refuse(reply)
        limit = self.service.config.limits.auth_failures_per_session
        if limit and self.session.auth_failures >= limit and not self.is_over:
            self._leave(replies.TOO_MANY_AUTH_FAILURES)
