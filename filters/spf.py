"""Ask the sender's domain whether the client may send for it (SPF, RFC 7208).

The domain in MAIL FROM publishes who may use it, and so may the name in EHLO or HELO; both are checked. Mail with the
empty sender is checked as postmaster of that name. What came of the name holds for five minutes within its session,
unless a lookup failed for now. The lookups start at MAIL, and go on while the client does. The
results stand in the Authentication-Results field of the message, and are there for other filters, `dmarc` above all.

A fail alone says little: whoever forwards mail without changing its sender fails, too. So by default nobody is refused
here. What becomes of each result:

| result | option | default | means |
|---|---|---|---|
| fail | `fail` | "dmarc" | The domain says that the client may not send for it |
| softfail | `softfail` | "tag" | It thinks so, but does not want mail to be refused for it |
| permerror | `permerror` | "tag" | Its record is broken |
| temperror | `temperror` | "tag" | The DNS does not answer now |
| fail of the name in EHLO | `helo_fail` | "tag" | The client uses a name it may not use |
| pass, neutral, none | | | Nothing: whoever sends can publish a record |

- "tag" gives the message the label `spf-fail`, `spf-softfail`, `spf-permerror`, `spf-temperror` or `spf-helo-fail`.
- "dmarc" gives the label, too, and leaves the rest to the filter `dmarc`, which knows whether anything else speaks for
  the message.
- "reject" refuses with 550 5.7.23 (5.7.24 for permerror). What the domain has to say (`exp=`) follows "domain says:".
- "defer" answers 451 4.7.23 (4.7.24 for permerror, 4.4.3 for temperror).
- "pass" does nothing.

Refusals are silenced for who logged in, and for hosts that `trusted_forwarders` knows; one that may be such a host, but
whose name cannot be looked up now, is put off where it would be refused. With "authenticated" or
"trusted" in `unless`, such clients are not even checked: the record of a domain does not list its users' telephones.

The limits of RFC 7208 hold: 10 terms that cause lookups, 2 lookups that find nothing, 10 hosts of `mx`; beyond
them the result is permerror. Of the names of `ptr` the first 10 count. There are some limits of our own, far above what
is in use: 8 KiB for a record and 16 KiB for all together, 512 characters for a term, 50 macros, and the first 100
addresses of a host. Lookups beyond `[smtpd.dns] lookups_per_message` fail for now; the name in EHLO has half as many
of its own, unless the sender is empty. Whatever breaks, nobody is refused for it, unless `permerror` says so.

`smtpd_spf_checks_total` counts results of the sender, `smtpd_spf_helo_checks_total` those of the name.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from filters.reverse_names import may_be_forwarded
from filters.spf_evaluation import Client, evaluate
from filters.spf_query import LONGEST_CHECK
from smtpd import replies
from smtpd.authentication_results import received_spf
from smtpd.dns import LimitedResolver, Resolver
from smtpd.findings import IprevResult, SpfCheck, SpfResults
from smtpd.metrics import Counter
from smtpd.model import IPAddress, Session, Transaction
from smtpd.options import FilterOptions, Seconds, Strings
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply
from smtpd.services import Services

_RESULTS = "result is pass, fail, softfail, neutral, none, temperror or permerror."
CHECKS = Counter("smtpd_spf_checks_total", f"Senders checked by SPF. {_RESULTS}", ("result",))
HELO_CHECKS = Counter("smtpd_spf_helo_checks_total", f"Names in EHLO or HELO checked by SPF. {_RESULTS}", ("result",))

_HELO_SECONDS = 300.0  # a result for the name in EHLO holds, within its session

Action = Literal["dmarc", "reject", "defer", "tag", "pass"]


class SpfOptions(FilterOptions):
    """Options of `spf`."""

    fail: Action = "dmarc"
    """What a fail does: "dmarc" and "tag" give a label, "reject" answers 550, "defer" 451, "pass" nothing."""
    softfail: Literal["defer", "tag", "pass"] = "tag"  # RFC 7208 §8.5: it should not be refused for this alone
    """What a softfail does."""
    permerror: Literal["reject", "defer", "tag", "pass"] = "tag"
    """What a broken record does."""
    temperror: Literal["defer", "tag", "pass"] = "tag"
    """What a lookup does that failed for now."""
    helo_fail: Literal["reject", "defer", "tag", "pass"] = "tag"
    """What a fail of the name in EHLO or HELO does."""
    longest: Annotated[Seconds, Field(gt=0)] = LONGEST_CHECK
    """Longest time a check may take, seconds, and at most two thirds of `timeout`; then its result is temperror
    (RFC 7208 says 20 or more)."""
    received_spf: bool = False
    """Whether a Received-SPF field is written as well; Authentication-Results says the same (RFC 7208 §9)."""
    unless: Strings = ("authenticated", "trusted-forwarder")
    """Conditions that silence a refusal: "authenticated", "trusted", "tls", or a label another filter gives."""


@dataclass(frozen=True, slots=True)
class _Answers:
    """What a result can lead to."""

    label: str
    reject: Reply
    defer: Reply


_FAIL = _Answers("spf-fail", replies.SPF_FAIL, replies.SPF_FAIL_LATER)
_SOFTFAIL = _Answers("spf-softfail", replies.SPF_FAIL_LATER, replies.SPF_FAIL_LATER)
_PERMERROR = _Answers("spf-permerror", replies.SPF_PERMERROR, replies.SPF_PERMERROR_LATER)
_TEMPERROR = _Answers("spf-temperror", replies.SPF_TEMPERROR, replies.SPF_TEMPERROR)
_HELO_FAIL = _Answers("spf-helo-fail", replies.SPF_HELO_FAIL, replies.SPF_HELO_FAIL_LATER)


@dataclass(frozen=True, slots=True)
class _HeloCheck:
    """What came of a name in EHLO: the same for all messages of a session, and a client can send many."""

    ip: IPAddress
    name: str
    check: SpfCheck
    when: float
    """Seconds of the event loop."""


class Spf(Filter):
    """Checks what the client said about itself and about the sender."""

    name = "spf"
    Options = SpfOptions
    uses = (IprevResult,)
    gives = (SpfResults,)
    labels: ClassVar[frozenset[str]] = frozenset(
        answers.label for answers in (_FAIL, _SOFTFAIL, _PERMERROR, _TEMPERROR, _HELO_FAIL)
    )

    def __init__(self, name: str, options: SpfOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._longest = min(options.longest, self.lookup_time or options.longest)
        self._writes_field = options.received_spf
        self._of_sender: dict[str, tuple[Action, _Answers]] = {
            "fail": (options.fail, _FAIL),
            "softfail": (options.softfail, _SOFTFAIL),
            "permerror": (options.permerror, _PERMERROR),
            "temperror": (options.temperror, _TEMPERROR),
        }
        self._of_helo: dict[str, tuple[Action, _Answers]] = {"fail": (options.helo_fail, _HELO_FAIL)}
        self._checks = services.metrics.counter(CHECKS)
        self._helo_checks = services.metrics.counter(HELO_CHECKS)

    def can_refuse(self) -> bool:
        """Whether any result is refused or put off."""
        return any(action in ("reject", "defer") for action, _ in (*self._of_sender.values(), *self._of_helo.values()))

    async def on_mail(self, mail: Transaction) -> Verdict:
        """Check both identities at the same time."""
        session = mail.session
        if self.excuses(session):
            return PASS
        found = await self._check(mail)
        mail.facts.add(found)
        self._checks.labels(found.mailfrom.result).inc()
        verdict = self._judge(found.mailfrom, mail, self._of_sender)
        if found.helo is not None and found.helo is not found.mailfrom:
            self._helo_checks.labels(found.helo.result).inc()
            verdict = _both(verdict, self._judge(found.helo, mail, self._of_helo))
        return replace(verdict, headers=(self._received_spf(found.mailfrom, mail),)) if self._writes_field else verdict

    def _received_spf(self, check: SpfCheck, mail: Transaction) -> tuple[str, str]:
        field = received_spf(
            check.result,
            receiver=self.services.hostname,
            identity=check.identity,
            client_ip=mail.session.ip_text,
            envelope_from=mail.sender.text,
            helo=mail.session.helo,
            mechanism=check.mechanism,
            utf8=mail.smtputf8,
        )
        name, _, value = field.decode("utf-8").partition(": ")
        return name, value.removesuffix("\r\n")

    async def _check(self, mail: Transaction) -> SpfResults:
        session, sender = mail.session, mail.sender
        client = Client(session.ip, session.helo, self.services.hostname)
        if known := _known_helo(session):
            return SpfResults(known if sender.is_null else await self._check_sender(client, mail), known)
        # Started by hand: what is known already is answered without a turn of the loop.
        checking = asyncio.Task(
            self._one(client, "helo", "postmaster", session.helo, session.helo, self._lookups_of_helo(mail)),
            loop=asyncio.get_running_loop(), eager_start=True,
        )  # fmt: skip
        try:
            mailfrom = await self._check_sender(client, mail) if not sender.is_null else await checking  # RFC 7208 §2.4
            helo = await checking
        finally:
            checking.cancel()  # and if it broke, too, nobody has to hear of it twice
        session.facts.add(_HeloCheck(session.ip, session.helo, helo, asyncio.get_running_loop().time()))
        return SpfResults(mailfrom, helo)

    async def _check_sender(self, client: Client, mail: Transaction) -> SpfCheck:
        sender, lookups = mail.sender, self.services.lookups(mail)
        return await self._one(client, "mailfrom", sender.local, sender.domain, sender.text, lookups)

    def _lookups_of_helo(self, mail: Transaction) -> Resolver:
        """Its own, half as many as a message has: a name that the client chose must not cost the sender its result."""
        limit = self.services.lookups_per_message
        if mail.sender.is_null:
            return self.services.lookups(mail)
        return LimitedResolver(self.services.resolver, (limit + 1) // 2, self.services.metrics)

    async def _one(
        self,
        client: Client,
        identity: Literal["mailfrom", "helo"],
        local: str,
        domain: str,
        identifier: str,
        lookups: Resolver,
    ) -> SpfCheck:
        found = await evaluate(client, local, domain, lookups, longest=self._longest)
        if found.failure is not None:
            self.services.log.warning("spf-not-evaluated", filter=self.table, domain=domain, exception=found.failure)
        return SpfCheck(
            found.result, identity, domain, identifier,
            reason=found.reason, explanation=found.explanation, mechanism=found.mechanism,
        )  # fmt: skip

    def _judge(self, check: SpfCheck, mail: Transaction, table: dict[str, tuple[Action, _Answers]]) -> Verdict:
        action, answers = table.get(check.result, ("pass", _FAIL))
        if action == "pass":
            return PASS
        labels = frozenset((answers.label,))
        if action in ("dmarc", "tag"):
            return Verdict(labels=labels)
        is_final = action == "reject" and not may_be_forwarded(mail, self.options.unless)
        reply = answers.reject if is_final else answers.defer
        if reply is replies.SPF_FAIL and check.explanation:
            reply = replies.SPF_FAIL_EXPLAINED
        filled = reply(ip=mail.session.ip, domain=check.domain, reason=check.reason, explanation=check.explanation)
        return Verdict(filled, labels=labels)


def _known_helo(session: Session) -> SpfCheck | None:
    """What is known already about the client and the name it uses now; what failed for now is asked again."""
    known = session.facts.get(_HeloCheck)
    if known is None or (known.ip, known.name) != (session.ip, session.helo) or known.check.result == "temperror":
        return None
    return known.check if asyncio.get_running_loop().time() < known.when + _HELO_SECONDS else None


def _both(first: Verdict, second: Verdict) -> Verdict:
    """One verdict of two: the heavier refusal, or else the first, and all labels."""
    reply = first.reply or second.reply
    if second.reply is not None and second.reply.is_permanent and (reply is None or not reply.is_permanent):
        reply = second.reply
    labels = first.labels | second.labels
    return Verdict(reply, labels=labels) if reply is not None or labels else PASS
