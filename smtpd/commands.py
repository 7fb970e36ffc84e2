"""Command lines to values: b"MAIL FROM:<a@b> SIZE=1" becomes a MailCommand. Pure, and refuses by `Refused`.

What is no SMTP at all ends the conversation by `Foreign`.

Lines and arguments are octets without the CRLF. RFC 5321 §4.1.1 and §4.1.2, and the parameters of
RFC 1870 (SIZE), 6152 (BODY), 6531 (SMTPUTF8), 4954 (AUTH) and PRDR.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from smtpd import replies
from smtpd.addresses import Address, AddressError, parse_path
from smtpd.endings import Foreign
from smtpd.replies import Refused

MAX_LINE = 512
"""Octets of a command line, CRLF included (RFC 5321 §4.5.3.1.4)."""
# What each extension adds to MAIL: SIZE 26 (RFC 1870 §3), BODY 17 (RFC 6152), SMTPUTF8 10 (RFC 6531 §3.1),
# AUTH 500 (RFC 4954 §3), " PRDR" 5. One sum for all: a limit that depends on the greeting helps nobody.
MAX_MAIL_LINE = MAX_LINE + 26 + 17 + 10 + 500 + 5
"""Octets of a MAIL line with every parameter that can be in force, CRLF included."""
MAX_AUTH_LINE = 12288
"""Octets of an AUTH line and of each line of its exchange, CRLF included (RFC 4954 §4)."""
MAX_XCLIENT_LINE = 1024
"""Octets of an XCLIENT line, CRLF included; Postfix tells its clients to stay below 512, not all of them do."""

REMEMBERED = 2048
"""Lines whose meaning is remembered: the same senders and recipients come again and again."""

_LIMITS = {b"MAIL": MAX_MAIL_LINE, b"AUTH": MAX_AUTH_LINE, b"XCLI": MAX_XCLIENT_LINE}
_EXTENSION_OF = {"SIZE": "SIZE", "BODY": "8BITMIME", "SMTPUTF8": "SMTPUTF8", "AUTH": "AUTH", "PRDR": "PRDR"}
# AUTH is none of them, nor is what is no command: a client that goes on after AUTH was refused sends its password.
_REMEMBERED_VERBS = frozenset(
    ("EHLO", "HELO", "LHLO", "STARTTLS", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "QUIT")
)
_PRINTABLE = bytes(range(0x20, 0x7F))
_EIGHT_BIT = bytes(range(0x80, 0x100))
_HTTP_VERBS = frozenset(
    (b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"CONNECT", b"PATCH", b"TRACE", b"PRI")
)
_TLS_RECORD = b"\x16\x03"  # RFC 8446 §5.1: what a TLS client says first, and its version
_MAY_BE_UTF8 = frozenset((b"MAIL", b"RCPT", b"VRFY"))  # RFC 6531 §3.3, §3.7.4

_WORD = re.compile(rb"[\x21-\x7e]{1,255}")
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_COMMON = re.compile(r" SIZE=([0-9]{1,20})(?: BODY=(7BIT|8BITMIME))?")  # what Postfix and Exim send
_SIZE = re.compile(r"[0-9]{1,20}")
# RFC 4954 §8; hexadecimal digits in either case, as it asks.
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})+")
_HEXCHAR = re.compile(rb"\+([0-9A-Fa-f]{2})")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BDAT = re.compile(rb"([0-9]{1,20})(?: +(LAST))? *", re.IGNORECASE)
_AUTH = re.compile(rb"([A-Z0-9_-]{1,20})(?: +([\x21-\x7e]+))? *", re.IGNORECASE)  # RFC 4422 §3.1

_MAIL_SYNTAX = replies.BAD_ARGUMENT(syntax="MAIL FROM:<address>")
_RCPT_SYNTAX = replies.BAD_ARGUMENT(syntax="RCPT TO:<address>")
_BDAT_SYNTAX = replies.BAD_ARGUMENT(syntax="BDAT size [LAST]")
_AUTH_SYNTAX = replies.BAD_ARGUMENT(syntax="AUTH mechanism [initial-response]")
_NO_DOMAIN = replies.BAD_SENDER_SYNTAX(problem="the domain is missing")
_NO_MAILBOX = replies.BAD_RECIPIENT_SYNTAX(problem="the empty path is for senders only")


@dataclass(frozen=True, slots=True)
class MailCommand:
    """MAIL: `size` in octets as declared, `auth` decoded with "" for <> (RFC 4954 §5)."""

    sender: Address
    size: int | None = None
    body: str = "7BIT"
    smtputf8: bool = False
    auth: str | None = None
    prdr: bool = False


@dataclass(frozen=True, slots=True)
class RcptCommand:
    """RCPT: one mailbox, or <Postmaster> without a domain."""

    recipient: Address


@dataclass(frozen=True, slots=True)
class BdatCommand:
    """BDAT: `size` octets follow, and with `last` the message is complete (RFC 3030 §2)."""

    size: int
    last: bool


@dataclass(frozen=True, slots=True)
class AuthCommand:
    """AUTH: mechanism in upper case; the initial response still in base64, b"=" stands for an empty one."""

    mechanism: str
    initial: bytes | None = field(default=None, repr=False)  # it may hold a password


def limit_for(line: bytes) -> int:
    """Octets, CRLF included, that a line with this beginning may have; four octets are enough to tell."""
    return _LIMITS.get(line[:4].upper(), MAX_LINE)


def too_long(line: bytes) -> Refused:
    """What a line with this beginning is refused with when it is over its limit; raises Foreign."""
    _must_be_smtp(line)
    if line[:4].upper() == b"AUTH":
        return Refused(replies.AUTH_LINE_TOO_LONG)  # RFC 4954 §4: the initial response is part of the exchange
    return Refused(replies.LINE_TOO_LONG)


class _Parted(dict[bytes, tuple[str, bytes]]):
    """Lines of late and their parts; to look one up takes no function of ours."""

    def __missing__(self, line: bytes) -> tuple[str, bytes]:
        parts = _part(line)
        if parts[0] in _REMEMBERED_VERBS:
            if len(self) >= REMEMBERED:
                self.clear()
            self[line] = parts
        return parts


split = _Parted().__getitem__
"""Part a line into its verb in upper case and its argument without surrounding spaces.

Trailing spaces and tabs go (RFC 5321 §4.1.1 tolerates white space before the CRLF). Octets beyond
printable ASCII are refused, save UTF-8 in the argument of MAIL, RCPT and VRFY.
"""


def _part(line: bytes) -> tuple[str, bytes]:
    line = line.rstrip(b" \t")
    verb, _, argument = line.partition(b" ")
    verb = verb.upper()
    if line.translate(None, _PRINTABLE):
        _must_be_smtp(line)
        _check_utf8(verb, argument)
    return verb.decode("ascii"), argument.lstrip(b" ")


def unknown(line: bytes) -> Refused:
    """What a line with a verb that we do not know is refused with; raises Foreign."""
    _must_be_smtp(line)
    return Refused(replies.UNKNOWN_COMMAND)


def parse_helo(verb: str, argument: bytes) -> str:
    """Read the name a client gives itself: any one word of at most 255 octets.

    RFC 5321 §4.1.1.1 asks for a host name or literal; what is worth refusing beyond that is for policy
    (§4.1.4 forbids to refuse mail because the name does not verify).
    """
    if _WORD.fullmatch(argument) is None:
        raise Refused(replies.HELO_ARGUMENT(verb=verb))
    return argument.decode("ascii")


@lru_cache(maxsize=REMEMBERED)
def parse_mail(argument: bytes, extensions: frozenset[str], strict: bool = False) -> MailCommand:
    """Read b"FROM:<a@b> SIZE=1"; `extensions` are the EHLO keywords in force, none after HELO.

    Space after the colon is tolerated unless `strict` (RFC 5321 §3.3 forbids it, printers send it).
    """
    text = _path_behind(argument, "FROM:", strict, _MAIL_SYNTAX)
    try:
        sender, rest = parse_path(text, strict=strict)
    except AddressError as error:
        raise Refused(replies.BAD_SENDER_SYNTAX(problem=error.problem)) from None
    if not sender.domain and not sender.is_null:
        raise Refused(_NO_DOMAIN)  # RFC 5321 §4.1.1.3: only RCPT knows <Postmaster>
    command = _with_parameters(sender, rest, extensions) if rest else MailCommand(sender)
    if not command.smtputf8 and not sender.is_ascii:
        raise Refused(replies.NON_ASCII_SENDER)  # RFC 6531 §3.5: 550 for MAIL, 553 for RCPT
    return command


@lru_cache(maxsize=REMEMBERED)
def parse_rcpt(argument: bytes, smtputf8: bool = False, strict: bool = False) -> RcptCommand:
    """Read b"TO:<a@b>"; `smtputf8` says whether MAIL had that parameter. No parameter is known here."""
    text = _path_behind(argument, "TO:", strict, _RCPT_SYNTAX)
    try:
        recipient, rest = parse_path(text, strict=strict)
    except AddressError as error:
        raise Refused(replies.BAD_RECIPIENT_SYNTAX(problem=error.problem)) from None
    if recipient.is_null:
        raise Refused(_NO_MAILBOX)
    if rest and (unknown := _parameters(rest, _RCPT_SYNTAX)):
        raise Refused(replies.UNKNOWN_PARAMETER(parameter=next(iter(unknown))))
    if not smtputf8 and not recipient.is_ascii:
        raise Refused(replies.NON_ASCII_RECIPIENT)  # RFC 6531 §3.5
    return RcptCommand(recipient)


def parse_bdat(argument: bytes) -> BdatCommand:
    """Read b"1000 LAST" (RFC 3030 §2)."""
    match = _BDAT.fullmatch(argument)
    if match is None:
        raise Refused(_BDAT_SYNTAX)
    return BdatCommand(int(match[1]), match[2] is not None)


def parse_auth(argument: bytes) -> AuthCommand:
    """Read b"PLAIN AGEAYg==" (RFC 4954 §4); whether it is base64 is seen when it is used."""
    match = _AUTH.fullmatch(argument)
    if match is None:
        raise Refused(_AUTH_SYNTAX)
    return AuthCommand(match[1].decode("ascii").upper(), match[2])


def no_argument(verb: str, argument: bytes) -> None:
    """Refuse an argument where none may be: RSET, DATA, QUIT (RFC 5321 §4.1.1), STARTTLS (RFC 3207 §4)."""
    if argument:
        raise Refused(replies.NO_ARGUMENT(verb=verb))


def _must_be_smtp(line: bytes) -> None:
    word, *_ = *line[:16].split(maxsplit=1), b""
    if word.upper() in _HTTP_VERBS:
        raise Foreign("http")  # a browser led here by a hostile page (ALPACA)
    if line.startswith(_TLS_RECORD):
        raise Foreign("tls-on-plain-port")


def _check_utf8(verb: bytes, argument: bytes) -> None:
    if verb not in _MAY_BE_UTF8 or argument.translate(None, _PRINTABLE + _EIGHT_BIT):
        raise Refused(replies.NOT_PRINTABLE)
    _decode(argument)


def _decode(argument: bytes) -> str:
    try:
        return argument.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(replies.NOT_PRINTABLE) from None


def _path_behind(argument: bytes, prefix: str, strict: bool, syntax: replies.Reply) -> str:
    text = _decode(argument)
    if text[: len(prefix)].upper() != prefix:
        raise Refused(syntax)
    path = text[len(prefix) :]
    if path.startswith("<"):
        return path
    path = path.lstrip(" ")
    if strict or not path.startswith("<"):
        raise Refused(syntax)
    return path


def _parameters(rest: str, syntax: replies.Reply) -> dict[str, str | None]:
    """Part " SIZE=1 PRDR" into upper-case names and values as received; None where no "=" stands."""
    if not rest.startswith(" "):
        raise Refused(syntax)
    found: dict[str, str | None] = {}
    for word in rest.split(" "):
        if word:
            name, equals, value = word.partition("=")
            if _KEYWORD.fullmatch(name) is None:
                raise Refused(syntax)
            name = name.upper()
            if name in found:
                raise Refused(replies.BAD_PARAMETER(parameter=name))
            found[name] = value if equals else None
    return found


def _with_parameters(sender: Address, rest: str, extensions: frozenset[str]) -> MailCommand:
    common = _COMMON.fullmatch(rest)
    if common is not None and {"SIZE", "8BITMIME"} <= extensions:
        return MailCommand(sender, int(common[1]), common[2] or "7BIT")
    values = _parameters(rest, _MAIL_SYNTAX)
    for name in values:
        if _EXTENSION_OF.get(name) not in extensions:
            raise Refused(replies.UNKNOWN_PARAMETER(parameter=name))
    return MailCommand(
        sender,
        size=_size(values["SIZE"]) if "SIZE" in values else None,
        body=_body(values["BODY"]) if "BODY" in values else "7BIT",
        smtputf8="SMTPUTF8" in values and _flag("SMTPUTF8", values["SMTPUTF8"]),
        auth=_auth(values["AUTH"]) if "AUTH" in values else None,
        prdr="PRDR" in values and _flag("PRDR", values["PRDR"]),
    )


def _size(value: str | None) -> int:
    if value is None or _SIZE.fullmatch(value) is None:  # RFC 1870 §3
        raise Refused(replies.BAD_PARAMETER(parameter="SIZE"))
    return int(value)


def _body(value: str | None) -> str:
    body = value.upper() if value is not None and value.isascii() else ""
    if body not in ("7BIT", "8BITMIME"):  # RFC 6152; BINARYMIME (RFC 3030 §3) is not offered
        raise Refused(replies.BAD_PARAMETER(parameter="BODY"))
    return body


def _flag(name: str, value: str | None) -> bool:
    if value is not None:  # RFC 6531 §3.4 for SMTPUTF8; PRDR has none either
        raise Refused(replies.BAD_PARAMETER(parameter=name))
    return True


def _auth(value: str | None) -> str:
    """Decode the xtext (RFC 3461 §4) of AUTH=; what holds controls or is no UTF-8 is refused.

    RFC 4954 §8 wants a mailbox inside. A bare user name passes too: the value decides nothing here, and
    mail is worth more than its syntax.
    """
    refused = Refused(replies.BAD_PARAMETER(parameter="AUTH"))
    if value is None or _XTEXT.fullmatch(value) is None:
        raise refused
    octets = _HEXCHAR.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), value.encode("ascii"))
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise refused from None
    if _UNSAFE.search(text) is not None:
        raise refused
    return "" if text == "<>" else text
