"""The table `[smtpd.dns]`."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from smtpd.options import Options, Seconds, as_tuple

PORT = 53


def split_nameserver(text: str) -> tuple[str, int]:
    """Take "127.0.0.1", "127.0.0.1:5353", "::1" or "[::1]:5353" apart: (address, port); ValueError for others."""
    host, colon, port = text, "", ""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not closed or (rest and colon != ":"):
            raise ValueError(_WANTED)
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    if colon and not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535):
        raise ValueError(_WANTED)
    try:
        address = ip_address(host)
    except ValueError:
        raise ValueError(_WANTED) from None
    if "%" in host:
        raise ValueError("must not name an interface")
    return str(address), int(port) if colon else PORT


_WANTED = 'must look like "127.0.0.1", "127.0.0.1:5353" or "[::1]:5353"'


def _check_nameserver(text: str) -> str:
    split_nameserver(text)
    return text


class DnsOptions(Options):
    """Whom lookups are sent to, and how long their answers are kept."""

    nameservers: Annotated[
        tuple[Annotated[str, AfterValidator(_check_nameserver)], ...], BeforeValidator(as_tuple)
    ] = ()
    """Addresses of nameservers, each with a port if it is not 53 ("127.0.0.1:5353", "[::1]:5353"); empty: those of
    the system."""
    timeout: Annotated[Seconds, Field(gt=0)] = 5.0
    """Longest time one lookup may take, all tries included, seconds; then it has failed for now."""
    tries: Annotated[int, Field(ge=1, le=10)] = 3
    """How often every nameserver is asked within that time; aiodns asks more often if it has not heard anything."""
    cache_entries: Annotated[int, Field(ge=0)] = 20_000
    """Answers that are kept; one above 512 bytes counts as several. 0: none."""
    min_ttl: Seconds = 5.0
    """Shortest time records are kept, seconds, whatever their zone says."""
    max_ttl: Seconds = 86400.0
    """Longest time records are kept, seconds."""
    negative_ttl: Seconds = 60.0
    """Longest time it is kept that there is no such name or record, seconds."""
    serve_stale: Seconds = 0.0
    """How long old answers are kept for when no nameserver answers, seconds; 0: never."""
    backend: Literal["auto", "aiodns", "dnspython"] = "auto"
    """"aiodns" is the fast one; "dnspython" knows TTLs of all types, DNSSEC's flag and nameservers with different
    ports; "auto" takes aiodns where it can."""
    lookups_per_message: Annotated[int, Field(ge=0)] = 100
    """Lookups of all filters together for one message; further ones fail for now. Not counted are those answered from
    the cache, and keys of DKIM, policies of DMARC and SPF of the name in EHLO, which have limits of their own. 0: no
    limit."""

    @model_validator(mode="after")
    def _ports_fit_the_backend(self) -> Self:
        if self.backend == "aiodns" and not self.shares_port:
            raise ValueError('nameservers must all have the same port with backend = "aiodns"')
        return self

    @property
    def servers(self) -> list[tuple[str, int]]:
        """The nameservers as (address, port)."""
        return [split_nameserver(text) for text in self.nameservers]

    @property
    def shares_port(self) -> bool:
        """Whether all nameservers listen on the same port."""
        return len({port for _, port in self.servers}) < 2
