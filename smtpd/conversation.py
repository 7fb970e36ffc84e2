"""One SMTP conversation from greeting to QUIT, top to bottom, in the order of RFC 5321.

Each command is one method: guard, parse, judge, answer. How octets come and go is `channel.py`, what
they mean is `commands.py`, what filters think is `policy`, where mail goes is `delivery.py`, what we
say is `replies.py`, how it is said `answering.py`, and what is counted and logged of it `account.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter

from smtpd import auth, commands, replies, xclient
from smtpd.answering import Answering, InFlight
from smtpd.content import ChunkReceiver, DataReceiver, Receiver, SkippedChunk
from smtpd.delivery import Deliveries
from smtpd.endings import Disconnected, Draining, Ended, Foreign, TimedOut
from smtpd.handover import Handover
from smtpd.model import Message, Recipient, Transaction
from smtpd.outcome import Outcome
from smtpd.replies import Refused, Reply
from smtpd.sasl import Exchange

NO_EXTENSIONS: frozenset[str] = frozenset()  # RFC 5321 §4.1.1.1: after HELO
DRAIN_SECONDS = 30.0  # how long a client may go on sending content that will be refused anyway


class Conversation(Answering):
    """Speaks SMTP over a channel, for one session, under the rules of one service."""

    __slots__ = ()

    async def run(self) -> None:
        """From the greeting to the end; the one place where an exception becomes a reply."""
        step = self.greet
        try:
            while not self.is_over:
                try:
                    await step()
                except Refused as refusal:
                    self._refuse(refusal.reply)
                except Ended:
                    raise
                except Exception as bug:
                    self._refuse(self.account.bug(bug, self._mail), traced=True, logged=True)
                    self.is_over |= self.session.lmtp  # RFC 2033 §4.2: it may wait for a reply for each recipient
                    self._forget_mail()
                step = self.command if self.is_welcome else self.turn_away
        except Draining:
            self._leave(replies.SHUTTING_DOWN)
        except TimedOut as event:
            self._leave(replies.TOO_SLOW if event.too_slow else replies.TIMEOUT)
        except Disconnected:
            self.account.vanished(self._mail)
        except Foreign as event:
            self.account.dropped(event.protocol)
        finally:
            self._finish()

    async def greet(self) -> None:
        """RFC 5321 §3.1: the banner, or a refusal of the whole connection."""
        service = self.service
        if service.switches.tls == "implicit" and self.session.tls is None:  # RFC 8314 §3.3
            self.session.tls = await self.channel.start_tls()
            self.account.secured(self.session.tls)
        if not service.policy.connect.idle and (reply := await self.channel.run(service.policy.connect(self.session))):
            self.account.refused(reply, "CONNECT")
            if reply.is_temporary:
                self._leave(replies.NO_SERVICE_NOW)
            else:
                self._say(replies.NO_SERVICE(hostname=service.config.hostname))
            self.is_welcome = False
            return
        if service.greet_delay:
            await self.channel.listen(service.greet_delay)
        self.session.early = self.channel.pending
        self.channel.write(service.greeting)

    async def turn_away(self) -> None:
        """RFC 5321 §3.1: whoever was greeted with 554 hears 503 until QUIT."""
        line = await self.channel.line(self.service.config.timeouts.command, True)
        if commands.split(line)[0] != "QUIT":
            raise Refused(replies.NO_SERVICE_COMMAND)
        await self.quit(b"")

    async def command(self) -> None:
        """One line: find its method, see that its turn has come, time it."""
        service = self.service
        line = await self.channel.line(service.config.timeouts.command, self.in_flight is None)
        if self.unread:
            self._note_what_was_read()
        self.verb = ""
        if not (self.session.esmtp and service.switches.pipelining) and self.channel.pending:
            self.session.early = True  # RFC 2920 §3.1: nobody allowed it to go on
        verb, argument = commands.split(line)
        method = METHODS.get(verb)
        if method is None:
            raise commands.unknown(line)
        self.verb = verb
        if service.gated and (reply := service.gate(verb, self.session)):
            raise Refused(reply)
        self.began = perf_counter()
        try:
            await method(self, argument)
        finally:
            service.meters.commands[verb](perf_counter() - self.began)

    async def lhlo(self, argument: bytes) -> None:
        """RFC 2033 §4.1: what LMTP has in the place of EHLO."""
        await self.ehlo(argument)

    async def ehlo(self, argument: bytes) -> None:
        """RFC 5321 §4.1.1.1."""
        await self._introduce(argument, esmtp=True)
        self.channel.write(self.service.ehlo(self.session, may_xclient=self.may_xclient))

    async def helo(self, argument: bytes) -> None:
        """RFC 5321 §4.1.1.1: no extension is in force afterwards."""
        await self._introduce(argument, esmtp=False)
        self._say(replies.HELO(hostname=self.service.config.hostname))

    async def _introduce(self, argument: bytes, *, esmtp: bool) -> None:
        policy, session = self.service.policy, self.session
        if session.lmtp != (self.verb == "LHLO"):
            raise Refused(replies.UNKNOWN_COMMAND)  # RFC 2033 §4.1
        name = commands.parse_helo(self.verb, argument)
        self._forget_mail()  # RFC 5321 §4.1.4
        session.early |= self.channel.pending  # RFC 2920 §3.1: EHLO ends a group
        session.helo, session.esmtp = name, esmtp
        if policy.helo.idle:
            return
        policy.forget_helo(session)
        if reply := await self.channel.run(policy.helo(session)):
            session.helo = ""
            raise Refused(reply)

    async def starttls(self, argument: bytes) -> None:
        """RFC 3207 §4: afterwards nothing counts that the client said before."""
        commands.no_argument("STARTTLS", argument)
        if self.session.tls is not None:
            raise Refused(replies.TLS_ACTIVE)
        if not self.service.can_start_tls:
            raise Refused(replies.TLS_UNAVAILABLE if self.service.switches.tls == "starttls" else replies.NOT_OFFERED)
        if self.channel.pending:  # CVE-2011-0411: it would be executed as if it had come encrypted
            self.account.dropped("tls-injection")
            self.is_over = True
            raise Refused(replies.TLS_INJECTION)
        self._forget_mail()
        self._say(replies.READY_FOR_TLS)
        self.session.tls = await self.channel.start_tls()
        self.session.forget_claims()
        self.account.secured(self.session.tls)

    async def auth(self, argument: bytes) -> None:
        """RFC 4954 §4."""
        self.session.early |= self.channel.pending  # RFC 2920 §3.1: it ends a group; VRFY, NOOP and EXPN do, too
        authenticator = self.service.authenticator
        if authenticator is None:
            raise Refused(replies.NOT_OFFERED)
        if not self.session.esmtp:
            raise Refused(replies.EHLO_FOR_EXTENSION)
        if self.session.login is not None:
            raise Refused(replies.AUTH_DONE)
        if self.in_flight is not None:
            raise Refused(replies.AUTH_IN_TRANSACTION)
        command = commands.parse_auth(argument)
        mechanism = auth.find_mechanism(command.mechanism, tls=self.session.tls is not None)
        exchange = Exchange(self.channel, self.service.config.timeouts.auth, self.session.ip_text)
        try:
            initial = None if command.initial is None else auth.decode_initial(command.initial)
            login = await mechanism.authenticate(exchange, initial, authenticator)
        except Refused as refusal:
            self._login_failed(mechanism.name, refusal.reply, exchange.user)
            return
        self.session.login, self.session.mechanism = login, mechanism.name
        self.account.login(mechanism.name, replies.AUTH_OK)
        self._say(replies.AUTH_OK)

    async def xclient(self, argument: bytes) -> None:
        """Postfix, XCLIENT_README: a trusted program names the client; back to the greeting."""
        if not self.may_xclient:
            raise Refused(replies.XCLIENT_DENIED)
        if self.in_flight is not None:
            raise Refused(replies.XCLIENT_IN_TRANSACTION)
        command = xclient.parse_xclient(argument)
        session = xclient.successor(self.session, command, self.service.trusts)
        if not self.service.policy.helo.idle:
            session.helo = ""  # or MAIL could follow without any filter having seen the name
        if reply := self.channel.readdress(session.ip_text):
            self._leave(reply)
            return
        self._begin_again(session)
        await self.greet()

    async def mail(self, argument: bytes) -> None:
        """RFC 5321 §4.1.1.2."""
        service, session = self.service, self.session
        if not session.helo:
            raise Refused(replies.LHLO_FIRST if session.lmtp else replies.HELO_FIRST)
        if self.in_flight is not None:
            raise Refused(replies.NESTED_MAIL)
        if service.max_transactions and session.transactions >= service.max_transactions:
            self._leave(replies.TOO_MANY_MESSAGES)  # RFC 9422 §4.1, MAILMAX
            return
        extensions = service.extensions if session.esmtp else NO_EXTENSIONS
        command = commands.parse_mail(argument, extensions, service.config.strict_syntax)
        if command.smtputf8 and not service.offers_utf8:
            raise Refused(replies.UNKNOWN_PARAMETER(parameter="SMTPUTF8"))
        session.transactions += 1
        mail, reply = Transaction.begin(command, session), None
        self.in_flight = InFlight(mail, Deliveries(service.agents, mail, service.log))
        if service.max_message_size and (command.size or 0) > service.max_message_size:
            reply = replies.TOO_BIG(limit=service.max_message_size)  # RFC 1870 §6.1
        elif not service.policy.mail.idle:
            reply = await self.channel.run(service.policy.mail(mail))
        if reply is not None:
            self._refuse_sender(reply, mail)
            return
        self._say(replies.SENDER_OK)

    async def rcpt(self, argument: bytes) -> None:
        """RFC 5321 §4.1.1.3."""
        if self.in_flight is None:
            raise Refused(replies.MAIL_FIRST)
        if self.in_flight.receiver is not None:
            raise Refused(replies.RCPT_AFTER_BDAT)
        mail, service = self.in_flight.mail, self.service
        command = commands.parse_rcpt(argument, mail.smtputf8, service.config.strict_syntax)
        if not self.in_flight.takes_another(service.max_recipients):
            raise Refused(replies.TOO_MANY_RECIPIENTS)
        if mail.sender.is_null and mail.recipients and service.config.null_sender_single_recipient:
            raise Refused(replies.NULL_SENDER_ONE_RECIPIENT)
        recipient = service.router.route(command.recipient, authenticated=self.session.login is not None)
        reply = recipient if isinstance(recipient, Reply) else await self._judge_recipient(self.in_flight, recipient)
        if reply is not None:
            self._refuse(reply, command.recipient)
        else:
            self._say(replies.RECIPIENT_OK)

    async def _judge_recipient(self, in_flight: InFlight, recipient: Recipient) -> Reply | None:
        """Take the recipient, or say why not; who is asked in which order is the third part of docs/flow.md."""
        mail, service, policy = in_flight.mail, self.service, self.service.policy
        if mail.smtputf8 and not service.agents[recipient.agent].carries_utf8:
            return replies.CANNOT_CARRY_UTF8(address=recipient.address)
        if mail.recipients:
            if known := in_flight.known(recipient):
                in_flight.accepted.append(known)
                return None
            if service.splits and recipient.agent != mail.recipients[0].agent:
                return replies.ANOTHER_STORE(address=recipient.address)
        if not policy.recipient.idle and (reply := await self.channel.run(policy.recipient(mail, recipient))):
            return reply
        if service.journal.may_refuse(mail.sender.text, recipient) and (
            reply := await self.channel.run(service.journal.refusal(mail.session, mail.sender.text, recipient))
        ):
            in_flight.reminded.append(recipient)
            return reply
        if in_flight.deliveries.asks(recipient) and (
            reply := await self.channel.run(in_flight.deliveries.add(recipient))
        ):
            return reply
        if not policy.known_recipient.idle and (
            reply := await self.channel.run(policy.known_recipient(mail, recipient))
        ):
            return reply
        mail.recipients.append(recipient)
        in_flight.accepted.append(recipient)
        return None

    async def data(self, argument: bytes) -> None:
        """RFC 5321 §4.1.1.4."""
        commands.no_argument("DATA", argument)
        in_flight = self._with_recipients()
        if in_flight.receiver is not None:
            raise Refused(replies.DATA_AFTER_BDAT)  # RFC 3030 §3
        self.session.early |= self.channel.pending  # RFC 2920 §3.1: DATA ends a group
        self._say(replies.SEND_DATA)
        receiver = in_flight.receiver = self.service.receiver(DataReceiver)
        await self._receive(receiver)
        await self._message(in_flight, receiver)

    async def bdat(self, argument: bytes) -> None:
        """RFC 3030 §2: the octets are always read, even when the chunk is refused."""
        try:
            command = commands.parse_bdat(argument)
        except Refused:
            self.is_over = True  # where the next command starts is anybody's guess
            raise
        try:
            in_flight = self._with_chunks()
            receiver = in_flight.receiver
            assert isinstance(receiver, ChunkReceiver)
        except Refused:
            skipped = self.service.receiver(SkippedChunk)
            skipped.expect(command.size)
            await self._receive(skipped)
            raise
        receiver.expect(command.size)
        await self._receive(receiver)
        if command.last or receiver.found_bare_line_end:
            await self._message(in_flight, receiver)
        elif receiver.problem is not None:
            self._refuse(receiver.problem, traced=True)
        else:
            self._say(replies.CHUNK_OK(size=command.size))

    async def _receive(self, receiver: Receiver) -> None:
        config = self.service.config
        self.is_over = True  # unless the end is found: nobody may take content for commands
        if not receiver.complete:
            await self.channel.receive(receiver, config.timeouts.data, config.limits.min_data_rate)
        if receiver.hopeless:  # RFC 1870 §6.3: whoever is cut off while sending sees no reply, and tries for days
            await self.channel.drain(receiver.to_its_end(), DRAIN_SECONDS)
        self.is_over = not receiver.complete

    async def _message(self, in_flight: InFlight, receiver: Receiver) -> None:
        """RFC 5321 §6.1: 250 only after an agent has made the message safe."""
        self.began = perf_counter()
        mail, content = in_flight.mail, receiver.content
        reply = receiver.finish()
        size = receiver.octets if receiver.problem is not None else content.size
        handover = Handover(self, in_flight, Message(content))
        outcome = await handover.run() if reply is None else Outcome(reply)
        self.account.message(mail, outcome, size=size, seconds=perf_counter() - self.began)
        self._answer(in_flight, outcome)
        self._keep_until_read(handover.unread(outcome))
        if receiver.found_bare_line_end:  # what follows may be smuggled: nothing of it is read as a command
            self.is_over = True
            await self.channel.drain(receiver, DRAIN_SECONDS)
        self._forget_mail(outcome.reply)

    async def rset(self, argument: bytes) -> None:
        """RFC 5321 §4.1.1.5: EHLO, AUTH and TLS stay."""
        commands.no_argument("RSET", argument)
        self._forget_mail()
        self._say(replies.OK)

    async def vrfy(self, argument: bytes) -> None:
        """RFC 5321 §7.3: nobody can harvest addresses here."""
        self.session.early |= self.channel.pending
        if not argument:
            raise Refused(replies.BAD_ARGUMENT(syntax="VRFY address"))
        self._say(replies.CANNOT_VERIFY)

    async def help(self, argument: bytes) -> None:
        """RFC 5321 §4.1.1.8."""
        self._say(replies.HELP)

    async def noop(self, argument: bytes) -> None:
        """RFC 5321 §4.1.1.9: an argument is fine."""
        self.session.early |= self.channel.pending
        self._say(replies.OK)

    async def quit(self, argument: bytes) -> None:
        """RFC 5321 §4.1.1.10: commands behind it are ignored."""
        commands.no_argument("QUIT", argument)
        self._say(replies.BYE)
        self.is_over = True

    async def not_offered(self, argument: bytes) -> None:
        """Commands that exist, but not here."""
        self.session.early |= self.channel.pending
        raise Refused(replies.NOT_OFFERED)

    def _with_recipients(self) -> InFlight:
        if self.in_flight is None:
            raise Refused(replies.MAIL_FIRST)
        if not self.in_flight.mail.recipients:
            raise Refused(replies.NO_RECIPIENTS_YET if self.session.lmtp else replies.NO_VALID_RECIPIENTS)
        return self.in_flight

    def _with_chunks(self) -> InFlight:
        if not self.service.switches.chunking or not (self.session.esmtp or self.in_flight is None):
            raise Refused(replies.NOT_OFFERED)
        in_flight = self._with_recipients()
        if in_flight.receiver is None:
            in_flight.receiver = self.service.receiver(ChunkReceiver)
        elif in_flight.receiver.problem is not None:
            raise Refused(replies.BDAT_FAILED_BEFORE)
        return in_flight


Method = Callable[[Conversation, bytes], Awaitable[None]]
METHODS: dict[str, Method] = {
    "LHLO": Conversation.lhlo,
    "EHLO": Conversation.ehlo,
    "HELO": Conversation.helo,
    "MAIL": Conversation.mail,
    "RCPT": Conversation.rcpt,
    "DATA": Conversation.data,
    "BDAT": Conversation.bdat,
    "RSET": Conversation.rset,
    "NOOP": Conversation.noop,
    "QUIT": Conversation.quit,
    "VRFY": Conversation.vrfy,
    "HELP": Conversation.help,
    "STARTTLS": Conversation.starttls,
    "AUTH": Conversation.auth,
    "XCLIENT": Conversation.xclient,
    **dict.fromkeys(("EXPN", "ETRN", "TURN", "SEND", "SOML", "SAML"), Conversation.not_offered),
}
