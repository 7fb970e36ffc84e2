"""One listener's table, and the explicit switches its mode stands for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from smtpd.options import Bytes, Networks, Options, as_tuple
from smtpd.tls import Combination

Mode = Literal["smtp", "smtps", "submission", "alt", "lmtp"]
Tls = Literal["off", "starttls", "implicit"]
Wish = Literal["off", "optional", "required"]
LineEnds = Literal["reject", "normalise"]

_PORTS = range(65536)


def split_address(address: str) -> tuple[str, str, int]:
    """Take a listening address apart: (kind, host or path or name, port); ValueError when it is none.

    Kinds are "tcp" (host "" stands for every IPv4 and IPv6 address), "unix" and "systemd".
    """
    if address == "systemd" or address.startswith("systemd:"):
        return "systemd", address[len("systemd:") :], 0
    if address.startswith("unix:"):
        if len(address) == len("unix:"):
            raise ValueError('"unix:" needs a path, such as "unix:/run/smtpd.sock"')
        return "unix", address[len("unix:") :], 0
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not colon or not digits or int(port) not in _PORTS or (":" in host and not bracketed):
        raise ValueError('must look like ":25", "127.0.0.1:25", "[::1]:25", "unix:PATH" or "systemd:NAME"')
    return "tcp", host[1:-1] if bracketed else host, int(port)


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else as_tuple(value)


def _checked(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if not addresses:
        raise ValueError("needs at least one address")
    for address in addresses:
        split_address(address)
    return addresses


Addresses = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_more),
    AfterValidator(_checked),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """What a listener does, after its mode and its own keys have been put together."""

    tls: Tls
    tls_required: bool
    auth: Wish
    bare_line_ends: LineEnds
    chunking: bool = True
    smtputf8: bool = True
    pipelining: bool = True
    session_tickets: bool
    client_certificates: Wish = "off"
    prdr: bool = True
    lmtp: bool = False


PRESETS: Mapping[Mode, Switches] = {
    "smtp": Switches(tls="starttls", tls_required=False, auth="off", bare_line_ends="reject", session_tickets=False),
    "smtps": Switches(
        tls="implicit", tls_required=True, auth="required", bare_line_ends="normalise", session_tickets=True
    ),
    "submission": Switches(
        tls="starttls", tls_required=True, auth="required", bare_line_ends="normalise", session_tickets=True
    ),
    "alt": Switches(
        tls="starttls", tls_required=False, auth="optional", bare_line_ends="reject", session_tickets=False
    ),
    "lmtp": Switches(
        tls="off", tls_required=False, auth="off", bare_line_ends="reject", session_tickets=False, prdr=False, lmtp=True
    ),
}


class Listener(Options):
    """One place clients connect to."""

    address: Addresses
    """One address or several: ":25" (every IPv4 and IPv6 address), "127.0.0.1:25", "[::1]:25", "unix:PATH",
    or "systemd" and "systemd:NAME" for sockets handed over by systemd."""
    mode: Mode
    """A preset of the switches below: "smtp" (25), "smtps" (465), "submission" (587), "alt" (2525), or "lmtp"
    for an MTA that has us as its filter (RFC 2033; never on port 25)."""
    tls: Tls | None = None
    """"starttls" offers it, "implicit" starts with the handshake; unset: as the mode says."""
    tls_required: bool | None = None
    """Whether MAIL and AUTH need TLS first; unset: true for smtps and submission."""
    auth: Wish | None = None
    """Whether clients can or must log in, only behind TLS; unset: off (smtp), optional (alt) or required."""
    bare_line_ends: LineEnds | None = None
    """What a lone CR or LF in the content means: refuse the message, or turn it into CRLF. It is never let
    through. Unset: "normalise" for smtps and submission, else "reject"."""
    chunking: bool | None = None
    """Whether CHUNKING (BDAT, RFC 3030) is offered; unset: true."""
    smtputf8: bool | None = None
    """Whether SMTPUTF8 (RFC 6531) is offered, provided every agent can carry it; unset: true."""
    pipelining: bool | None = None
    """Whether PIPELINING (RFC 2920) is offered; unset: true."""
    prdr: bool | None = None
    """Whether PRDR is offered, a reply for each recipient behind the data, as Exim asks for; unset: true."""
    session_tickets: bool | None = None
    """Whether TLS sessions resume by ticket; unset: false for smtp and alt, as some senders fail on them."""
    client_certificates: Wish | None = None
    """Whether clients are asked for a certificate that `[smtpd.tls] client_ca_file` signed; unset: off."""
    max_message_size: Bytes | None = None
    """Biggest message here, bytes; unset: as in `[smtpd]`."""

    proxy_protocol: Networks = ()
    """Load balancers: networks whose connections begin with a PROXY header (version 1 or 2), which names the
    client. One that does not come within 5 s, or from elsewhere, ends the connection."""
    xclient: Networks = ()
    """Networks that may name the client with XCLIENT, as Postfix and nginx do; it earns no login (LOGIN= is
    read and ignored)."""

    def switches(self) -> Switches:
        """The preset of the mode with this listener's own keys laid over it."""
        preset = PRESETS[self.mode]
        tls = preset.tls if self.tls is None else self.tls
        implied = tls == "implicit" or (preset.tls_required and tls != "off")
        return Switches(
            tls=tls,
            tls_required=implied if self.tls_required is None else self.tls_required,
            auth=self.auth or preset.auth,
            bare_line_ends=self.bare_line_ends or preset.bare_line_ends,
            chunking=preset.chunking if self.chunking is None else self.chunking,
            smtputf8=preset.smtputf8 if self.smtputf8 is None else self.smtputf8,
            pipelining=preset.pipelining if self.pipelining is None else self.pipelining,
            session_tickets=preset.session_tickets if self.session_tickets is None else self.session_tickets,
            client_certificates=self.client_certificates or preset.client_certificates,
            prdr=preset.prdr if self.prdr is None else self.prdr and not preset.lmtp,
            lmtp=preset.lmtp,
        )


def combinations(listeners: Iterable[Listener]) -> list[Combination]:
    """What TLS contexts these listeners will ask for."""
    switches = [listener.switches() for listener in listeners]
    return [Combination(one.session_tickets, one.client_certificates) for one in switches if one.tls != "off"]
