"""What the client says: an envelope with a message, or the client's side of a dialog file."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import BinaryIO

MAX_MESSAGE = 64 << 20  # octets; our own choice, above what servers accept
MAX_DIALOG = 4 << 20  # octets

_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|([rnt0\\]))")
_ESCAPED = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0", b"\\": b"\\"}


class ScriptError(ValueError):
    """What the client is to say cannot be read or cannot be said; the text says why."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who connects. `login`: as if AUTH had succeeded; `tls`: as if the connection were encrypted."""

    ip: IPv4Address | IPv6Address = ip_address("192.0.2.1")  # noqa: RUF009 - a constant
    helo: str = "client.example"
    tls: bool = False
    login: str | None = None

    def __post_init__(self) -> None:
        if not self.helo.isprintable():
            raise ScriptError(f"{self.helo!r} cannot stand in a command")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message: sender ("" is the empty one), recipients, and the content with CRLF line ends."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes

    def __post_init__(self) -> None:
        for text in (self.sender, *self.recipients):
            if not text.isprintable():
                raise ScriptError(f"{text!r} cannot stand in a command")
        if not self.recipients:
            raise ScriptError("a message needs a recipient")

    def mail_command(self, *, eight_bit: bool = True) -> bytes:
        """MAIL as a client says it that knows the extensions of EHLO (`eight_bit`), without CRLF."""
        said = f"MAIL FROM:<{self.sender.strip('<>')}>"
        if eight_bit:
            said += f" SIZE={len(self.content)}"
            said += "" if self.content.isascii() else " BODY=8BITMIME"
            said += "" if self.sender.isascii() and all(map(str.isascii, self.recipients)) else " SMTPUTF8"
        return said.encode()

    def recipient_commands(self) -> list[bytes]:
        """One RCPT for each recipient, without CRLF."""
        return [f"RCPT TO:<{recipient.strip('<>')}>".encode() for recipient in self.recipients]

    def dotted(self) -> bytes:
        """The content as it follows DATA, to its last dot (RFC 5321 §4.5.2)."""
        content = self.content
        if content and not content.endswith(b"\r\n"):
            content += b"\r\n"
        stuffed = content.replace(b"\r\n.", b"\r\n..")
        return (b"." if stuffed.startswith(b".") else b"") + stuffed + b".\r\n"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing a client does in a dialog: it sends octets, or hangs up."""

    octets: bytes = b""
    hangs_up: bool = False


def read_message(path: Path) -> bytes:
    """A message as it is sent: a file whose lines all end in LF alone gets CRLF. ScriptError."""
    return with_line_ends(_read(path, MAX_MESSAGE))


def read_standard_input() -> bytes:
    """The same from standard input."""
    return with_line_ends(_limited(sys.stdin.buffer, MAX_MESSAGE, "standard input"))


def with_line_ends(octets: bytes) -> bytes:
    """CRLF for LF, unless there is a CR already: then the line ends are meant as they are."""
    return octets if b"\r" in octets else octets.replace(b"\n", b"\r\n")


def read_dialog(path: Path) -> list[Line]:
    """The client's lines of a dialog file; ScriptError names the line that is none.

    `C: TEXT` is sent with CRLF, `C- TEXT` without; `\\r \\n \\t \\0 \\\\ \\x7f` in them are octets. `C: (hangs up)`
    does so, other parentheses are what a client does that makes no difference here. `S:` and `M:` lines and comments
    are passed over. Where no line begins with `C:` or `C-`, every line is what the client says.
    """
    text = _read(path, MAX_DIALOG).replace(b"\r\n", b"\n").removesuffix(b"\n")
    written = text.split(b"\n")
    if not any(line.startswith((b"C:", b"C-")) for line in written):
        if not text.strip():
            raise ScriptError(f"{path}: there is nothing in it that a client says")
        return [Line(line + b"\r\n") for line in written]
    lines = []
    for number, line in enumerate(written, 1):
        kind, said = line[:2], line[3:]
        if kind in (b"C:", b"C-"):
            if kind == b"C:" and re.fullmatch(rb"\([a-zA-Z -]+\)", said):
                lines += [Line(hangs_up=True)] if said in (b"(hangs up)", b"(half-closes)") else []
            else:
                lines.append(Line(_unescaped(said) + (b"\r\n" if kind == b"C:" else b"")))
        elif line.strip() and not line.startswith((b"#", b"S:", b"M:")):
            raise ScriptError(f"{path}:{number}: is no line of a dialog (C:, C-, S:, M: or #)")
    return lines


def _unescaped(said: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()) if found[1] else _ESCAPED[found[2]], said)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return _limited(stream, limit, str(path))
    except OSError as error:
        raise ScriptError(f"{path}: cannot be read: {error.strerror}") from None


def _limited(stream: BinaryIO, limit: int, name: str) -> bytes:
    octets = stream.read(limit + 1)
    if len(octets) > limit:
        raise ScriptError(f"{name}: is larger than {limit} octets")
    return octets
