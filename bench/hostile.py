"""Messages that are made to cost time: how much of the processor each takes, the SMTP around it included.

In this process, without sockets: `smtpd.memory` with the filters as they come and a zone that holds the keys.
"""

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from letters import SELECTOR, key_record, signature_of, signed
from nameserver import DMARC_RECORD

from filters.arc import Arc
from filters.dkim import Dkim
from filters.dmarc import Dmarc
from filters.headers import Headers
from filters.own_domain import OwnDomain
from filters.spf import Spf
from smtpd.memory import MemoryServer
from smtpd.zone import Zone

LIMIT_SECONDS = 0.1
TIMES = 5  # each; the median counts
_DOMAIN = "hostile.test"
_HEADER = b"From: Eve <eve@hostile.test>\r\nTo: ann@example.test\r\nSubject: Hello\r\nMessage-ID: <1@hostile.test>\r\n"
_NAMES = "from:to:subject:message-id"
_SMALL = b"Hello\r\n"
_BLANKS = 60 << 10
_SIGNATURES, _FIELDS = 1000, 1000
_ALLOWED = 990  # with what else a message has it stays below the limit of 1000 fields, so that all are looked at
_BIG = 248 << 10  # octets; `headers` refuses a header section of more than 256 KiB for its size
_LONG = 7500  # octets; a signature field above 8 KiB is not read at all
_HUGE_BITS = 16_000
_REPORT = 4096  # octets that our own fields stand in


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """What a message costs, and what became of it."""

    seconds: float
    outcome: str
    """The reply when it was refused, else its code and what our Authentication-Results field says of its DKIM."""


def measure() -> dict[str, Hostile]:
    """By what each message is about; the first one is harmless."""
    return asyncio.run(_measure())


def messages() -> Mapping[str, bytes]:
    """All of them; keys are in `zone`."""
    harmless = signed(_DOMAIN, 4096, 1, "example.test")
    blanks = b" " * _BLANKS
    blank_lines = b" \r\n" * (_BLANKS // 3)
    empty_lines = b"a\r\n" + b"\r\n" * (_BLANKS // 2) + b"b\r\n"
    keys = b"".join(_field(f"s{number}", _SMALL, b="AAAA") for number in range(_ALLOWED))
    key = _field(SELECTOR, _SMALL, b="AAAA")
    long = _signed(_SMALL, t=" " * _LONG + "1")
    head, _, body = harmless.partition(b"\r\n\r\n")
    many = b"".join(b"X-Field-%d: value\r\n" % number for number in range(_FIELDS))
    few = b"".join(b"X-Field-%d: value\r\n" % number for number in range(_ALLOWED))
    named = "from:" + ":".join(f"x-field-{number}" for number in range(_ALLOWED // 2))
    repeated = "from:" + ":".join(["x-field"] * _ALLOWED)
    return {
        "harmless, 4 KiB": harmless,
        f"key of {_HUGE_BITS} bits": _letter(_field("huge", _SMALL), _SMALL),
        f"exponent of {_HUGE_BITS} bits": _letter(_field("exponent", _SMALL), _SMALL),
        "exponent of 2,047 bits": _letter(_field("slow", _SMALL), _SMALL),
        "60 KiB of blanks in a line of the body": _letter(_signed(b"a b\r\n"), b"a" + blanks + b"b\r\n"),
        "60 KiB of blank lines behind the body": _letter(_signed(b"a\r\n"), b"a\r\n" + blank_lines),
        "60 KiB of empty lines in the body": _letter(_signed(empty_lines), empty_lines),
        "60 KiB of blanks in a field": _letter(_signed(_SMALL), _SMALL, b"X-Run: a" + blanks + b"b\r\n"),
        "60 KiB of blanks in 8 signatures": _letter(long * 8, _SMALL),
        f"{_SIGNATURES} signatures": _letter(_field(SELECTOR, _SMALL) * _SIGNATURES, _SMALL),
        f"{_ALLOWED} signatures, one key": _letter(key * _ALLOWED, _SMALL),
        f"{_ALLOWED} signatures, a key for each": _letter(keys, _SMALL),
        f"{_FIELDS} more fields": head + b"\r\n" + many + b"\r\n" + body,
        f"{_ALLOWED} more fields, half of them signed": _letter(_field(SELECTOR, _SMALL, h=named), _SMALL, few),
        f"{_ALLOWED} fields of one name, 8 times signed": _letter(
            _field(SELECTOR, _SMALL, h=repeated, b="AAAA") * 8, _SMALL, b"X-Field: value\r\n" * (_ALLOWED - 10)
        ),
        "248 KiB of empty fields": _letter(b"", _SMALL, b"a:\r\n" * (_BIG // 4)),
        "248 KiB of empty From fields": _letter(b"", _SMALL, b"From:\r\n" * (_BIG // 7)),
    }


def zone() -> Zone:
    """A domain with keys of all kinds."""
    huge = (1 << (_HUGE_BITS - 1)) + 12_345
    modulus = (1 << 2047) + 12_345
    keys = {
        SELECTOR: key_record(),
        "huge": _record(huge, 65537),
        "exponent": _record(modulus, huge - 2),
        "slow": _record(modulus, modulus - 2),
    }
    tables = {f"{selector}._domainkey.{_DOMAIN}": {"TXT": [record]} for selector, record in keys.items()}
    tables[_DOMAIN] = {"TXT": ["v=spf1 ip4:192.0.2.0/24 -all"]}
    tables[f"_dmarc.{_DOMAIN}"] = {"TXT": [DMARC_RECORD.replace("reject", "none")]}
    return Zone(tables)


async def _measure() -> dict[str, Hostile]:
    found: dict[str, Hostile] = {}
    filters = {"spf": Spf, "dkim": Dkim, "arc": Arc, "dmarc": Dmarc, "own_domain": OwnDomain, "headers": Headers}
    senders = (f"eve{number}@{_DOMAIN}" for number in count())  # a retry would not be verified once more
    async with MemoryServer(filters=filters, resolver=zone()) as server:
        for name, octets in messages().items():
            costs = []
            for _ in range(TIMES):
                talk = await server.connect(ip="192.0.2.1")
                begun = time.process_time()
                replies = await talk.send(octets, sender=next(senders))
                costs.append(time.process_time() - begun)
                await talk.hang_up()
            outcome = replies[-1].partition(" [")[0]
            if server.delivered:
                outcome = f"{outcome[:3]} {_verdict(server.delivered[-1].content)}"
            found[name] = Hostile(seconds=sorted(costs)[TIMES // 2], outcome=outcome)
            server.delivered.clear()
    return found


def _verdict(content: bytes) -> str:
    """The first DKIM result and its reason in what we have written, without line breaks."""
    found = re.search(r'dkim=[a-z]+(\s+reason="[^"]*")?', content[:_REPORT].decode(errors="replace"))
    return " ".join(found[0].split()) if found else "no DKIM"


def _letter(signatures: bytes, body: bytes, more: bytes = b"") -> bytes:
    return signatures + _HEADER + more + b"\r\n" + body


def _signed(body: bytes, **changes: str) -> bytes:
    """A signature that is right, so that the body has to be read; `body` is relaxed."""
    field = _field(SELECTOR, body, **changes, b="").removesuffix(b"\r\n").decode()
    lines = [*_HEADER.decode().splitlines(), field]
    pairs = (line.split(": ", 1) for line in lines)
    relaxed = "\r\n".join(f"{name.lower()}:{re.sub(' +', ' ', value)}" for name, value in pairs)
    return f"{field}{signature_of(relaxed)}\r\n".encode()


def _field(selector: str, body: bytes, **changes: str) -> bytes:
    """A signature that is right but for b=; `body` is relaxed."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    tags = {"v": "1", "a": "rsa-sha256", "c": "relaxed/relaxed", "d": _DOMAIN, "s": selector, "h": _NAMES}
    tags |= {"bh": digest, "b": base64.b64encode(bytes(255) + b"1").decode(), **changes}
    tags["b"] = tags.pop("b")  # to the end
    return b"DKIM-Signature: " + "; ".join(f"{name}={value}" for name, value in tags.items()).encode() + b"\r\n"


def _record(modulus: int, exponent: int) -> str:
    """A key as RFC 6376 section 3.6.1 wants it, whatever the numbers are: RSAPublicKey of RFC 8017, appendix A.1.1."""
    content = _integer(modulus) + _integer(exponent)
    return f"v=DKIM1; k=rsa; p={base64.b64encode(_tagged(0x30, content)).decode()}"


def _integer(value: int) -> bytes:
    return _tagged(0x02, value.to_bytes(value.bit_length() // 8 + 1))


def _tagged(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = size.to_bytes((size.bit_length() + 7) // 8) if size > 127 else b""
    return bytes([tag, 0x80 | len(length) if length else size]) + length + content
