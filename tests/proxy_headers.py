"""Headers of the PROXY protocol, good and bad, by what is special about them."""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from smtpd.proxy import LOCAL, MAX_V1, MAX_V2, UNKNOWN, V2_START, Origin, crc32c

TCP4 = Origin("proxied", ip_address("203.0.113.7"), 4321, ip_address("192.0.2.1"), 25)
TCP6 = Origin("proxied", ip_address("2001:db8::7"), 4321, ip_address("2001:db8::1"), 465)
MAPPED = Origin("proxied", ip_address("203.0.113.7"), 1, ip_address("192.0.2.1"), 2)
INET = IPv4Address("203.0.113.7").packed + IPv4Address("192.0.2.1").packed + struct.pack("!HH", 4321, 25)
INET6 = IPv6Address("2001:db8::7").packed + IPv6Address("2001:db8::1").packed + struct.pack("!HH", 4321, 465)
MAPPED6 = IPv6Address("::ffff:203.0.113.7").packed + IPv6Address("::ffff:192.0.2.1").packed + struct.pack("!HH", 1, 2)


def v2(command: int, family: int, block: bytes = b"", *, length: int | None = None) -> bytes:
    return V2_START + struct.pack("!BBH", command, family, len(block) if length is None else length) + block


def vector(kind: int, value: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("!BH", kind, len(value) if length is None else length) + value


def with_checksum(block: bytes, behind: bytes = b"", *, wrong: int = 0) -> bytes:
    """A v2 header with a checksum in its vectors."""
    zeroed = v2(0x21, 0x11, block + vector(3, bytes(4)) + behind)
    checksum = struct.pack("!I", crc32c(zeroed) ^ wrong)
    return v2(0x21, 0x11, block + vector(3, checksum) + behind)


GOOD = {
    "v1 tcp4": (b"PROXY TCP4 203.0.113.7 192.0.2.1 4321 25\r\n", TCP4),
    "v1 tcp6": (b"PROXY TCP6 2001:db8::7 2001:DB8::1 4321 465\r\n", TCP6),
    "v1 tcp6 written out": (
        b"PROXY TCP6 2001:0db8:0000:0000:0000:0000:0000:0007 2001:0db8:0000:0000:0000:0000:0000:0001 4321 465\r\n",
        TCP6,
    ),
    "v1 shortest tcp4": (
        b"PROXY TCP4 1.1.1.1 1.1.1.2 0 0\r\n",
        Origin("proxied", ip_address("1.1.1.1"), 0, ip_address("1.1.1.2"), 0),
    ),
    "v1 shortest tcp6": (b"PROXY TCP6 :: :: 0 0\r\n", Origin("proxied", ip_address("::"), 0, ip_address("::"), 0)),
    "v1 highest numbers": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Origin("proxied", ip_address("255.255.255.255"), 65535, ip_address("255.255.255.255"), 65535),
    ),
    "v1 mapped ipv4": (b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:c000:0201 1 2\r\n", MAPPED),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", UNKNOWN),
    "v1 unknown with anything": (b"PROXY UNKNOWN \xff\x00 whatever\r\n", UNKNOWN),
    "v1 unknown, longest": (b"PROXY UNKNOWN ".ljust(MAX_V1 - 2, b"x") + b"\r\n", UNKNOWN),
    "v2 inet": (v2(0x21, 0x11, INET), TCP4),
    "v2 inet6": (v2(0x21, 0x21, INET6), TCP6),
    "v2 mapped ipv4": (v2(0x21, 0x21, MAPPED6), MAPPED),
    "v2 local": (v2(0x20, 0x00), LOCAL),
    "v2 local with addresses": (v2(0x20, 0x11, INET), LOCAL),
    "v2 local with nonsense": (v2(0x20, 0xFF, b"nonsense"), LOCAL),
    "v2 unspecified": (v2(0x21, 0x00), UNKNOWN),
    "v2 unspecified with octets": (v2(0x21, 0x00, b"whatever"), UNKNOWN),
    "v2 udp": (v2(0x21, 0x12, INET), UNKNOWN),
    "v2 udp6": (v2(0x21, 0x22, INET6), UNKNOWN),
    "v2 unix": (v2(0x21, 0x31, bytes(216)), UNKNOWN),
    "v2 inet, protocol unspecified": (v2(0x21, 0x10, INET), UNKNOWN),
    "v2 vectors": (v2(0x21, 0x11, INET + vector(1, b"smtp") + vector(4, b"") + vector(0xEA, b"x" * 500)), TCP4),
    "v2 checksum": (with_checksum(INET), TCP4),
    "v2 checksum in the middle": (with_checksum(INET + vector(2, b"mx.test"), vector(4, b"pad")), TCP4),
    "v2 longest": (v2(0x21, 0x11, INET + vector(4, bytes(MAX_V2 - 15))), TCP4),
}
BAD = {
    "silence of another kind": b"EHLO client.test\r\n",
    "tls hello": b"\x16\x03\x01\x02\x00\x01",
    "http": b"GET / HTTP/1.1\r\n",
    "v1 in lower case": b"proxy TCP4 203.0.113.7 192.0.2.1 4321 25\r\n",
    "v1 with two spaces": b"PROXY  TCP4 203.0.113.7 192.0.2.1 4321 25\r\n",
    "v1 with a tab": b"PROXY\tTCP4 203.0.113.7 192.0.2.1 4321 25\r\n",
    "v1 without family": b"PROXY \r\n" + b"x" * 20,
    "v1 tcp5": b"PROXY TCP5 203.0.113.7 192.0.2.1 4321 25\r\n",
    "v1 udp4": b"PROXY UDP4 203.0.113.7 192.0.2.1 4321 25\r\n",
    "v1 family in lower case": b"PROXY tcp4 203.0.113.7 192.0.2.1 4321 25\r\n",
    "v1 unknown glued": b"PROXY UNKNOWNS\r\n",
    "v1 unknown in lower case": b"PROXY unknown\r\n",
    "v1 ipv6 as tcp4": b"PROXY TCP4 2001:db8::7 2001:db8::1 4321 25\r\n",
    "v1 ipv4 as tcp6": b"PROXY TCP6 203.0.113.7 192.0.2.1 4321 25\r\n",
    "v1 mixed families": b"PROXY TCP4 203.0.113.7 2001:db8::1 4321 25\r\n",
    "v1 leading zero in an address": b"PROXY TCP4 203.0.113.07 192.0.2.1 4321 25\r\n",
    "v1 octet over 255": b"PROXY TCP4 203.0.113.256 192.0.2.1 4321 25\r\n",
    "v1 three octets": b"PROXY TCP4 203.0.113 192.0.2.1 4321 25\r\n",
    "v1 network": b"PROXY TCP4 203.0.113.0/24 192.0.2.1 4321 25\r\n",
    "v1 address in hexadecimal": b"PROXY TCP4 0xcb.0.113.7 192.0.2.1 4321 25\r\n",
    "v1 scoped ipv6": b"PROXY TCP6 fe80::7%eth0 fe80::1 4321 25\r\n",
    "v1 bracketed ipv6": b"PROXY TCP6 [2001:db8::7] 2001:db8::1 4321 25\r\n",
    "v1 ipv6 with two gaps": b"PROXY TCP6 2001::db8::7 2001:db8::1 4321 25\r\n",
    "v1 ipv6 with nine groups": b"PROXY TCP6 1:2:3:4:5:6:7:8:9 2001:db8::1 4321 25\r\n",
    "v1 ipv6 with seven groups": b"PROXY TCP6 1:2:3:4:5:6:7 2001:db8::1 4321 25\r\n",
    "v1 ipv6 with a long group": b"PROXY TCP6 02001:db8::7 2001:db8::1 4321 25\r\n",
    "v1 leading zero in a port": b"PROXY TCP4 203.0.113.7 192.0.2.1 04321 25\r\n",
    "v1 port over 65535": b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 25\r\n",
    "v1 negative port": b"PROXY TCP4 203.0.113.7 192.0.2.1 -1 25\r\n",
    "v1 port with a sign": b"PROXY TCP4 203.0.113.7 192.0.2.1 +25 25\r\n",
    "v1 port with an underscore": b"PROXY TCP4 203.0.113.7 192.0.2.1 4_3 25\r\n",
    "v1 no port": b"PROXY TCP4 203.0.113.7 192.0.2.1 4321 \r\n",
    "v1 port as a word": b"PROXY TCP4 203.0.113.7 192.0.2.1 smtp 25\r\n",
    "v1 a field too few": b"PROXY TCP4 203.0.113.7 192.0.2.1 4321\r\n" + b"x" * 20,
    "v1 a field too many": b"PROXY TCP4 203.0.113.7 192.0.2.1 4321 25 1\r\n",
    "v1 trailing space": b"PROXY TCP4 203.0.113.7 192.0.2.1 4321 25 \r\n",
    "v1 a space too many": b"PROXY TCP4 203.0.113.7  192.0.2.1 4321 25\r\n",
    "v1 lone lf": b"PROXY TCP4 203.0.113.7 192.0.2.1 4321 25\nEHLO x\r\n",
    "v1 lone cr": b"PROXY TCP4 203.0.113.7 192.0.2.1 4321 25\rEHLO x\r\n",
    "v1 unknown, lone lf": b"PROXY UNKNOWN\nEHLO client.test\r\n",
    "v1 unknown, lone lf behind a word": b"PROXY UNKNOWN x\nEHLO client.test\r\n",
    "v1 unknown, lone cr behind a word": b"PROXY UNKNOWN x\rEHLO client.test\r\n",
    "v1 nul": b"PROXY TCP4 203.0.113.7\x00 192.0.2.1 4321 25\r\n",
    "v1 beyond ascii": b"PROXY TCP4 203.0.113.\xb2 192.0.2.1 4321 25\r\n",
    "v1 too long": b"PROXY UNKNOWN ".ljust(MAX_V1 - 1, b"x") + b"\r\n",
    "v1 without end": b"PROXY TCP6 ".ljust(200, b"1"),
    "v2 version 1": v2(0x11, 0x11, INET),
    "v2 version 3": v2(0x31, 0x11, INET),
    "v2 version 0": v2(0x01, 0x11, INET),
    "v2 command 2": v2(0x22, 0x11, INET),
    "v2 command 15": v2(0x2F, 0x11, INET),
    "v2 family 4": v2(0x21, 0x41, INET),
    "v2 protocol 3": v2(0x21, 0x13, INET),
    "v2 inet cut off": v2(0x21, 0x11, INET[:-1]),
    "v2 inet without addresses": v2(0x21, 0x11),
    "v2 inet6 cut off": v2(0x21, 0x21, INET6[:-1]),
    "v2 inet6 with ipv4": v2(0x21, 0x21, INET),
    "v2 udp cut off": v2(0x21, 0x12, INET[:-1]),
    "v2 unix cut off": v2(0x21, 0x31, bytes(215)),
    "v2 too long": v2(0x21, 0x11, INET + vector(4, bytes(MAX_V2 - 14))),
    "v2 longest that can be said": v2(0x21, 0x11, length=65535),
    "v2 local, too long": v2(0x20, 0x00, length=65535),
    "v2 half a vector": v2(0x21, 0x11, INET + b"\x04\x00"),
    "v2 one octet of a vector": v2(0x21, 0x11, INET + b"\x04"),
    "v2 vector over the end": v2(0x21, 0x11, INET + vector(4, b"x", length=2)),
    "v2 second vector over the end": v2(0x21, 0x11, INET + vector(4, b"x") + vector(4, b"", length=1)),
    "v2 wrong checksum": with_checksum(INET, wrong=1),
    "v2 checksum of something else": with_checksum(INET).replace(b"\x00\x19", b"\x00\x1a"),
    "v2 short checksum": v2(0x21, 0x11, INET + vector(3, b"123")),
    "v2 empty checksum": v2(0x21, 0x11, INET + vector(3, b"")),
    "v2 spoilt signature": v2(0x21, 0x11, INET).replace(b"QUIT", b"QUIP"),
    "v2 signature in text": b"\r\n\r\n\r\nQUIT\r\n\r\n\r\n\r\n",
}
