"""Every text and code a client can ever see.

The basic and the enhanced code stand together, so they cannot disagree (RFC 2034 §4). The key is
also the log field, the metric label, and what operators use in `[smtpd.replies]` to change the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

MAX_LINE = 512  # RFC 5321 §4.5.3.1.5, the CRLF included
MAX_VALUE = 200  # of anything that comes from outside; our own choice

_UNSAFE = re.compile(r"[^\x20-\x7e]+")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def clean(value: object) -> str:
    """Make text from outside fit for a reply, a header or a log: printable ASCII, at most 200 characters."""
    text = _printable(value if isinstance(value, str) else str(value))
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "..."


def _printable(text: str) -> str:
    # The text of a plug-in's own reply may hold what a server behind it said, or the client.
    if not text.isascii():
        text = text.encode("ascii", "backslashreplace").decode("ascii")
    return _UNSAFE.sub("?", text)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; calling it fills the placeholders of its text with cleaned and shortened values.

    `status` is the enhanced code, "" where RFC 2034 has none (greeting, EHLO, 3xx). A line break in
    the text of a constant makes a multi-line reply.
    """

    key: str
    code: int
    status: str
    text: str
    values: Mapping[str, str] = field(default_factory=dict, compare=False)
    plain: bytes = field(init=False, repr=False, compare=False)
    """The bytes on the wire when there is nothing to add and no changed text."""

    def __post_init__(self) -> None:
        if not isinstance(self.code, int) or not 200 <= self.code < 600:  # RFC 5321 §4.2; some stores say 59x
            raise ValueError(f"{self.key}: {self.code!r} is no code of a reply")
        if self.status and self.status[0] != str(self.code)[0]:
            raise ValueError(f"{self.key}: {self.code} and {self.status} disagree")
        object.__setattr__(self, "plain", self._encode(self.text, ""))

    def __call__(self, **values: object) -> Reply:
        """Fill the placeholders; one without a value stays as it is."""
        return replace(self, values={**self.values, **{name: clean(value) for name, value in values.items()}})

    @property
    def is_positive(self) -> bool:
        """2xx or 3xx."""
        return self.code < 400

    @property
    def is_temporary(self) -> bool:
        """4xx: the client may try again."""
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        """5xx: the client must not try again."""
        return self.code >= 500

    @property
    def is_syntax_error(self) -> bool:
        """The command was wrong in itself or in its place: no decision about mail."""
        return self.code in (500, 501, 502, 503, 504, 555)

    @property
    def message(self) -> str:
        """The text with its placeholders filled, without codes."""
        return self._fill(self.text)

    def __str__(self) -> str:
        return self.plain.decode("ascii").rstrip("\r\n").replace("\r\n", " / ")

    def encode(self, trace: str = "", texts: Mapping[str, str] | None = None) -> bytes:
        """The bytes on the wire; `trace` is set in brackets behind the text, `texts` holds changed texts by key."""
        text = texts.get(self.key, self.text) if texts else self.text
        plain = self.plain
        if text is self.text:
            if not trace:
                return plain
            if len(plain) + len(trace) + 3 <= MAX_LINE and plain.find(b"\r\n") + 2 == len(plain):
                return b"%b [%b]\r\n" % (plain[:-2], trace.encode("ascii"))
        return self._encode(text, trace)

    def _fill(self, text: str) -> str:
        if "{" not in text or not self.values:
            return text
        values = self.values
        return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)

    def _encode(self, text: str, trace: str) -> bytes:
        prefix = f"{self.status} " if self.status else ""
        suffix = f" [{trace}]" if trace else ""
        room = MAX_LINE - len("250-\r\n") - len(prefix) - len(suffix)
        lines = [_printable(line)[:room] for line in self._fill(text).replace("\r\n", "\n").split("\n")]
        last = len(lines) - 1
        return "".join(
            f"{self.code}{' ' if number == last else '-'}{prefix}{line}{suffix if number == last else ''}\r\n"
            for number, line in enumerate(lines)
        ).encode("ascii")


class Refused(Exception):  # noqa: N818 - it is an answer, not an error
    """A parser or a guard says no; `Conversation.run` answers with the reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.key)
        self.reply = reply


# Greeting, closing (RFC 5321 §3.1, §3.8)
GREETING = Reply("greeting", 220, "", "{hostname} ESMTP")
LMTP_GREETING = Reply("lmtp-greeting", 220, "", "{hostname} LMTP")
NO_SERVICE = Reply("no-service", 554, "", "{hostname} No SMTP service here for this address")
NO_SERVICE_NOW = Reply("no-service-now", 421, "4.7.0", "{hostname} No SMTP service here for this address now")
NO_SERVICE_COMMAND = Reply("no-service-command", 503, "5.5.1", "Only QUIT is answered on this connection")
BYE = Reply("bye", 221, "2.0.0", "Bye")
SHUTTING_DOWN = Reply("shutting-down", 421, "4.3.2", "{hostname} is shutting down, please try again later")
TIMEOUT = Reply("timeout", 421, "4.4.2", "{hostname} waited too long for you")
TOO_SLOW = Reply("too-slow", 421, "4.4.2", "{hostname} Data arrived too slowly")
TOO_MANY_CONNECTIONS = Reply("too-many-connections", 421, "4.3.2", "{hostname} has too many connections now")
TOO_MANY_FROM_ADDRESS = Reply(
    "too-many-connections-from-address", 421, "4.7.0", "{hostname} Too many connections from {ip}"
)
TOO_MANY_ERRORS = Reply("too-many-errors", 421, "4.7.0", "{hostname} Too many errors on this connection")
TOO_MANY_AUTH_FAILURES = Reply("too-many-auth-failures", 421, "4.7.0", "{hostname} Too many failed logins")

# Commands (RFC 5321 §4.1, §4.2.2)
HELO = Reply("helo", 250, "", "{hostname}")
OK = Reply("ok", 250, "2.0.0", "Ok")
HELP = Reply("help", 214, "2.0.0", "Commands: HELO EHLO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP STARTTLS AUTH")
CANNOT_VERIFY = Reply("cannot-verify", 252, "2.5.2", "Cannot verify, but will take mail at RCPT and say so there")
SENDER_OK = Reply("sender-ok", 250, "2.1.0", "Sender ok")
RECIPIENT_OK = Reply("recipient-ok", 250, "2.1.5", "Recipient ok")
SEND_DATA = Reply("send-data", 354, "", "Send the message, end with <CRLF>.<CRLF>")
EACH_RECIPIENT = Reply("each-recipient", 353, "", "One reply for each recipient follows")
CHUNK_OK = Reply("chunk-ok", 250, "2.0.0", "{size} octets received")
ACCEPTED = Reply("accepted", 250, "2.0.0", "Ok, delivered")
UNKNOWN_COMMAND = Reply("unknown-command", 500, "5.5.2", "Unknown command")
NOT_PRINTABLE = Reply("not-printable", 500, "5.5.2", "Commands are printable ASCII")
LINE_TOO_LONG = Reply("line-too-long", 500, "5.5.2", "Command line too long")
NOT_OFFERED = Reply("not-offered", 502, "5.5.1", "Command not offered here")
HELO_ARGUMENT = Reply("helo-argument", 501, "5.5.4", "Say your host name: {verb} mail.example.org")
NO_ARGUMENT = Reply("no-argument", 501, "5.5.4", "{verb} takes no argument")
BAD_ARGUMENT = Reply("bad-argument", 501, "5.5.4", "Syntax: {syntax}")
BAD_PARAMETER = Reply("bad-parameter", 501, "5.5.4", "Bad value of {parameter}")
UNKNOWN_PARAMETER = Reply("unknown-parameter", 555, "5.5.4", "Parameter {parameter} is not supported")
BAD_SENDER_SYNTAX = Reply("bad-sender-syntax", 501, "5.1.7", "Bad sender address: {problem}")
BAD_RECIPIENT_SYNTAX = Reply("bad-recipient-syntax", 501, "5.1.3", "Bad recipient address: {problem}")
NON_ASCII_SENDER = Reply("non-ascii-sender", 550, "5.6.7", "An address beyond ASCII needs the SMTPUTF8 parameter")
NON_ASCII_RECIPIENT = Reply("non-ascii-recipient", 553, "5.6.7", "An address beyond ASCII needs SMTPUTF8 at MAIL")
CANNOT_CARRY_UTF8 = Reply("cannot-carry-utf8", 553, "5.6.7", "{address} cannot receive mail that needs SMTPUTF8")
CANNOT_CARRY_8BIT = Reply("cannot-carry-8bit", 554, "5.6.3", "{address} cannot receive content beyond ASCII")
HELO_FIRST = Reply("helo-first", 503, "5.5.1", "Say EHLO or HELO first")
LHLO_FIRST = Reply("lhlo-first", 503, "5.5.1", "Say LHLO first")
MAIL_FIRST = Reply("mail-first", 503, "5.5.1", "Say MAIL first")
NESTED_MAIL = Reply("nested-mail", 503, "5.5.1", "A transaction is open already, say RSET first")
NO_RECIPIENTS_YET = Reply("no-recipients-yet", 503, "5.5.1", "No valid recipients")
NO_VALID_RECIPIENTS = Reply("no-valid-recipients", 554, "5.5.1", "No valid recipients")
RCPT_AFTER_BDAT = Reply("rcpt-after-bdat", 503, "5.5.1", "RCPT cannot follow BDAT in one transaction")
DATA_AFTER_BDAT = Reply("data-after-bdat", 503, "5.5.1", "DATA cannot follow BDAT in one transaction")
BDAT_FAILED_BEFORE = Reply("bdat-failed-before", 503, "5.5.1", "An earlier chunk failed, say RSET")
XCLIENT_DENIED = Reply("xclient-denied", 550, "5.7.0", "You may not speak for other clients")
XCLIENT_IN_TRANSACTION = Reply(
    "xclient-in-transaction", 503, "5.5.1", "XCLIENT is not possible inside a transaction"
)
EHLO_FOR_EXTENSION = Reply("ehlo-for-extension", 503, "5.5.1", "Say EHLO to use this command")

# STARTTLS and AUTH (RFC 3207, RFC 4954)
READY_FOR_TLS = Reply("ready-for-tls", 220, "2.0.0", "Ready to start TLS")
TLS_ACTIVE = Reply("tls-active", 503, "5.5.1", "TLS is active already")
TLS_UNAVAILABLE = Reply("tls-unavailable", 454, "4.7.0", "TLS is not available now")
TLS_INJECTION = Reply("tls-injection", 554, "5.5.1", "Data behind STARTTLS before the handshake")
TLS_REQUIRED = Reply("tls-required", 530, "5.7.0", "Say STARTTLS first")
AUTH_PROMPT = Reply("auth-prompt", 334, "", "{challenge}")
AUTH_OK = Reply("auth-ok", 235, "2.7.0", "Authenticated")
AUTH_REQUIRED = Reply("auth-required", 530, "5.7.0", "Log in with AUTH first")
AUTH_DONE = Reply("auth-done", 503, "5.5.1", "Authenticated already")
AUTH_IN_TRANSACTION = Reply("auth-in-transaction", 503, "5.5.1", "AUTH is not possible inside a transaction")
AUTH_CANCELLED = Reply("auth-cancelled", 501, "5.7.0", "Authentication cancelled")
AUTH_BAD_BASE64 = Reply("auth-bad-base64", 501, "5.5.2", "Not base64")
AUTH_BAD_RESPONSE = Reply("auth-bad-response", 501, "5.5.2", "The response does not follow the mechanism")
AUTH_LINE_TOO_LONG = Reply("auth-line-too-long", 500, "5.5.6", "Authentication exchange line too long")
AUTH_UNKNOWN_MECHANISM = Reply("auth-unknown-mechanism", 504, "5.5.4", "Mechanism not offered here")
AUTH_NEEDS_TLS = Reply("auth-needs-tls", 538, "5.7.11", "Say STARTTLS first, this mechanism needs encryption")
AUTH_FAILED = Reply("auth-failed", 535, "5.7.8", "Wrong user name or password")
AUTH_BACKEND_DOWN = Reply("auth-backend-down", 454, "4.7.0", "Logins cannot be checked now, please try again")

# Routing and recipients (RFC 3463 X.1.X, X.2.X)
RELAY_DENIED = Reply("relay-denied", 550, "5.7.1", "Not a recipient here, and relaying needs a login: {address}")
NO_RELAY = Reply("no-relay", 550, "5.7.1", "This server does not send mail to other domains: {address}")
NULL_SENDER_ONE_RECIPIENT = Reply(
    "null-sender-one-recipient", 550, "5.7.1", "A message from <> has one recipient"
)
NO_SUCH_USER = Reply("no-such-user", 550, "5.1.1", "No mailbox here by the name {address}")
ANOTHER_STORE = Reply("another-store", 452, "4.5.3", "{address} needs a transaction of its own, send it separately")
TOO_MANY_RECIPIENTS = Reply("too-many-recipients", 452, "4.5.3", "Too many recipients, send the rest separately")
TOO_MANY_MESSAGES = Reply("too-many-messages", 421, "4.7.0", "{hostname} Too many messages on one connection")
MAILBOX_FULL = Reply("mailbox-full", 452, "4.2.2", "The mailbox of {address} is full")
MAILBOX_FULL_PERMANENTLY = Reply("mailbox-full-permanently", 552, "5.2.2", "The mailbox of {address} is full")

# Content (RFC 1870, RFC 5321 §2.3.8, §6.3)
TOO_BIG = Reply("too-big", 552, "5.3.4", "Message bigger than {limit} octets")
NO_SPACE = Reply("no-space", 452, "4.3.1", "No space for the message now")
BARE_LINE_END = Reply("bare-line-end", 550, "5.5.2", "Lines end with CR and LF together; yours hold a lone one")
TEXT_LINE_TOO_LONG = Reply("text-line-too-long", 554, "5.6.0", "A line is longer than {limit} octets")
MAIL_LOOP = Reply("mail-loop", 554, "5.4.6", "Mail is looping: it passed too many hosts")
DELIVERED_BEFORE = Reply("delivered-before", 554, "5.4.6", "Mail is looping: it was delivered to {address} before")
STORE_REFUSED = Reply("store-refused", 554, "5.3.0", "The message is not taken")  # or other codes of a refusal
HEADER_TOO_BIG = Reply("header-too-big", 554, "5.6.0", "The header section is bigger than {limit}")
BAD_HEADER = Reply("bad-header", 550, "5.6.0", "{problem}")

# Policy
DENIED_CLIENT = Reply("denied-client", 550, "5.7.1", "Mail from {ip} is not accepted here")
DENIED_HELO = Reply("denied-helo", 550, "5.7.1", "Mail from hosts that call themselves {helo} is not accepted here")
DENIED_SENDER = Reply("denied-sender", 550, "5.7.1", "Mail from {address} is not accepted here")
SPOKE_EARLY = Reply("spoke-early", 550, "5.7.1", "You spoke before it was your turn")

# Domains of sender and recipient (RFC 3463 §3.2: X.1.8 and X.1.2; 554: RFC 6409 §4.2; 5.7.27: RFC 7505 §4.2)
SENDER_UNQUALIFIED = Reply(
    "sender-unqualified", 554, "5.1.8", "The sender {address} needs a complete domain, such as joe@host.example.org"
)
RECIPIENT_UNQUALIFIED = Reply(
    "recipient-unqualified", 554, "5.1.2",
    "The recipient {address} needs a complete domain, such as joe@host.example.org",
)  # fmt: skip
SENDER_LITERAL = Reply("sender-literal", 550, "5.1.8", "The sender {address} needs a domain that is no IP address")
SENDER_UNRESOLVABLE = Reply("sender-unresolvable", 550, "5.1.8", "No mail can be sent back to {domain}: {reason}")
SENDER_NULL_MX = Reply(
    "sender-null-mx", 550, "5.7.27", "No mail can be sent back to {domain}: its MX record says that it takes none"
)
SENDER_TEMPERROR = Reply(
    "sender-temperror", 451, "4.4.3", "The domain {domain} cannot be looked up now, please try again later"
)
SENDER_LATER = Reply(
    "sender-later", 451, "4.7.1",
    "Nobody could answer {address}, and who you are cannot be found out now, please try again later",
)  # fmt: skip

# SPF: RFC 7208 §8, with the codes of RFC 7372 §3.2; a lookup that failed has that of RFC 3463 §3.5
SPF_FAIL = Reply("spf-fail", 550, "5.7.23", "SPF says {ip} may not send for {domain}")
SPF_FAIL_EXPLAINED = Reply(
    "spf-fail-explained", 550, "5.7.23", "SPF says {ip} may not send for {domain}, domain says: {explanation}"
)
SPF_FAIL_LATER = Reply(
    "spf-fail-later", 451, "4.7.23", "SPF does not say that {ip} may send for {domain}, please try again later"
)
SPF_HELO_FAIL = Reply("spf-helo-fail", 550, "5.7.23", "SPF says {ip} may not call itself {domain}")
SPF_HELO_FAIL_LATER = Reply(
    "spf-helo-fail-later", 451, "4.7.23", "SPF says {ip} may not call itself {domain}, please try again later"
)
SPF_PERMERROR = Reply("spf-permerror", 550, "5.7.24", "The SPF record of {domain} cannot be understood: {reason}")
SPF_PERMERROR_LATER = Reply(
    "spf-permerror-later", 451, "4.7.24", "The SPF record of {domain} cannot be understood, please try again later"
)
SPF_TEMPERROR = Reply(
    "spf-temperror", 451, "4.4.3", "The SPF record of {domain} cannot be looked up now, please try again later"
)

# DKIM (RFC 7372 §3.1, RFC 6376 §6.1.2)
DKIM_UNSIGNED = Reply("dkim-unsigned", 550, "5.7.20", "The message has no DKIM signature")
DKIM_FAILED = Reply("dkim-failed", 550, "5.7.20", "No DKIM signature of the message passes: {reason}")
DKIM_NOT_ACCEPTABLE = Reply(
    "dkim-not-acceptable", 550, "5.7.21", "No DKIM signature of the message is acceptable: {reason}"
)
DKIM_NOT_BY_AUTHOR = Reply("dkim-not-by-author", 550, "5.7.22", "No DKIM signature is by the domain in From")
DKIM_KEY_LATER = Reply("dkim-key-later", 451, "4.7.5", "A DKIM key cannot be looked up now, please try again later")

# ARC (RFC 8617 §10.1)
ARC_FAILED = Reply("arc-failed", 550, "5.7.29", "The ARC chain of the message does not hold: {reason}")

# DMARC (RFC 7489 §10.3)
DMARC_REJECT = Reply(
    "dmarc-reject", 550, "5.7.1",
    "Rejected by the DMARC policy of {policy_domain} ({tag}=reject): neither SPF nor DKIM shows that {domain} sent it",
)  # fmt: skip
DMARC_LATER = Reply(
    "dmarc-later", 451, "4.7.1", "DMARC of {domain} cannot be decided now, please try again later"
)

# Our own domains (RFC 3463 §3.8: 5.7.1)
OWN_DOMAIN = Reply(
    "own-domain", 550, "5.7.1", "Mail from {domain} needs a login here, or SPF or DKIM that shows that {domain} sent it"
)
OWN_DOMAIN_LATER = Reply(
    "own-domain-later", 451, "4.7.1", "Whether {domain} sent this cannot be found out now, please try again later"
)

# What a login may be used for (RFC 6409 §6.1)
SENDER_NOT_YOURS = Reply("sender-not-yours", 550, "5.7.1", "Your login does not let you send as {address}")
AUTHOR_NOT_YOURS = Reply(
    "author-not-yours", 550, "5.7.1", "Your login does not let you put {address} into the From field"
)
AUTHOR_UNCLEAR = Reply(
    "author-unclear", 550, "5.7.1", "The From field has to say clearly that the message is from you, but {problem}"
)
SENDER_RIGHTS_LATER = Reply(
    "sender-rights-later", 451, "4.7.1", "Whether you may send as {address} cannot be said now, please try again later"
)

# Ours to mend, never the sender's fault
OUR_FAULT = Reply("our-fault", 451, "4.3.0", "Something went wrong here, please try again later")
FILTERS_LATE = Reply("filters-late", 451, "4.3.0", "The message could not be checked in time, please try again later")
FILTER_FAILED = Reply("filter-failed", 451, "4.3.0", "A check could not be made, please try again later")
STORE_SAID = Reply("store-said", 451, "4.0.0", "{text}")  # with the codes of the server behind us
MAIL_SYSTEM = {"server": "The mail system"}  # whatever an agent leads to: a mailstore, a server, a program
NEXT_SERVER = {"server": "The next mail server"}  # on the way of what our users send
BACKEND_DOWN = Reply("backend-down", 451, "4.4.1", "{server} cannot be reached, please try again later", MAIL_SYSTEM)
BACKEND_TIMEOUT = Reply(
    "backend-timeout", 451, "4.4.2", "{server} did not answer in time, please try again later", MAIL_SYSTEM
)
BACKEND_LOST = Reply(
    "backend-lost", 451, "4.4.2", "{server} ended the connection, please try again later", MAIL_SYSTEM
)
OUTCOME_UNKNOWN = Reply(
    "outcome-unknown", 451, "4.4.2",
    "{server} did not say whether it took the message, please try again later", MAIL_SYSTEM,
)  # fmt: skip
SOME_DEFERRED = Reply("some-deferred", 451, "4.3.0", "Not delivered to everybody, please try again later: {reason}")
SOME_REFUSED = Reply("some-refused", 550, "5.0.0", "Delivered, but not to {recipients}: {reason}")
DELIVERED_EARLIER = Reply("delivered-earlier", 250, "2.0.0", "Ok, delivered at an earlier attempt")
MAYBE_DELIVERED = Reply(
    "maybe-delivered", 554, "5.4.2", "The message may have been delivered already, and is not tried again"
)
REFUSED_EARLIER = Reply("refused-earlier", 550, "5.1.0", "{reason}")  # codes are those of the refusal
STORE_FAILED = Reply("store-failed", 451, "4.3.0", "The message could not be stored, please try again later")


def ehlo(lines: str) -> bytes:
    """The reply to EHLO: our name, then one keyword a line, joined with line breaks (RFC 5321 §4.1.1.1)."""
    return Reply("ehlo", 250, "", lines).plain


def all_replies() -> dict[str, Reply]:
    """Every constant of this file by its name, in order; the reply table of the documentation."""
    return {name: value for name, value in globals().items() if isinstance(value, Reply)}
