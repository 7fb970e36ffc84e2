"""The domains that a message says it is from (RFC 9989 §5.3.1, RFC 7489 §6.6.1). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Literal

from smtpd.address_list import parse_address_list
from smtpd.addresses import AddressError
from smtpd.content import MAX_HEAD
from smtpd.header_fields import count_named, values_of
from smtpd.model import Message

MAX_DOMAINS = 10  # RFC 9989 §11.5 leaves the number to us; each may cost eight questions to DNS


@dataclass(frozen=True, slots=True)
class Authors:
    """Domains of the From field as A-labels or address literals, each once, in order; or what is wrong."""

    domains: tuple[str, ...] = ()
    problem: str = ""
    """A sentence for the sender."""
    kind: Literal["", "count", "nobody"] = ""
    """"count": too many of something, or no From field; "nobody": nobody in it has a domain."""


def find_authors(message: Message) -> Authors:
    """Who wrote a message."""
    head = message.content.head()
    if len(head) >= MAX_HEAD:  # another From could stand where nobody looks
        return Authors(problem="The header section is too big", kind="count")
    fields = list(islice(values_of(head, "from"), 2))
    if len(fields) != 1:
        number = count_named(head, "from")
        return Authors(problem=f"A message has exactly one From field, not {number}", kind="count")
    try:
        # Who wrote something that is almost an address is asked, too: what people see is the same.
        domains = parse_address_list(fields[0]).domains
    except AddressError as error:
        return Authors(problem=f"The From field cannot be read: {error.problem}", kind="count")
    if not domains:
        return Authors(problem="The From field has no address with a domain", kind="nobody")
    if len(domains) > MAX_DOMAINS:
        return Authors(problem=f"The From field names more than {MAX_DOMAINS} domains", kind="count")
    return Authors(domains)
