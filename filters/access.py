"""Refuse or mark mail by lists of networks, HELO names, senders and recipients.

Lists may be long: looking into one takes the same time whatever its length.

- Networks: `192.0.2.0/24`, `2001:db8::/32` or a single address.
- HELO names: `host.example`, or `*.example` for all names below `example` (not `example` itself).
- Senders and recipients: `joe@domain.example`; `@domain.example` for the whole domain; `@*.example` for all
  domains below `example`. Upper and lower case make no difference. A subaddress is an address of its own:
  `joe@domain.example` does not stand for `joe+news@domain.example`.

What beats what:

- `deny_recipients` beats everything: whoever sends, the address is answered like one that does not exist. So a
  catch-all can have exceptions. (`[smtpd.recipients]` can say the same with "deny".)
- `allow_clients` beats `deny_clients`, `deny_helo` and `deny_senders`, and gives the session the label `allowed`.
- `allow_senders` beats `deny_senders` and nothing else, and gives the message the label `allowed_sender`. A sender
  is only what the client claims; whoever puts `allowed_sender` into the `unless` of a check lets forgers by it.
- `allow_recipients` beats no list; it gives that recipient the label `allowed_recipient`, for mailboxes such as
  abuse@ that want to be reached by everybody.

An allow here silences other filters only where their `unless` names its label, as in `unless = ["allowed"]`. It says
nothing about the From field: what looks at content goes on looking. There is no `allow_helo`, because a client
can call itself anything.

Users who logged in may come from any network, call their machine anything and send as any sender; that is not for
this filter to judge, so their mail is only looked up in `deny_recipients`. Postmaster can always be reached.

A refusal is spoken at RCPT. With `act_at = "connect"` denied networks hear it instead of the banner, before
anybody could log in. Every match is counted in `smtpd_access_matches_total`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from smtpd import replies
from smtpd.metrics import Counter
from smtpd.model import Recipient, Session, Transaction
from smtpd.options import FilterOptions, Networks, StageName
from smtpd.patterns import AddressPatterns, AddressSet, HostPatterns, HostSet, NetworkSet
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply
from smtpd.services import Services

MATCHES = Counter(
    "smtpd_access_matches_total", "Entries of access lists that were found. list is the option.", ("filter", "list")
)


class AccessOptions(FilterOptions):
    """Options of `access`."""

    allow_clients: Networks = ()
    """Networks that no other list here keeps from sending; they get the label "allowed"."""
    deny_clients: Networks = ()
    """Networks that mail is not accepted from."""
    deny_helo: HostPatterns = ()
    """Names in EHLO or HELO that mail is not accepted from, such as "host.example" or "*.example"."""
    allow_senders: AddressPatterns = ()
    """Senders that `deny_senders` does not apply to, such as "joe@a.example", "@a.example" or "@*.a.example"."""
    deny_senders: AddressPatterns = ()
    """Senders that mail is not accepted from."""
    allow_recipients: AddressPatterns = ()
    """Recipients that get the label "allowed_recipient"."""
    deny_recipients: AddressPatterns = ()
    """Recipients that are answered as if they did not exist, whoever sends."""


class Access(Filter):
    """Looks into the operator's lists."""

    name = "access"
    Options = AccessOptions
    labels: ClassVar[frozenset[str]] = frozenset(("allowed", "allowed_sender", "allowed_recipient"))
    labels_at: ClassVar[Mapping[str, StageName]] = {"allowed_sender": "mail", "allowed_recipient": "rcpt"}
    labels_at_will: ClassVar[frozenset[str]] = frozenset(("allowed_sender",))
    early = True

    def __init__(self, name: str, options: AccessOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._allow_clients = NetworkSet(options.allow_clients)
        self._deny_clients = NetworkSet(options.deny_clients)
        self._deny_helo = HostSet(options.deny_helo)
        self._allow_senders = AddressSet(options.allow_senders)
        self._deny_senders = AddressSet(options.deny_senders)
        self._allow_recipients = AddressSet(options.allow_recipients)
        self._deny_recipients = AddressSet(options.deny_recipients)
        # Spoken before MAIL, a refusal cannot wait for a login; at MAIL everybody who is going to log in has.
        self._before_mail = options.act_at in ("connect", "helo")
        self._matches = services.metrics.counter(MATCHES)

    async def on_connect(self, session: Session) -> Verdict:
        """The client's network."""
        if session.ip in self._allow_clients:
            self._count("allow_clients")
            return Verdict(labels=frozenset(("allowed",)))
        return Verdict(self._judge_client(session)) if self._before_mail else PASS

    async def on_mail(self, mail: Transaction) -> Verdict:
        """The network, the name the client gave itself, and the sender; nothing of a user who logged in."""
        labels: frozenset[str] = frozenset()
        if is_allowed := mail.sender in self._allow_senders:
            self._count("allow_senders")
            labels = frozenset(("allowed_sender",))
        return Verdict(self._judge(mail, is_allowed), labels=labels)

    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        """The recipient, as the client wrote it."""
        address = recipient.address
        if address in self._deny_recipients:
            self._count("deny_recipients")
            return Verdict(replies.NO_SUCH_USER(address=address))
        if address in self._allow_recipients:
            self._count("allow_recipients")
            return Verdict(labels=frozenset(("allowed_recipient",)))
        return PASS

    def _judge(self, mail: Transaction, is_allowed_sender: bool) -> Reply | None:
        session = mail.session
        if session.authenticated or session.ip in self._allow_clients:
            return None
        if not self._before_mail and (reply := self._judge_client(session)):
            return reply
        if session.helo in self._deny_helo:
            self._count("deny_helo")
            return replies.DENIED_HELO(helo=session.helo)
        if mail.sender in self._deny_senders and not is_allowed_sender:
            self._count("deny_senders")
            return replies.DENIED_SENDER(address=mail.sender)
        return None

    def _judge_client(self, session: Session) -> Reply | None:
        if session.ip not in self._deny_clients:
            return None
        self._count("deny_clients")
        return replies.DENIED_CLIENT(ip=session.ip)

    def _count(self, option: str) -> None:
        self._matches.labels(self.table, option).inc()
