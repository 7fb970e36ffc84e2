"""The letter that peers send, and how it is read where it arrived."""

import re
from dataclasses import dataclass, field

LETTER = (
    b"From: Eve <eve@sender.test>\r\n"
    b"To: Bob <bob@example.test>\r\n"
    b"Subject: folded\r\n\tover two lines\r\n"
    b"Date: Sat, 21 Nov 2026 02:00:00 +0000\r\n"
    b"Message-ID: <1@sender.test>\r\n"
    b"X-Order: first\r\n"
    b"X-Order: second\r\n"
    b"\r\n"
    b"Hello,\r\n"
    b".\r\n"
    b"..two dots, and one alone above\r\n"
    b"trailing blanks  \t\r\n" + b"x" * 990 + b"\r\n"
    b"\r\n"
    b"end\r\n"
)
"""Everything that is easily damaged on the way: order, folding, dots, blanks, a line of the greatest length."""


@dataclass(frozen=True)
class Arrived:
    """A delivered message: what our server put on top, as one line for each field, and the rest as it came."""

    return_path: str
    delivered_to: str | None
    received: str
    content: bytes = field(repr=False)

    @property
    def protocol(self) -> str:
        """The word behind "with"."""
        found = re.search(r" with (\w+)", self.received)
        assert found is not None, self.received
        return found[1]


def read(mail: bytes) -> Arrived:
    """Take our own fields off the top of a delivered message."""
    top, rest = [], mail
    while not top or not top[-1].startswith("Received:"):
        found = re.match(rb"[^\r\n]+\r\n(?:[ \t][^\r\n]*\r\n)*", rest)
        assert found is not None, mail
        top.append(re.sub(r"\r\n[ \t]+", " ", found[0].decode()).strip())
        rest = rest[found.end() :]
    named = dict(line.split(": ", 1) for line in top)
    return Arrived(named["Return-Path"], named.get("Delivered-To"), named["Received"], rest)


def without_hops(content: bytes) -> bytes:
    """The message as it was given to the hosts in front of us: without the Received fields on top, any number."""
    return re.sub(rb"\A(?:Received: [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)+", b"", content)
