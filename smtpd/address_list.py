"""The addresses in a From, Sender, Reply-To, To or Cc field (RFC 5322 §3.4, RFC 6854, RFC 6532).

Reading is lenient, because real senders are not careful: every address that can be made out is found, and
`is_clean` says whether the grammar was kept. It takes time in proportion to the length of the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from smtpd.addresses import MAX_PATH, Address, AddressError, normalise_domain, parse_path

MAX_OCTETS = 1 << 13  # of a field; our own choice: each takes a microsecond, and From in use has some hundred
MAX_ADDRESSES = 100

_TOKEN = re.compile(
    r"""
      (?P<blank>[ \t\r\n]++)
    | (?P<word>[^\x00-\x20\x7f()<>@,;:\\".\[\]]++)
    | (?P<quoted>"(?:[^"\\\x00]++|\\.)*+(?P<closing>"?))
    | (?P<literal>\[[^\[\]\\\s]*+\])
    | (?P<sign>[<>@,;:.(])
    | (?P<junk>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_ATOM = r"[^\x00-\x20\x7f()<>@,;:\\\".\[\]]++"
_BEHIND_AT = re.compile(rf"@[ .]*+({_ATOM}(?: *+\. *+{_ATOM})*+)")
_BLANKS = re.compile(" +")
_SHOWN: Mapping[str, str] = {"blank": " ", "quoted": "_"}
_WORDS = re.compile(r"[^ .@] +[^ .@]")
_COMMENT_PIECE = re.compile(r"(?:[^()\\]++|\\.)*+(?P<end>[()]?)", re.DOTALL)

Kind = Literal["blank", "word", "quoted", "literal", "sign", "junk"]
Token = tuple[Kind, str]
_KINDS: Mapping[str, Kind] = {kind: kind for kind in get_args(Kind)}


@dataclass(frozen=True, slots=True)
class AddressList:
    """What was found in a field, in order; groups are opened, their names forgotten."""

    addresses: tuple[Address, ...]
    """All of them have a domain."""
    domains: tuple[str, ...]
    """Of these, and of what is meant to be an address but is none, as in "joe..x@example.org"; each once, in order."""
    is_clean: bool
    """The whole field follows the grammar, its obsolete forms (RFC 5322 §4.4) included."""


def parse_address_list(
    value: bytes, *, max_octets: int = MAX_OCTETS, max_addresses: int = MAX_ADDRESSES
) -> AddressList:
    """Find the addresses in the raw value of a field.

    Raises AddressError when there is more than the limits allow: part of a list would be a wrong answer.
    """
    if len(value) > max_octets:
        raise AddressError(f"it is longer than {max_octets} octets")
    text = value.decode("utf-8", "surrogateescape")
    reader = _Reader(max_addresses)
    reader.is_clean = not _NOT_UTF8.search(text)
    for token in _tokens(text):
        reader.take(token)
    reader.end()
    return AddressList(tuple(reader.addresses), tuple(reader.domains), reader.is_clean)


def _tokens(text: str) -> Iterator[Token]:
    """Cut text up; comments count as blanks, what was not closed as junk."""
    position = 0
    while (match := _TOKEN.match(text, position)) is not None:
        position = match.end()
        kind, word = _KINDS[match.lastgroup or "junk"], match[0]
        if word == "(":
            position, is_closed = _comment_end(text, position)
            kind = "blank" if is_closed else "junk"
        elif kind == "quoted" and not match["closing"]:
            kind = "junk"
        yield kind, word


def _comment_end(text: str, position: int) -> tuple[int, bool]:
    """The index behind a comment whose "(" is read already, and whether it was closed; comments nest."""
    depth = 1
    while depth:
        match = _COMMENT_PIECE.match(text, position)
        assert match is not None
        position = match.end()
        if not match["end"]:
            return len(text), False
        depth += 1 if match["end"] == "(" else -1
    return position, True


class _Reader:
    """Puts tokens together, one mailbox at a time."""

    def __init__(self, max_addresses: int) -> None:
        self.addresses: list[Address] = []
        self.domains: dict[str, None] = {}
        self.is_clean = True
        self._max_addresses = max_addresses
        self._outside: list[Token] = []
        """What stands before and behind the angle brackets, or all there is."""
        self._inside: list[Token] | None = None
        self._is_open = False
        """Between "<" and ">": commas and colons belong to a source route."""
        self._in_group = False

    def take(self, token: Token) -> None:
        """Go on by one token."""
        kind, word = token
        if kind == "junk":
            self.is_clean = False
        if self._is_open and self._inside is not None and word != "<":
            if word == ">":
                self._is_open = False
            else:
                self._inside.append(token)
        elif kind != "sign" or word in "@.":
            self.is_clean &= self._inside is None or kind == "blank"
            self._outside.append(token)
        else:
            self._sign(word)

    def end(self) -> None:
        """The field ends."""
        self._mailbox()
        self.is_clean &= bool(self.addresses) and not self._in_group

    def _sign(self, word: str) -> None:
        if word == "<":
            if self._inside is not None:
                self._mailbox()
                self.is_clean = False  # a comma is missing
            self._inside, self._is_open = [], True
        elif word == ",":
            self._mailbox()
        elif word == ";":
            self._mailbox()
            self.is_clean &= self._in_group
            self._in_group = False
        elif word == ":":
            if self._inside is not None or not _is_phrase(self._outside):
                self._mailbox()
                self.is_clean = False  # an address is no name of a group
            self.is_clean &= not self._in_group
            self._in_group = True
            self._outside = []
        else:  # a ">" that closes nothing
            self.is_clean = False

    def _mailbox(self) -> None:
        outside, inside = self._outside, self._inside
        self.is_clean &= not self._is_open
        self._outside, self._inside, self._is_open = [], None, False
        if inside is None and all(kind == "blank" for kind, _ in outside):
            return  # RFC 5322 §4.4: empty elements of a list
        address = _address(outside if inside is None else inside)
        self.is_clean &= address is not None and (inside is None or not outside or _is_phrase(outside))
        if address is None:
            self.domains |= dict.fromkeys(_domains_of_broken(inside or outside))
            return
        self.domains[address.domain] = None
        if len(self.addresses) >= self._max_addresses:
            raise AddressError(f"it names more than {self._max_addresses} addresses")
        self.addresses.append(address)


def _domains_of_broken(tokens: Sequence[Token]) -> Iterator[str]:
    """What programs that are not careful would take for the domain of an address; none when it is a name.

    Words with blanks between them are a name that holds an "@", as in "Sales @ Foo Inc, Berlin", and so are quotes.
    """
    shown = "".join(_SHOWN.get(kind, word) if word != "(" else " " for kind, word in tokens)
    if _WORDS.search(shown.strip()) is not None:
        return
    for text in _BEHIND_AT.findall(shown):
        try:
            domain = normalise_domain(_BLANKS.sub("", text).strip("."))
        except AddressError:
            continue
        if "." in domain:
            yield domain


def _is_phrase(tokens: Sequence[Token]) -> bool:
    """A display name, dots included (RFC 5322 §4.1, obs-phrase)."""
    return all(kind in ("blank", "word", "quoted") or word == "." for kind, word in tokens)


def _address(tokens: Sequence[Token]) -> Address | None:
    """RFC 5322 §3.4.1, with blanks around dots and "@" (§4.4); None when it is none or has no domain."""
    joined: list[str] = []
    may_follow = True  # a word may not follow a word
    for kind, word in tokens:
        if kind == "blank":
            continue
        if kind != "sign" and not may_follow:
            return None
        joined.append(word)
        may_follow = kind == "sign"
    text = f"<{''.join(joined)}>"
    if len(text) > 4 * MAX_PATH or text == "<>":
        return None
    try:
        address, rest = parse_path(text)
    except AddressError:
        return None
    return address if address.domain and not rest else None
