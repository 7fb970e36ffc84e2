"""Refuse senders whose domain takes no mail, so that nobody could ever answer them or tell them what went wrong.

The domain in MAIL FROM is looked at when MAIL is said, whoever sends, and a refusal is spoken at RCPT:

| what is found | option | default | refusal |
|---|---|---|---|
| The domain has one label only (`root@printer`) | `unqualified` | "reject" | 554 5.1.8 |
| The domain is an IP address (`root@[192.0.2.1]`) | `literal` | "pass" | 550 5.1.8 |
| The domain says that it takes no mail (null MX, RFC 7505) | `null_mx` | "reject" | 550 5.7.27 |
| There is no host to send mail to | `unresolvable` | "reject" | 550 5.1.8 |
| The DNS does not answer now | `on_tempfail` | "tag" | 451 4.4.3 |

- "reject" refuses, and "defer" of `on_tempfail` puts off. Both also give the label that "tag" gives:
  `sender-unqualified`, `sender-literal`, `sender-null-mx`, `sender-unresolvable` or `sender-temperror`.
- "pass" does nothing, and domains that are not qualified or are IP addresses are never looked up.
- The empty sender of bounces always passes, and so do our own domains (those in `[smtpd.domains]`, where "*" does not
  count). They cost no lookup.

There is no host to send mail to when the domain does not exist, when it has no MX and no address record, or when none
of the hosts in its MX records has an address (RFC 5321 §5.1). One host with an address is enough, and the search ends
there. No more than 10 hosts are looked up: when there are others, the domain passes. So does one whose MX record holds
an IP address instead of a name. Where an address leads is not looked at: it may be another one behind a firewall.

This is what Exim (`verify = sender`), Sendmail and Haraka refuse for good, and Postfix (`reject_unknown_sender_domain`)
with 450, so a sender who is refused here has the same trouble elsewhere. Before it is in force, see with
`mode = "observe"` or `unresolvable = "tag"` what you would miss:

- Machines and cron jobs of your own send as `root@host.lan`. They belong in `trusted_networks`, or their names into the
  DNS that we ask.
- Some newsletters have a domain for bounces with nothing but SPF.
- A nameserver that hides domains, against advertisements, say, must not be asked: what it hides does not exist here.

Users who logged in are checked, too. A mistake in the settings of their program is best told at once, and a server for
submission must not let domains through that are not qualified (RFC 6409 §4.2). So their recipients outside of our
domains hear 554 5.1.2 where `unqualified` is "reject", and get the label `recipient-unqualified` where it is "tag".
Clients in `trusted_networks` are not even looked at, unless you take "trusted" out of `unless`. Whom
`trusted_forwarders` knows is not refused either; whose name cannot be looked up now hears 451 4.7.1.

A broken DNS refuses nobody for good: the message is labelled, or hears 451. The lookups start at MAIL, and the client
waits for them at RCPT, or at the end of its data when no option refuses: `lookup_time` at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from filters.mail_routes import find_route
from filters.reverse_names import may_be_forwarded
from smtpd import replies
from smtpd.addresses import Address
from smtpd.findings import IprevResult
from smtpd.metrics import Counter
from smtpd.model import Recipient, Transaction
from smtpd.options import FilterOptions, Seconds, StageName, Strings
from smtpd.patterns import HostSet
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply
from smtpd.services import Services

CHECKS = Counter(
    "smtpd_sender_domain_checks_total",
    "Domains of senders that were looked at. result is pass, unqualified (one label), literal (an IP address), "
    "null-mx (takes no mail), unresolvable (no host takes it) or temperror (the DNS does not say now).",
    ("result",),
)

Action = Literal["reject", "defer", "tag", "pass"]
_RECIPIENT_LABEL = frozenset(("recipient-unqualified",))


class SenderDomainOptions(FilterOptions):
    """Options of `sender_domain`."""

    unqualified: Literal["reject", "tag", "pass"] = "reject"
    """What a domain of one label does, as in "root@printer": 554, a label, or nothing."""
    # RFC 5321 §4.1.3 has them for hosts without a name: they can be answered, and Postfix lets them pass, too.
    literal: Literal["reject", "tag", "pass"] = "pass"
    """What an IP address does, as in "root@[192.0.2.1]"."""
    # Exim, Sendmail and Haraka refuse, too; Postfix says 450 until the sender gives up.
    unresolvable: Literal["reject", "tag", "pass"] = "reject"
    """What a domain does that has no host to send mail to."""
    null_mx: Literal["reject", "tag", "pass"] = "reject"
    """What a domain does that says that it takes no mail (RFC 7505)."""
    on_tempfail: Literal["tag", "defer"] = "tag"
    """What mail hears while the DNS does not answer: nothing but a label, or 451 4.4.3."""
    lookup_time: Annotated[Seconds, Field(gt=0)] = 10.0
    """Longest time for all lookups of a domain together, seconds, and at most two thirds of `timeout`."""
    unless: Strings = ("trusted", "trusted-forwarder")
    """Conditions that silence a refusal; clients that are trusted are not even looked at."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a result leads to."""

    action: Action
    label: frozenset[str]
    reply: Reply


class SenderDomain(Filter):
    """Looks at the sender when MAIL is said, and at recipients of users who logged in."""

    name = "sender_domain"
    Options = SenderDomainOptions
    uses = (IprevResult,)
    labels: ClassVar[frozenset[str]] = _RECIPIENT_LABEL | {
        "sender-unqualified", "sender-literal", "sender-null-mx", "sender-unresolvable", "sender-temperror"
    }  # fmt: skip
    labels_at: ClassVar[Mapping[str, StageName]] = {"recipient-unqualified": "rcpt"}
    labels_at_will: ClassVar[frozenset[str]] = labels
    early = True  # the next server need not be asked about a recipient that has no place on the Internet

    def __init__(self, name: str, options: SenderDomainOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._answers = {
            "unqualified": _answer(options.unqualified, replies.SENDER_UNQUALIFIED),
            "literal": _answer(options.literal, replies.SENDER_LITERAL),
            "null-mx": _answer(options.null_mx, replies.SENDER_NULL_MX),
            "unresolvable": _answer(options.unresolvable, replies.SENDER_UNRESOLVABLE),
            "temperror": _answer(options.on_tempfail, replies.SENDER_TEMPERROR),
        }
        self._longest = min(options.lookup_time, self.lookup_time or options.lookup_time)
        self._ours = HostSet(services.local_domains)  # no domain is called "*"
        self._takes_all = "*" in services.local_domains
        self._checks = services.metrics.counter(CHECKS)

    def can_refuse(self) -> bool:
        """Whether any result is refused or put off."""
        return any(answer.action in ("reject", "defer") for answer in self._answers.values())

    async def on_mail(self, mail: Transaction) -> Verdict:
        """Look at the sender's domain."""
        sender = mail.sender
        if sender.is_null or sender.domain in self._ours or self.excuses(mail.session):
            return PASS
        result, reason = await self._look_at(sender, mail)
        self._checks.labels(result).inc()
        answer = self._answers.get(result)
        if answer is None or answer.action == "pass":
            return PASS
        if answer.action == "tag":
            return Verdict(labels=answer.label)
        is_open = answer.action == "reject" and may_be_forwarded(mail, self.options.unless)
        reply = replies.SENDER_LATER if is_open else answer.reply
        return Verdict(reply(address=sender, domain=sender.domain, reason=reason), labels=answer.label)

    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        """Look at where users who logged in send to."""
        if not mail.session.authenticated or self.excuses(mail.session):
            return PASS
        address, action = recipient.address, self._answers["unqualified"].action
        is_ours = self._takes_all or not address.domain or address.domain in self._ours  # postmaster has none
        if action == "pass" or is_ours or not _is_unqualified(address):
            return PASS
        reply = replies.RECIPIENT_UNQUALIFIED(address=address) if action == "reject" else None
        return Verdict(reply, labels=_RECIPIENT_LABEL)

    async def _look_at(self, sender: Address, mail: Transaction) -> tuple[str, str]:
        """A result, and why."""
        if sender.is_literal:
            return "literal", ""
        if _is_unqualified(sender):
            return "unqualified", ""
        route = await find_route(sender.domain, self.services.lookups(mail), self._longest)
        return route.result, route.reason


def _answer(action: Action, reply: Reply) -> _Answer:
    return _Answer(action, frozenset((reply.key,)), reply)


def _is_unqualified(address: Address) -> bool:
    # RFC 5321 §2.3.5 thinks of mail at a top-level domain, too; what comes with one label is the name of some machine.
    return not address.is_literal and "." not in address.domain
