"""Lists of networks, host names and addresses that operators write down, and what is in them.

Every question is answered from hashed sets, so its cost depends on the length of what is asked for and on the
number of different prefix lengths, not on the number of entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from smtpd.addresses import Address, AddressError, normalise_domain, parse_address
from smtpd.options import as_tuple

_HOST = re.compile(r"[!-)+-~]+")  # printable, no blanks, no "*"


class NetworkSet:
    """IP networks; an IPv4 address that comes as an IPv6 one (::ffff:192.0.2.1) is looked up as both."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        found: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            found.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift)
        self._networks = tuple((version, shift, starts) for (version, shift), starts in found.items())

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        if not self._networks:
            return False
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return self._holds(address) or (mapped is not None and self._holds(mapped))

    def _holds(self, address: IPv4Address | IPv6Address) -> bool:
        number, asked = int(address), address.version
        return any(version == asked and number >> shift in starts for version, shift, starts in self._networks)


class HostSet:
    """Names as in `HostPattern`, compared without case and without the dot at the end."""

    __slots__ = ("_above", "_exact")

    def __init__(self, patterns: Iterable[str]) -> None:
        names = [host_key(pattern) for pattern in patterns]
        self._exact = frozenset(name for name in names if not name.startswith("*."))
        self._above = frozenset(name[2:] for name in names if name.startswith("*."))

    def __contains__(self, name: str) -> bool:
        if not self._exact and not self._above:
            return False
        key = host_key(name)
        return key in self._exact or any(parent in self._above for parent in _parents(key))


class AddressSet:
    """Mail addresses as in `AddressPattern`, compared by `Address.key`."""

    __slots__ = ("_addresses", "_domains")

    def __init__(self, patterns: Iterable[str]) -> None:
        keys = [address_key(pattern) for pattern in patterns]
        self._addresses = frozenset(key for key in keys if not key.startswith("@"))
        self._domains = HostSet(key[1:] for key in keys if key.startswith("@"))

    def __contains__(self, address: Address) -> bool:
        return address.key in self._addresses or address.domain in self._domains if address.domain else False


def host_key(pattern: str) -> str:
    """Bring a name or "*.name" into the form that is compared."""
    return pattern.lower().removesuffix(".")


def address_key(pattern: str) -> str:
    """Bring "joe@a.example", "@a.example" or "@*.a.example" into the form that is compared; AddressError."""
    if pattern.startswith("@*."):
        return f"@*.{normalise_domain(pattern[3:])}"
    if pattern.startswith("@"):
        return f"@{normalise_domain(pattern[1:])}"
    address = parse_address(pattern)
    if not address.domain:
        raise AddressError("the domain is missing")
    if "*" in address.local:
        raise AddressError("a \"*\" cannot stand for local parts, leave them out to mean all")
    return address.key


def check_host(pattern: str) -> str:
    """Let a good `HostPattern` pass, in A-labels; ValueError."""
    star = "*." if pattern.startswith("*.") else ""
    name = pattern.removeprefix(star)
    try:
        ascii_name = name if name.isascii() else normalise_domain(name)
    except AddressError as error:
        raise ValueError(f"must be a host name, but {error.problem}: {pattern!r}") from None
    if _HOST.fullmatch(ascii_name) is None:
        raise ValueError(f'must be a name such as "host.example" or "*.example", not {pattern!r}')
    return star + ascii_name


def check_domain(pattern: str) -> str:
    """Let a good `DomainPattern` pass, in A-labels; ValueError."""
    star = "*." if pattern.startswith("*.") else ""
    name = pattern.removeprefix(star).removesuffix(".")
    try:
        if name.startswith("[") or name.rpartition(".")[2].isdecimal():  # RFC 3696 §2: no top level is a number
            raise AddressError("it is an address")
        return star + normalise_domain(name)
    except AddressError as error:
        shapes = '"host.example" or "*.example"'
        raise ValueError(f"must be a domain such as {shapes}, but {error.problem}: {pattern!r}") from None


def check_address(pattern: str) -> str:
    """Let a good `AddressPattern` pass; ValueError."""
    try:
        address_key(pattern)
    except AddressError as error:
        shapes = '"joe@a.example", "@a.example" or "@*.a.example"'
        raise ValueError(f"must look like {shapes}, but {error.problem}: {pattern!r}") from None
    return pattern


def _parents(name: str) -> Iterator[str]:
    while name:
        _, _, name = name.partition(".")
        yield name


HostPattern = Annotated[str, AfterValidator(check_host)]
"""A host name, or "*.name" for everything below `name`."""
DomainPattern = Annotated[str, AfterValidator(check_domain)]
"""A domain, or "*.domain" for everything below; unlike a host, it must be one that mail can have in an address."""
AddressPattern = Annotated[str, AfterValidator(check_address)]
"""A mail address, "@domain", or "@*.domain" for all domains below `domain`."""
HostPatterns = Annotated[tuple[HostPattern, ...], BeforeValidator(as_tuple)]
DomainPatterns = Annotated[tuple[DomainPattern, ...], BeforeValidator(as_tuple)]
AddressPatterns = Annotated[tuple[AddressPattern, ...], BeforeValidator(as_tuple)]
