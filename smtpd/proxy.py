"""The PROXY protocol: what a load balancer says in front of a connection about the client behind it.

Versions 1 and 2 as in haproxy's doc/proxy-protocol.txt (the sections cited here), strictly. Pure:
`HeaderReader` says how many octets may be read, is fed them, and knows in the end who the client is.
It never asks for an octet beyond the header: what follows belongs to SMTP, or to TLS.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from smtpd.model import IPAddress, plain_ip

V1_START = b"PROXY "
V2_START = b"\r\n\r\n\x00\r\nQUIT\n"
MAX_V1 = 107  # octets, CRLF included (§2.1)
MAX_V2 = 4096  # octets behind the first 16; the addresses take 216 at most, the rest are certificates and names

Kind = Literal["proxied", "local", "unknown"]

_V1_SHORTEST = len(b"PROXY UNKNOWN\r\n")
_V2_FIXED = 16
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
# §2.1 knows hexadecimal groups only, but inet_ntop(3), which senders use, writes ::ffff:192.0.2.1.
_IPV6 = re.compile(r"[0-9A-Fa-f:]+(?:[0-9]+(?:\.[0-9]+){3})?")
_SHORTEST_FIELDS: dict[str, tuple[int, ...]] = {"TCP4": (7, 7, 1, 1), "TCP6": (2, 2, 1, 1), "UNKNOWN": ()}
_TLV_CRC32C = 0x03  # §2.2.3
_CASTAGNOLI = 0x82F63B78  # the polynomial of CRC32c, reversed


class ProxyError(ValueError):
    """The octets are no valid header; the text says what is wrong, and holds nothing of them."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who is behind the connection. Without addresses (not "proxied") those of the connection itself count.

    "local" is the balancer itself, looking whether we live; "unknown" a client it cannot describe.
    """

    kind: Kind
    source: IPAddress | None = None
    source_port: int = 0
    destination: IPAddress | None = None
    destination_port: int = 0


LOCAL = Origin("local")
UNKNOWN = Origin("unknown")


class HeaderReader:
    """Reads one header: as long as `origin` is None, feed it at most `wanted` octets more."""

    __slots__ = ("_data", "origin", "wanted")

    def __init__(self) -> None:
        self._data = b""
        self.wanted = _V1_SHORTEST
        self.origin: Origin | None = None

    def feed(self, data: bytes) -> None:
        """Take the next octets, one at least; ProxyError as soon as they cannot become a header."""
        if not data or len(data) > self.wanted:
            raise ValueError(f"{len(data)} octets where 1 to {self.wanted} are wanted")
        self._data += data
        if self._data.startswith(V1_START[: len(self._data)]):
            self._feed_v1()
        elif self._data.startswith(V2_START[: len(self._data)]):
            self._feed_v2()
        else:
            raise ProxyError("not a PROXY header")

    def _feed_v1(self) -> None:
        line = self._data
        if line.endswith(b"\r\n"):
            self.origin = _parse_v1(line[:-2])
            return
        if b"\n" in line or b"\r" in line[:-1]:
            raise ProxyError("a lone CR or LF")
        self.wanted = 1 if line.endswith(b"\r") else _missing_v1(line)
        if len(line) + self.wanted > MAX_V1:
            raise ProxyError("the line is too long")

    def _feed_v2(self) -> None:
        self.wanted = _V2_FIXED - len(self._data)
        if self.wanted > 0:
            return
        length = int.from_bytes(self._data[14:16])
        if length > MAX_V2:
            raise ProxyError("the header is too long")
        self.wanted = _V2_FIXED + length - len(self._data)
        if self.wanted == 0:
            self.origin = _parse_v2(self._data)


def _missing_v1(line: bytes) -> int:
    """How many octets the shortest header with this beginning still needs."""
    if len(line) < _V1_SHORTEST:
        return _V1_SHORTEST - len(line)
    fields = line.decode("latin-1").split(" ")[1:]
    shortest = _SHORTEST_FIELDS.get(fields[0])
    if shortest is None:
        raise ProxyError("an unknown family")
    return len("\r\n") + sum(len(" ") + length for length in shortest[len(fields) - 1 :])


def _parse_v1(line: bytes) -> Origin:
    try:
        fields = line.decode("ascii").split(" ")[1:]
    except UnicodeDecodeError:
        if line.startswith(b"PROXY UNKNOWN "):
            return UNKNOWN  # §2.1: whatever stands before the CRLF is ignored
        raise ProxyError("octets beyond ASCII") from None
    if fields[0] == "UNKNOWN":
        return UNKNOWN
    parse = _V1_ADDRESSES.get(fields[0])
    if parse is None or len(fields) != 5:
        raise ProxyError("a family without its four fields")
    source, destination = parse(fields[1]), parse(fields[2])
    return Origin("proxied", plain_ip(source), _port(fields[3]), plain_ip(destination), _port(fields[4]))


def _ipv4(text: str) -> IPAddress:
    try:
        return IPv4Address(text)  # refuses leading zeros
    except ValueError:
        raise ProxyError("a bad IPv4 address") from None


def _ipv6(text: str) -> IPAddress:
    try:
        return IPv6Address(text if _IPV6.fullmatch(text) else "")
    except ValueError:
        raise ProxyError("a bad IPv6 address") from None


_V1_ADDRESSES: dict[str, Callable[[str], IPAddress]] = {"TCP4": _ipv4, "TCP6": _ipv6}


def _port(text: str) -> int:
    if _PORT.fullmatch(text) is None or int(text) > 65535:
        raise ProxyError("a bad port")
    return int(text)


def _parse_v2(header: bytes) -> Origin:
    version, command = header[12] >> 4, header[12] & 15
    if version != 2 or command > 1:
        raise ProxyError("an unknown version or command")
    if command == 0:
        return LOCAL  # §2.2: the family and all that follows is discarded
    family, protocol, block = header[13] >> 4, header[13] & 15, header[_V2_FIXED:]
    if family > 3 or protocol > 2:
        raise ProxyError("an unknown family or protocol")
    if family == 0:
        return UNKNOWN
    size = _V2_BLOCKS[family]
    if len(block) < size:
        raise ProxyError("the addresses are cut off")
    _check_vectors(header, _V2_FIXED + size)
    if family == 1 and protocol == 1:
        source, destination, *ports = struct.unpack("!4s4sHH", block[:size])
        return Origin("proxied", IPv4Address(source), ports[0], IPv4Address(destination), ports[1])
    if family == 2 and protocol == 1:
        source, destination, *ports = struct.unpack("!16s16sHH", block[:size])
        return Origin("proxied", plain_ip(IPv6Address(source)), ports[0], plain_ip(IPv6Address(destination)), ports[1])
    return UNKNOWN  # §2.2: what is valid but not supported counts as unspecified


_V2_BLOCKS = {1: 12, 2: 36, 3: 216}  # octets of the addresses


def _check_vectors(header: bytes, position: int) -> None:
    """Skip the type-length-value vectors behind the addresses; only the checksum is looked at."""
    while position < len(header):
        start = position + 3
        length = int.from_bytes(header[position + 1 : start])
        if start > len(header) or start + length > len(header):
            raise ProxyError("a vector is cut off")
        if header[position] == _TLV_CRC32C:
            if length != 4:
                raise ProxyError("a checksum of a wrong length")
            zeroed = header[:start] + bytes(4) + header[start + 4 :]
            if crc32c(zeroed) != int.from_bytes(header[start : start + 4]):
                raise ProxyError("the checksum is wrong")
        position = start + length


def crc32c(data: bytes) -> int:
    """The checksum that §2.2.3 asks for: the one of SCTP (RFC 4960 Appendix B)."""
    register = 0xFFFFFFFF
    for octet in data:
        register = _CRC_TABLE[(register ^ octet) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def _table_entry(octet: int) -> int:
    for _ in range(8):
        octet = (octet >> 1) ^ (_CASTAGNOLI if octet & 1 else 0)
    return octet


_CRC_TABLE = [_table_entry(octet) for octet in range(256)]
