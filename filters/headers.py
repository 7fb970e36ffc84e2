"""Refuse messages whose header section is broken: not exactly one From, bad syntax, too much of it.

Only the header section that was received is looked at, never changed, so what a later filter reads (a DKIM
signature, say) is what is delivered. What is refused, with 550 5.6.0 and a sentence saying why:

- No From field, or more than one. Who wrote the message would depend on who reads it, and DMARC could be
  bypassed. This cannot be switched off.
- A From field without an address that has a domain, see `from_syntax`. One field with several authors is fine,
  from one domain or many, and so is a group (RFC 6854) as long as somebody is in it.
- Two of a field that a message has once, see `single`; none of a field that it must have, see `required`.
- A line that is no header field. A header section ends with an empty line, or with the message. One that runs
  into the body without an empty line is refused: whoever guesses where it ends may guess differently from the
  next one, and then what was signed and checked is not what is shown. (Postfix ends the section there instead.)
- An octet 0 anywhere in the header section.
- More than `max_fields` fields, or a line longer than `max_line`. A section bigger than `max_size` hears 554.

`smtpd_headers_problems_total` counts which it was, in observe mode, too.

Fields that hold UTF-8 without having asked for it (SMTPUTF8) are not refused: it is common, and does no harm.
Mail of users who logged in is looked at like everybody's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from smtpd import metrics, replies
from smtpd.address_list import parse_address_list
from smtpd.addresses import AddressError
from smtpd.content import MAX_HEAD
from smtpd.header_fields import count_fields
from smtpd.model import Message, Transaction
from smtpd.options import Bytes, FilterOptions, as_tuple
from smtpd.policy import PASS, Filter, Verdict
from smtpd.services import Services

PROBLEMS = metrics.Counter(
    "smtpd_headers_problems_total",
    "Broken header sections by their first problem: too-big, nul, too-many, no-field, long-line, authors, repeated, "
    "missing, from-syntax.",
    ("filter", "problem"),
)
Problem = Literal[
    "too-big", "nul", "too-many", "no-field", "long-line", "authors", "repeated", "missing", "from-syntax"
]  # fmt: skip

_FIELD_NAME = re.compile(r"[!-9;-~]+")  # RFC 5322 §3.6.8


def _field_name(name: str) -> str:
    if _FIELD_NAME.fullmatch(name) is None:
        raise ValueError('must be the name of a header field, such as "Subject"')
    return name


FieldName = Annotated[str, AfterValidator(_field_name)]
FieldNames = Annotated[tuple[FieldName, ...], BeforeValidator(as_tuple)]


class HeadersOptions(FilterOptions):
    """Options of `headers`."""

    from_syntax: Literal["strict", "address", "any"] = "address"
    """The From field must follow the grammar throughout; or hold at least one address with a domain; or just be."""
    # RFC 5322 §3.6 wants eleven fields to be single. PHP's mail() and many scripts repeat To, Cc and Reply-To;
    # of those below a second one is hardly ever a mistake, but often shows something else than what was signed.
    single: FieldNames = ("Date", "Message-ID", "Sender", "Subject")
    """Fields that no message may have twice, besides From."""
    required: FieldNames = ()
    """Fields that every message must have, besides From; "Date" is the only other one in RFC 5322."""
    max_fields: Annotated[int, Field(ge=0)] = 1000
    """Most fields of a header section; 0 = no limit."""
    # RFC 5322 §2.1.1 says 998; long unfolded lines in mail from real senders are common.
    max_line: Bytes = 0
    """Longest line of a header section, octets without the line end; 0 = no limit but that of all lines."""
    # Postfix header_size_limit cuts at 100 KiB, Exim header_maxsize refuses above 1 MiB.
    max_size: Annotated[Bytes, Field(gt=0, le=MAX_HEAD)] = 256 << 10
    """Biggest header section, at most 1M."""


class Headers(Filter):
    """Looks at the header section of every message."""

    name = "headers"
    Options = HeadersOptions

    def __init__(self, name: str, options: HeadersOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._limits = options
        self._problems_found = services.metrics.counter(PROBLEMS)
        self._single = [(field.lower(), field) for field in options.single if field.lower() != "from"]
        self._required = [(field.lower(), field) for field in options.required if field.lower() != "from"]

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """The first thing that is wrong."""
        head = message.content.head()
        limit = self._limits.max_size
        if len(head) > limit or len(head) >= MAX_HEAD:
            self._count("too-big")
            return Verdict(replies.HEADER_TOO_BIG(limit=f"{limit} octets"))
        for problem, sentence in self._problems(head, message):
            self._count(problem)
            return Verdict(replies.BAD_HEADER(problem=sentence))
        return PASS

    def _problems(self, head: bytes, message: Message) -> Iterator[tuple[Problem, str]]:
        limits = self._limits
        if b"\0" in head:
            yield "nul", "The header section holds an octet 0"
        if limits.max_fields and count_fields(head) > limits.max_fields:
            yield "too-many", f"The header section has more than {limits.max_fields} fields"
        fields = message.fields  # they are split only now: that takes a microsecond each
        found = Counter(name for name, _ in fields)
        if found[""]:
            yield "no-field", f"Line {_line_of_no_field(fields)} is no header field; an empty line ends the header"
        if limits.max_line and any(len(line) > limits.max_line for line in head.split(b"\r\n")):
            yield "long-line", f"A header line is longer than {limits.max_line} octets"
        if found["from"] != 1:
            yield "authors", f"A message has exactly one From field, not {found['from']}"
        for name, field in self._single:
            if found[name] > 1:
                yield "repeated", f"A message has one {field} field, not {found[name]}"
        for name, field in self._required:
            if not found[name]:
                yield "missing", f"The {field} field is missing"
        if limits.from_syntax != "any" and (problem := self._wrong_author(fields)):
            yield "from-syntax", problem

    def _wrong_author(self, fields: Sequence[tuple[str, bytes]]) -> str | None:
        try:
            authors = parse_address_list(next(value for name, value in fields if name == "from"))
        except AddressError as error:
            return f"The From field cannot be read: {error.problem}"
        if not authors.addresses:
            if authors.domains:
                return "The address in the From field does not follow RFC 5322"
            return "The From field has no address with a domain"
        if self._limits.from_syntax == "strict" and not authors.is_clean:
            return "The From field does not follow RFC 5322"
        return None

    def _count(self, problem: Problem) -> None:
        self._problems_found.labels(self.table, problem).inc()


def _line_of_no_field(fields: Sequence[tuple[str, bytes]]) -> int:
    line = 1
    for name, value in fields:
        if not name:
            break
        line += 1 + value.count(b"\r\n")
    return line
