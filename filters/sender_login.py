"""Have users who logged in send as nobody but themselves. First observe whom that hits, as in a shared mailbox.

Without this, whoever has a login here, or the password of one, can write as anybody: as his boss, too, and our
signature then says that it is true. It looks at two addresses, and what does not belong to the login is refused with
550 5.7.1 (RFC 6409 §6.1): the sender of the envelope (`envelope`) when the recipient is named, and every author in the
From field (`header`) when the message is there. Each of them can be set to "tag" (the label `sender-mismatch`, nothing
else) or "pass". Whoever has not logged in is none of its business; that strangers pretend to be us is for `own_domain`.
Postmaster can always be reached.

Whose an address is:

- A login that is an address may use this address. A login without a domain, such as `joe`, may use `joe@` each of our
  domains: those in `[smtpd.domains]`, with `*.example.com` for all names below; "*" there does not count.
- `senders` and `file` give a login more: `joe@a.example`, `@a.example` for the whole domain, `@*.a.example` for all
  domains below, or "*" for everything. The login "*" stands for every login.
- Whoever may use an address may also use it with a subaddress, as in `joe+news@a.example`, unless `subaddresses` is
  false. Where the `subaddress_separator` is one that names hold, such as "-", it should be.
- Upper and lower case, quotes that are not needed, and the way an international domain is written make no difference.

The empty sender `<>` is everybody's: programs send receipts and vacation notices with it. What is looked at in them is
From, as in all other mail.

Of several authors, and several From fields, all have to be the user's. A Sender field is no excuse (RFC 5322 §3.6.2
has there who sends for others), because people see From and not Sender. The same goes for Resent-From: a program that
"redirects" mail leaves the stranger in From, so forward it instead, or give that login "*". A From field that is
missing, too long, or not clear about who is meant is refused as well, since programs would differ in whom they show;
what looks like an address beside the angle brackets has to be the user's, too, also when it is encoded. The name in
front of them is free text otherwise, be it somebody else's name or, between quotes, his address: that is not judged.

**Start with `mode = "observe"`.** Shared mailboxes and aliases (`info@`), programs that send for others (web shops,
ticket systems, mailing lists) and printers that scan to mail need a line in `senders` or `file` first:
`smtpd_filter_would_reject_total{filter="sender_login"}` counts whom it would refuse, and the log names them.

The file has a line for each login, as in

    # sales
    alice@example.com: info@example.com sales@example.com
    listmaster: @lists.example.com

and is read again when it has changed and nobody has written into it for two seconds; until then those whom it does not
know hear 451. When it cannot be used, or has become empty, the old rights stay (`sender-file-not-usable` in the log).
A file that cannot be used at the start keeps the server from starting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from filters.sender_authors import find_authors
from filters.sender_rights import LoginName, OwnAddresses, Rights, SenderPatterns, User, parse_rights
from smtpd import replies
from smtpd.addresses import Address, AddressError
from smtpd.metrics import Counter
from smtpd.model import Message, Transaction
from smtpd.options import FilterOptions, InputFile, Strings
from smtpd.plugins import BrokenPlugin
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply
from smtpd.services import Services
from smtpd.watched_file import WatchedFile

CHECKS = Counter(
    "smtpd_sender_login_checks_total",
    "Addresses in mail of users who logged in. part is envelope or header; result is pass, fail (somebody else's), "
    "empty (the sender <>), unclear (a From field that does not say who is meant), or later (the file is changing).",
    ("part", "result"),
)

Action = Literal["reject", "tag", "pass"]
Part = Literal["envelope", "header"]
Result = Literal["pass", "fail", "empty", "unclear", "later"]

_MISMATCH = frozenset(("sender-mismatch",))
_SILENCING = frozenset(("authenticated", "tls"))


def _check_unless(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if word in _SILENCING:
            raise ValueError(f'"{word}" holds for everybody this filter looks at, so nobody would be refused')
    return words


class SenderLoginOptions(FilterOptions):
    """Options of `sender_login`."""

    senders: dict[LoginName, SenderPatterns] = {}
    """What logins may use besides their own address: { joe = ["info@a.example", "@b.example"] }; "*": every login."""
    file: InputFile = ""
    """The same for many logins: a file with a line `login: address address ...` for each; empty: none."""
    subaddresses: bool = True
    """Whether an address may also be used with a subaddress, as in `joe+news@a.example`."""
    envelope: Action = "reject"
    """What somebody else's address in MAIL FROM does: 550, a label, or nothing."""
    header: Action = "reject"
    """What somebody else's address in the From field does."""
    on_error: Literal["pass", "defer"] = "defer"
    """What a crash or a timeout means: go on without it, or 451. Never a refusal."""
    unless: Annotated[Strings, AfterValidator(_check_unless)] = ()
    """Conditions that silence a refusal: "trusted", or a label another filter gives."""

    def obstacles(self) -> Iterable[tuple[str, str]]:
        """A file whose lines make no sense."""
        if self.file:
            try:
                with suppress(OSError):  # said elsewhere
                    _watch(self.file).load()
            except ValueError as error:
                yield "file", str(error)


class SenderLogin(Filter):
    """Compares sender and authors with the login."""

    name = "sender_login"
    Options = SenderLoginOptions
    labels: ClassVar[frozenset[str]] = _MISMATCH

    def __init__(self, name: str, options: SenderLoginOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._own = OwnAddresses(services.local_domains)
        self._rights = Rights(options.senders)
        self._file = _watch(options.file, self._complain) if options.file else None
        self._separator = services.subaddress_separator if options.subaddresses else ""
        self._envelope, self._header = options.envelope, options.header
        self._checks = services.metrics.counter(CHECKS)

    def can_refuse(self) -> bool:
        """Not when it only marks."""
        return "reject" in (self._envelope, self._header)

    async def start(self) -> None:
        """Read the file; OSError or BrokenPlugin when that cannot be done."""
        if self._file is not None:
            try:
                await asyncio.to_thread(self._file.load)
            except ValueError as error:
                raise BrokenPlugin(f"filter {self.table}: {error}") from error

    async def on_mail(self, mail: Transaction) -> Verdict:
        """The sender of the envelope."""
        if mail.session.login is None:
            return PASS
        if mail.sender.is_null:
            self._count("envelope", "empty")
            return PASS
        if await self._may_use(User(mail.session.login), mail.sender):
            self._count("envelope", "pass")
            return PASS
        return self._judge("envelope", self._envelope, replies.SENDER_NOT_YOURS, mail.sender)

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """Everybody in From."""
        if mail.session.login is None:
            return PASS
        user = User(mail.session.login)
        if self._may_use_all(user):
            self._count("header", "pass")
            return PASS
        try:
            authors = find_authors(message)
        except AddressError as error:
            self._count("header", "unclear")
            return _verdict(self._header, replies.AUTHOR_UNCLEAR(problem=error.problem))
        for author in authors:
            if not await self._may_use(user, author):
                return self._judge("header", self._header, replies.AUTHOR_NOT_YOURS, author)
        self._count("header", "pass")
        return PASS

    async def _may_use(self, user: User, address: Address) -> bool:
        if self._file is not None:
            await self._file.refresh()
        return any(self._is_given(user, form) for form in self._forms(address))

    def _is_given(self, user: User, address: Address) -> bool:
        return self._own.hold(user, address) or any(rights.allow(user, address) for rights in self._all_rights())

    def _may_use_all(self, user: User) -> bool:
        return any(rights.allow_all(user) for rights in self._all_rights())

    def _all_rights(self) -> tuple[Rights, ...]:
        return (self._rights,) if self._file is None else (self._rights, self._file.content)

    def _forms(self, address: Address) -> tuple[Address, ...]:
        """The address as it stands, and without its detail, as the recipient map splits it."""
        user, separator, _ = address.local.partition(self._separator) if self._separator else ("", "", "")
        if not (user and separator):
            return (address,)
        return address, Address(user, address.domain, "")

    def _judge(self, part: Part, action: Action, refusal: Reply, address: Address) -> Verdict:
        if self._file is not None and not self._file.is_settled:
            self._count(part, "later")
            return _verdict(action, replies.SENDER_RIGHTS_LATER(address=address))
        self._count(part, "fail")
        return _verdict(action, refusal(address=address))

    def _count(self, part: Part, result: Result) -> None:
        self._checks.labels(part, result).inc()

    def _complain(self, exception: Exception) -> None:
        self.services.log.error("sender-file-not-usable", filter=self.table, problem=str(exception))


def _watch(path: str, complain: Callable[[Exception], None] = lambda _: None) -> WatchedFile[Rights]:
    return WatchedFile(
        Path(path), lambda content: parse_rights(content, path), Rights(), clock=time.monotonic, complain=complain
    )


def _verdict(action: Action, refusal: Reply) -> Verdict:
    if action == "pass":
        return PASS
    return Verdict(refusal if action == "reject" else None, labels=_MISMATCH)
