"""Mail addresses as they stand in MAIL, RCPT and the configuration: grammar, literals, names beyond ASCII.

The grammar is RFC 5321 §4.1.2 and §4.1.3 with the additions of RFC 6531 §3.3. Everything here is pure:
text in, an `Address` or an `AddressError` out.

ValueError
  AddressError    the text is no address; `problem` says why in words that are safe to send back
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import ClassVar

import idna

# Octets. RFC 5321 §4.5.3.1.1: what must at least be taken; senders that put the recipient's address into their
# own (VERP, SRS) need more, so only the limit of the whole path counts unless `strict`.
MAX_LOCAL = 64
MAX_DOMAIN = 255  # octets, RFC 5321 §4.5.3.1.2
MAX_PATH = 256  # octets, the angle brackets included, RFC 5321 §4.5.3.1.3
MAX_LABEL = 63  # octets, the limit of DNS

_ATEXT = r"A-Za-z0-9!#$%&'*+\-/=?^_`{|}~"
# UTF8-non-ascii of RFC 6531 §3.3 without the C1 controls, the line and paragraph separators and
# halves of surrogate pairs: none of them can be shown, stored or logged safely.
_BEYOND_ASCII = "\xa0-\u2027\u202a-\ud7ff\ue000-\U0010ffff"
# RFC 5321 knows no underscore in a domain, but hosts with one exist and send mail (Postfix and Exim take
# them too); the name goes to DNS as it is, so nothing is lost by letting it pass unless `strict`.
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?")

# Nearly all mail. It does not count the octets of a label: `parse_path` takes only domains no longer than one.
_PLAIN = re.compile(
    rf"<(([{_ATEXT}]++(?:\.[{_ATEXT}]++)*+)@([A-Za-z0-9_]++(?:(?:\.|-++)[A-Za-z0-9_]++)*+))>"
)
_PATH = re.compile(
    r"<(?P<route>@[^\s<>@,:\"\[\]]+(?:,@[^\s<>@,:\"\[\]]+)*:)?"
    r"(?P<mailbox>"
    rf"(?P<local>\"(?:[\x20\x21\x23-\x5b\x5d-\x7e{_BEYOND_ASCII}]|\\[\x20-\x7e])*\"|[^\s<>@\"\\]*)"
    r"(?:@(?P<domain>\[[^\s<>\[\]]*\]|[^\s<>@\"\[\]]*))?"
    r")>"
)
_DOT_STRING = re.compile(rf"[{_ATEXT}{_BEYOND_ASCII}]+(?:\.[{_ATEXT}{_BEYOND_ASCII}]+)*")
_QUOTED_PAIR = re.compile(r"\\(.)")
_IPV6 = re.compile(r"ipv6:([0-9a-f:.]{2,45})")


class AddressError(ValueError):
    """Text that is no mail address; `problem` is a short ASCII sentence without any of the input."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox, or `Address.null` for the empty reverse-path <>."""

    null: ClassVar[Address]

    local: str
    """The local part without quotes and backslashes, otherwise as received."""
    domain: str
    """Lower case, A-labels; literals as "[192.0.2.1]" or "[ipv6:2001:db8::1]"; "" for <Postmaster> and <>."""
    text: str
    """The mailbox as received, quotes included, source route dropped: what is delivered to."""

    @property
    def is_null(self) -> bool:
        """Whether this is <>, the sender of notifications (RFC 5321 §4.5.5)."""
        return not self.text

    @property
    def is_ascii(self) -> bool:
        """Whether `text` can travel without SMTPUTF8."""
        return self.text.isascii()

    @property
    def is_literal(self) -> bool:
        """Whether the domain is an IP address in brackets."""
        return self.domain.startswith("[")

    @property
    def local_key(self) -> str:
        """The local part for look-ups: Unicode form NFC (RFC 6532 §3.1), case folded."""
        local = self.local
        if local.isascii():
            return local.lower()
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", local).lower())
        return unicodedata.normalize("NFC", folded)

    @property
    def key(self) -> str:
        """The whole address for look-ups: `local_key`, "@", `domain`. Quoting makes no difference to it."""
        return f"{self.local_key}@{self.domain}"

    def __str__(self) -> str:
        return self.text


Address.null = Address("", "", "")


def parse_path(text: str, *, strict: bool = False) -> tuple[Address, str]:
    """Read a path in angle brackets from the start of `text`; return the address and what stands behind ">".

    "<>" gives `Address.null`, "<Postmaster>" in any case an address without a domain (RFC 5321 §4.5.1).
    A source route is checked and dropped (RFC 5321 §4.1.1.3). An address without brackets is
    refused: every client in use sends them, and without them parameters could not be told from the path.
    `strict` also refuses local parts over 64 octets, underscores in a domain, and names that are not yet in
    the form of IDNA 2008.

    Raises AddressError.
    """
    match = _PLAIN.match(text)
    if match is None or strict:
        return _parse_any_path(text, strict)
    mailbox, local, domain = match.groups()
    if match.end() > MAX_PATH or len(domain) > MAX_LABEL:
        return _parse_any_path(text, strict)
    return Address(local, domain.lower(), mailbox), text[match.end() :]


def parse_address(text: str) -> Address:
    """Read a mailbox without angle brackets, as in the configuration; "postmaster" alone has no domain.

    Raises AddressError.
    """
    if not text or text.startswith("@"):
        raise AddressError("the local part is empty")
    address, rest = parse_path(f"<{text}>")
    if rest:
        raise AddressError("something follows the address")
    return address


def normalise_domain(text: str) -> str:
    """Bring a domain or address literal into the form of `Address.domain`.

    Raises AddressError.
    """
    return _domain(text, strict=False)


def _parse_any_path(text: str, strict: bool) -> tuple[Address, str]:
    if text.startswith("<>"):
        return Address.null, text[2:]
    match = _PATH.match(text)
    if match is None:
        raise AddressError(_why_no_path(text))
    if _octets(match[0]) > MAX_PATH:
        raise AddressError(f"the path is longer than {MAX_PATH} octets")
    if match["route"] is not None:
        for name in match["route"][1:-1].split(",@"):
            _domain(name, strict)
    local = _local(match["local"], strict)
    rest = text[match.end() :]
    if match["domain"] is None:
        if match["local"].lower() != "postmaster" or match["route"] is not None:
            raise AddressError("the domain is missing")
        return Address(local, "", local), rest
    return Address(local, _domain(match["domain"], strict), match["mailbox"]), rest


def _why_no_path(text: str) -> str:
    if not text.startswith("<"):
        return "it does not stand in angle brackets"
    if ">" not in text:
        return "the closing angle bracket is missing"
    return "it does not read local-part@domain"


def _local(text: str, strict: bool) -> str:
    local = _QUOTED_PAIR.sub(r"\1", text[1:-1]) if text.startswith('"') else text
    # `""` is in the grammar of RFC 5321 §4.1.2, but it names nobody: no mail system has such a mailbox.
    if not local:
        raise AddressError("the local part is empty")
    if strict and _octets(local) > MAX_LOCAL:
        raise AddressError(f"the local part is longer than {MAX_LOCAL} octets")
    if local is text and _DOT_STRING.fullmatch(text) is None:
        if "" in text.split("."):
            raise AddressError("the local part has a dot too many")
        raise AddressError("the local part has a character that needs quotes")
    return local


def _domain(text: str, strict: bool) -> str:
    if text.startswith("["):
        return _literal(text)
    if _octets(text) > MAX_DOMAIN:
        raise AddressError(f"the domain is longer than {MAX_DOMAIN} octets")
    domain = text.lower() if text.isascii() else _to_ascii(text, strict)
    if len(domain) > MAX_DOMAIN:
        raise AddressError(f"the domain is longer than {MAX_DOMAIN} octets")
    for label in domain.split("."):
        if _LABEL.fullmatch(label) is None:
            raise AddressError(_why_no_label(label))
    if strict and "_" in domain:
        raise AddressError("the domain has an underscore")
    return domain


def _why_no_label(label: str) -> str:
    if not label:
        return "the domain has an empty label"
    if len(label) > MAX_LABEL:
        return f"the domain has a label longer than {MAX_LABEL} octets"
    if label.startswith("-") or label.endswith("-"):
        return "a label of the domain starts or ends with a hyphen"
    return "the domain has a character that no host name has"


def _to_ascii(text: str, strict: bool) -> str:
    """Turn U-labels into A-labels (RFC 6531 §3.2, RFC 5890); ASCII labels pass, `_domain` looks at them."""
    try:
        # RFC 6531 §3.3 asks for ready U-labels. People type capitals, full-width letters and ideographic
        # dots, so the mapping of UTS 46 (the one of browsers) comes first unless strict.
        mapped = text if strict else idna.uts46_remap(text, std3_rules=False, transitional=False)
        return ".".join(map(_a_label, mapped.split(".")))
    except UnicodeError:
        raise AddressError("the domain is no internationalised name") from None


def _a_label(label: str) -> str:
    return label.lower() if label.isascii() else idna.alabel(label).decode("ascii")


def _literal(text: str) -> str:
    """Normalise an address literal (RFC 5321 §4.1.3); tags other than IPv6 have never been registered."""
    inner = text[1:-1].lower() if text.endswith("]") else ""
    ipv6 = _IPV6.fullmatch(inner)
    try:
        return f"[ipv6:{IPv6Address(ipv6[1])}]" if ipv6 is not None else f"[{IPv4Address(inner)}]"
    except AddressValueError:
        raise AddressError("the address literal is neither IPv4 nor IPv6") from None


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
