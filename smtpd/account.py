"""What is counted and logged of a conversation: every refusal and every message, with its trace id."""

from __future__ import annotations

from typing import Any

from smtpd import replies
from smtpd.addresses import Address
from smtpd.findings import results_told
from smtpd.metrics import AuthResult, DeliveryResult
from smtpd.model import Recipient, Session, TlsInfo, Transaction
from smtpd.outcome import Outcome
from smtpd.policy import Decision
from smtpd.replies import Reply
from smtpd.service import Service

MAX_TOLD = 40  # decisions in one line

_LOGIN_RESULTS: dict[str, AuthResult] = {
    replies.AUTH_OK.key: "ok",
    replies.AUTH_FAILED.key: "failed",
    replies.AUTH_BACKEND_DOWN.key: "unavailable",
    replies.AUTH_CANCELLED.key: "cancelled",
}


class Account:
    """The books of one session; refusals that decide nothing about mail (syntax, sequence) are not in them."""

    __slots__ = ("_accepted_line", "_client", "_client_line", "_overfull", "_service", "_session")

    def __init__(self, session: Session, service: Service) -> None:
        self._session = session
        self._service = service
        self._client: tuple[object, ...] = ()
        self._client_line = ""
        self._accepted_line = ""
        self._overfull = ""
        if service.log.wants_connections:
            service.log.info("connected", **self._who(None))

    def tag(self, reply: Reply, mail: Transaction | None) -> str:
        """What stands in brackets behind a refusal: the filter that spoke, if one did, and the trace id."""
        trace = mail.id if mail is not None else self._session.id
        name = reply.values.get("filter")
        return f"{name} {trace}" if name else trace

    def refused(self, reply: Reply, verb: str, mail: Transaction | None = None, recipient: object = None) -> None:
        """A connection, a sender or a recipient was refused or put off."""
        domain = recipient.domain if isinstance(recipient, Address) else None
        self._service.meters.rejected(reply.key, domain)
        if reply is replies.TOO_MANY_RECIPIENTS and mail is not None:
            if self._overfull == mail.id:
                return  # a client that goes on all the same would fill the disk with lines
            self._overfull = mail.id
        fields = self._who(mail)
        if recipient is not None:
            fields["recipient"] = recipient
        self._tell_spool(reply, mail)
        judged = _judged(reply, self._session, mail)
        self._service.log.info("refused", **fields, at=verb, reply=str(reply), reason=reply.key, **judged)

    def message(self, mail: Transaction, outcome: Outcome, *, size: int, seconds: float) -> None:
        """The reply to the end of data."""
        session, recipients = self._session, mail.recipients
        if (session.helo, session.tls, session.login) != self._client:
            self._note_client()
        was_taken = outcome.reply is replies.ACCEPTED and len(recipients) == 1
        # Nearly all mail was taken for one recipient, and no filter has left anything to tell.
        if not was_taken or mail.trace or session.trace or mail.labels or session.labels:
            self._tell_at_length(mail, outcome, size, seconds)
            return
        address = recipients[0].address
        session.messages += 1
        self._service.meters.received_one(address.domain, size)
        self._service.log.message(self._accepted_line, mail.id, mail.sender.text, [address.text], size, seconds)

    def _tell_at_length(self, mail: Transaction, outcome: Outcome, size: int, seconds: float) -> None:
        """All there can be to count and to say of a message."""
        self._count(mail, outcome, size)
        reply, each = outcome.reply, outcome.each
        self._tell_spool(reply, mail)
        common, more = self._accepted_line, _judged(reply, self._session, mail)
        if reply is not replies.ACCEPTED:
            common, more = self._client_line, {"reply": str(reply), "reason": reply.key, **more}
        if each is not None and len({(one.key, one.code, one.status) for one in each.values()}) > 1:
            more["outcomes"] = [str(each[recipient]) for recipient in mail.recipients]
        names = [recipient.address.text for recipient in mail.recipients]
        self._service.log.message(common, mail.id, mail.sender.text, names, size, seconds, more)

    def _tell_spool(self, reply: Reply, mail: Transaction | None) -> None:
        """Content did not fit into memory, and not onto the disk either."""
        if "spool" in reply.values:
            self._service.log.error("content-not-spooled", **self._who(mail), problem=reply.values["spool"])

    def _count(self, mail: Transaction, outcome: Outcome, size: int) -> None:
        reply, each, meters = outcome.reply, outcome.each or {}, self._service.meters
        taken: list[Recipient] = []
        refused: list[Recipient] = []
        for one in mail.recipients:
            (taken if each.get(one, reply).is_positive else refused).append(one)
        if reply.is_positive:
            self._session.messages += 1
        # What some have when all is put off is counted when the sender has come back for the others.
        if reply.is_positive or (taken and reply.is_permanent):
            meters.received([one.address.domain for one in taken], size)
        for one in refused:
            # Below a 2xx reply they have heard their own, in LMTP or by PRDR.
            meters.rejected((each[one] if reply.is_positive else reply).key, one.address.domain)
        if not mail.recipients and not reply.is_positive:
            meters.rejected(reply.key, "")

    def delivered(self, reply: Reply, seconds: float) -> None:
        """The agents have answered; no filter's time or verdict is in it."""
        result: DeliveryResult = "accepted" if reply.code < 400 else "deferred" if reply.code < 500 else "refused"
        self._service.meters.deliveries[result](seconds)

    def late(self, mail: Transaction, reply: Reply) -> None:
        """The agents have answered after the client had been told that it takes too long."""
        self._service.log.warning("delivered-late", **self._who(mail), reply=str(reply), reason=reply.key)

    def journal_failed(self, error: Exception, mail: Transaction) -> None:
        """The journal could not note that a message is on its way, so it is not."""
        self._service.log.error("not-handed-over", **self._who(mail), problem=str(error))

    def login(self, mechanism: str, reply: Reply, user: str = "") -> None:
        """AUTH ended; the line is what fail2ban looks for. `user` is the name that was tried in vain."""
        result = _LOGIN_RESULTS.get(reply.key, "malformed")
        self._service.meters.auth(mechanism, result)
        log = self._service.log.info if result == "ok" else self._service.log.warning
        fields = self._who(None)
        if user:
            fields["user"] = replies.clean(user)
        log("login", **fields, mechanism=mechanism, result=result)

    def secured(self, tls: TlsInfo) -> None:
        """A TLS handshake was done."""
        self._service.meters.tls(tls.version)

    def dropped(self, reason: str) -> None:
        """The connection is hung up on for abuse."""
        self._service.meters.dropped(reason)
        self._service.log.warning("dropped", **self._who(None), reason=reason)

    def left(self, reply: Reply, mail: Transaction | None) -> None:
        """We end the connection with 421."""
        self._service.log.info("left", **self._who(mail), reply=str(reply), reason=reply.key)

    def vanished(self, mail: Transaction | None) -> None:
        """The client hung up without QUIT; worth a line only inside a transaction."""
        if mail is not None:
            self._service.log.info("client-lost", **self._who(mail))

    def bug(self, bug: Exception, mail: Transaction | None) -> Reply:
        """Something of ours broke: one traceback in the log, and the reply for the client."""
        self._service.log.error("our-fault", **self._who(mail), exception=bug)
        return replies.OUR_FAULT

    def closed(self) -> None:
        """The conversation is over."""
        if self._service.log.wants_connections:
            self._service.log.info("disconnected", **self._who(None), messages=self._session.messages)

    def _who(self, mail: Transaction | None) -> dict[str, Any]:
        """Whose line it is: the client, and the transaction if there is one."""
        who = self._describe_client()
        who["trace"] = mail.id if mail is not None else self._session.id
        if mail is not None:
            who["sender"] = mail.sender.text
        return who

    def _note_client(self) -> None:
        """Make ready what the lines of all its messages say of the client."""
        session, log = self._session, self._service.log
        line = log.bind_client(session.id, session.listener, session.ip_text, session.helo)
        if proven := _proven(session):
            line += log.bind(**proven)
        self._client = session.helo, session.tls, session.login
        self._client_line, self._accepted_line = line, line + self._service.accepted_fields

    def _describe_client(self) -> dict[str, Any]:
        session = self._session
        client: dict[str, Any] = {
            "session": session.id,
            "listener": session.listener,
            "ip": session.ip_text,
            "helo": session.helo,
        }
        return client | _proven(session)


def _proven(session: Session) -> dict[str, Any]:
    proven: dict[str, Any] = {}
    if session.tls is not None:
        proven["tls"] = session.tls.version
        proven["cipher"] = session.tls.cipher
    if session.login is not None:
        proven["login"] = session.login
    return proven


def _judged(reply: Reply, session: Session, mail: Transaction | None) -> dict[str, Any]:
    judged: dict[str, Any] = {}
    if "filter" in reply.values:
        judged["filter"] = reply.values["filter"]
    if labels := mail.all_labels if mail is not None else session.labels:
        judged["labels"] = sorted(labels)
    decisions = [*(session.trace or ()), *(mail.trace or () if mail is not None else ())]
    if decisions:
        judged["decisions"] = list(map(str, _first_and_last(decisions)))
    # Why, for whoever looks for a refusal: what was found out stands nowhere else when the message is not taken.
    if mail is not None and any(decision.reply for decision in decisions) and (results := results_told(mail)):
        judged["results"] = results
    return judged


def _first_and_last(decisions: list[Decision]) -> list[Decision]:
    """A client that says RCPT over and over must not make every line longer than the one before."""
    return decisions if len(decisions) <= MAX_TOLD else decisions[: MAX_TOLD // 2] + decisions[-MAX_TOLD // 2 :]
