"""TLS of the listeners: contexts, the right certificate for the name asked for, reloading, days left.

The profile is RFC 9325: TLS 1.2 or newer, forward secrecy, no compression, no renegotiation. The
protocol "smtp" is offered by ALPN; a client that asks for none, or only for others, is served all
the same, because Python's `ssl` has no means to refuse it (commands of other protocols end the
connection later).
"""

from __future__ import annotations

import asyncio
import math
import os
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from smtpd import files
from smtpd.certificates import (
    Certificate,
    CertificateFiles,
    TlsError,
    labels,
    read_certificate,
    read_pem,
)
from smtpd.metrics import Gauge
from smtpd.model import TlsInfo
from smtpd.replies import clean

if TYPE_CHECKING:
    from smtpd.log import Log
    from smtpd.metrics import Metrics

__all__ = [
    "CERTIFICATE_EXPIRY", "Certificates", "ClientCertificates", "Combination", "Contexts", "Settings", "TlsError",
    "describe",
]  # fmt: skip

type ClientCertificates = Literal["off", "optional", "required"]

EXPIRES_SOON = 14 * 86400.0  # seconds; certificates for 90 days are renewed with 30 left
WARN_EVERY = 86400.0  # seconds

CERTIFICATE_EXPIRY = Gauge(
    "smtpd_tls_certificate_expiry_seconds",
    "Seconds until the certificate in use expires, negative once it has. certificate is the name of its file, "
    "with as much of the path as tells it from the others.",
    ("certificate",),
)

_VERSIONS = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}
_VERIFY_MODES: dict[ClientCertificates, ssl.VerifyMode] = {
    "off": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
}


class Settings(CertificateFiles, Protocol):
    """The table `[smtpd.tls]`."""

    @property
    def min_version(self) -> str: ...  # noqa: D102
    @property
    def ciphers(self) -> str | None: ...  # noqa: D102
    @property
    def certificates(self) -> Sequence[CertificateFiles]: ...  # noqa: D102
    @property
    def client_ca_file(self) -> str | None: ...  # noqa: D102
    @property
    def reload_interval(self) -> float: ...  # noqa: D102


class Contexts(Protocol):
    """Where the context for a handshake comes from: `Certificates`, or contexts that a program has already."""

    def context(self, *, session_tickets: bool, client_certificates: ClientCertificates) -> ssl.SSLContext:
        """The context for a handshake that begins now; TlsError when there is none."""


class Combination(NamedTuple):
    """What makes one listener's contexts differ from another's."""

    session_tickets: bool
    client_certificates: ClientCertificates


class ServerConnection(ssl.SSLObject):
    """Our side of one connection; it remembers the name the client asked for."""

    server_name: str = ""


class Certificates:
    """All certificates of a server, and the contexts made from them.

    Reading happens at once: TlsError when something is wrong at the start. Afterwards what is on the
    disk replaces what is in use only as a whole, and only when it fits together. Connections that are
    open keep what they began with.
    """

    def __init__(
        self,
        options: Settings,
        log: Log,
        metrics: Metrics,
        *,
        combinations: Sequence[Combination] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._gauge = metrics.gauge(CERTIFICATE_EXPIRY)
        self._now = now
        self._lock = threading.Lock()
        self._complaint = ""
        self._warned: dict[str, float] = {}
        self._loaded = _load(options, combinations)
        self._show()

    @property
    def available(self) -> bool:
        """Whether there is a certificate, so that TLS can be offered."""
        return bool(self._loaded.certificates)

    def context(self, *, session_tickets: bool, client_certificates: ClientCertificates) -> ssl.SSLContext:
        """The context for a handshake that begins now: ask for each one, it costs two look-ups.

        The first time for a combination takes milliseconds and can raise TlsError (no certificate, no
        `client_ca_file`): ask once at the start. "optional" ends the handshake with a client whose certificate
        does not lead to `client_ca_file`; that is all Python's `ssl` can do, so it is not for port 25.
        """
        return self._loaded.context(Combination(session_tickets, client_certificates))

    def configure(self, options: Settings, combinations: Sequence[Combination] = ()) -> None:
        """Use other options from now on, tried for `combinations`; on TlsError everything stays as it was."""
        with self._lock:
            self._loaded = _load(options, combinations)
        self._complaint = ""
        self._show()

    def check(self) -> bool:
        """Look at the files, take over what changed; whether there are new certificates.

        A pair that does not match, is half written or cannot be read changes nothing and is reported once.
        """
        return self._report(self._look())

    async def watch(self) -> None:
        """Check every `reload_interval` seconds, for ever; files are read in a thread."""
        while True:
            await asyncio.sleep(self._loaded.options.reload_interval)
            self._report(await asyncio.to_thread(self._look))

    def _look(self) -> _Loaded | TlsError | None:
        with self._lock:
            before = self._loaded
            if before.stamps == {path: files.stamp(path) for path in before.stamps}:
                return None
            try:
                self._loaded = _load(before.options, before.combinations)
            except TlsError as error:
                return error
            return self._loaded

    def _report(self, outcome: _Loaded | TlsError | None) -> bool:
        if isinstance(outcome, TlsError):
            if str(outcome) != self._complaint:
                self._log.warning("certificates-kept", error=str(outcome))
            self._complaint = str(outcome)
        else:
            self._complaint = ""
        if isinstance(outcome, _Loaded):
            self._log.info("certificates-loaded", certificates=", ".join(outcome.labels))
        self._show()
        return isinstance(outcome, _Loaded)

    def _show(self) -> None:
        now = self._now()
        for certificate in self._loaded.certificates:
            label = certificate.label
            self._gauge.labels(label).set_function(partial(self._seconds_left, label))
            left = certificate.expires - now
            # abs, because the clock may have been set back since.
            if left < EXPIRES_SOON and abs(now - self._warned.get(label, -math.inf)) >= WARN_EVERY:
                self._warned[label] = now
                event = "certificate-expired" if left <= 0 else "certificate-expires-soon"
                self._log.warning(event, certificate=label, days_left=math.floor(left / 86400))

    def _seconds_left(self, label: str) -> float:
        for certificate in self._loaded.certificates:
            if certificate.label == label:
                return certificate.expires - self._now()
        return math.nan  # configured once, not any more


def describe(connection: ssl.SSLObject | ssl.SSLSocket) -> TlsInfo:
    """What was negotiated, after the handshake.

    The name the client asked for is known only where there are several certificates to choose from.
    """
    cipher, _, bits = connection.cipher() or ("", "", 0)
    return TlsInfo(
        version=connection.version() or "",
        cipher=cipher,
        bits=bits,
        server_name=connection.server_name if isinstance(connection, ServerConnection) else "",
        client_subject=_subject(connection.getpeercert()),
    )


def _subject(certificate: Mapping[str, object] | None) -> str:
    """The subject in short, most specific part first; empty when the client showed no certificate."""
    if not certificate:
        return ""
    names = certificate.get("subject", ())
    assert isinstance(names, tuple)
    pairs = [pair for part in reversed(names) for pair in part]
    return clean(",".join(f"{_SHORT_NAMES.get(kind, kind)}={_escape(value)}" for kind, value in pairs))


def _escape(value: str) -> str:
    return "".join(f"\\{character}" if character in ',+"\\<>;=' else character for character in value)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One state of all files. Their content is kept, so a context made later fits to those made before,
    and can be made when the files are no longer readable to us (privileges were dropped).
    """

    options: Settings
    certificates: tuple[Certificate, ...]
    authorities: str
    stamps: Mapping[Path, files.Stamp | None]
    _contexts: dict[Combination, ssl.SSLContext] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(certificate.label for certificate in self.certificates)

    @property
    def combinations(self) -> tuple[Combination, ...]:
        return tuple(self._contexts)

    def context(self, combination: Combination) -> ssl.SSLContext:
        context = self._contexts.get(combination)
        if context is None:
            context = self._contexts[combination] = _make_context(self, combination)
        return context


def _load(options: Settings, combinations: Sequence[Combination] = ()) -> _Loaded:
    """Read and try everything: what this returns works, at least for `combinations`."""
    stamps: dict[Path, files.Stamp | None] = {}
    configured = [pair for pair in (options, *options.certificates) if pair.cert_file]
    names = labels([pair.cert_file for pair in configured])
    certificates = tuple(read_certificate(pair, name, stamps) for pair, name in zip(configured, names, strict=True))
    authorities = read_pem(Path(options.client_ca_file), stamps) if options.client_ca_file else b""
    if stamps != {path: files.stamp(path) for path in stamps}:
        raise TlsError("the certificate files are changing right now")
    try:
        loaded = _Loaded(options, certificates, authorities.decode("ascii"), stamps)
    except UnicodeDecodeError:
        raise TlsError(f"{options.client_ca_file}: no PEM file") from None
    for combination in combinations or ((Combination(False, "off"),) if certificates else ()):
        loaded.context(combination)
    return loaded


def _make_context(loaded: _Loaded, combination: Combination) -> ssl.SSLContext:
    if not loaded.certificates:
        raise TlsError("no certificate is configured in [smtpd.tls]")
    contexts = [_plain_context(loaded, combination, certificate) for certificate in loaded.certificates]
    if len(contexts) > 1:
        # A name that is not ASCII makes Python print a traceback before it gets here: no callback without need.
        contexts[0].sni_callback = partial(_choose, _by_name(loaded.certificates, contexts))
    return contexts[0]


def _plain_context(loaded: _Loaded, combination: Combination, certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = ServerConnection
    context.minimum_version = _VERSIONS[loaded.options.min_version]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    if combination.session_tickets:
        context.options &= ~ssl.OP_NO_TICKET
    else:
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0  # OP_NO_TICKET alone leaves TLS 1.3 sending tickets that stand for stored sessions
    context.set_alpn_protocols(["smtp"])
    _set_ciphers(context, loaded.options.ciphers)
    _load_pair(context, certificate)
    _verify_clients(context, loaded, combination.client_certificates)
    return context


def _set_ciphers(context: ssl.SSLContext, ciphers: str | None) -> None:
    if ciphers is None:
        return  # Python's own list is fine by RFC 9325 §4.2: forward secrecy, AEAD first, no SHA-1
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:
        raise TlsError(f"ciphers = {clean(ciphers)!r}: OpenSSL knows none of these") from None


def _load_pair(context: ssl.SSLContext, certificate: Certificate) -> None:
    try:
        with _as_file(certificate.pem) as path:
            context.load_cert_chain(path, password=_no_password)
    except ssl.SSLError as error:
        reason = {"KEY_VALUES_MISMATCH": "key and certificate do not belong together"}.get(error.reason or "")
        raise TlsError(f"{certificate.paths}: {reason or error.reason or 'no key in PEM form'}") from error
    except OSError as error:
        raise TlsError(f"{certificate.paths}: {error.strerror}") from error


def _no_password() -> str:
    raise TlsError("the private key is encrypted; store it without a pass phrase")


def _verify_clients(context: ssl.SSLContext, loaded: _Loaded, wanted: ClientCertificates) -> None:
    context.verify_mode = _VERIFY_MODES[wanted]
    if wanted == "off":
        return
    if not loaded.authorities:
        raise TlsError("client certificates need client_ca_file in [smtpd.tls]")
    try:
        context.load_verify_locations(cadata=loaded.authorities)
    except ssl.SSLError as error:
        raise TlsError(f"{loaded.options.client_ca_file}: {error.reason or 'no certificates in PEM form'}") from error


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """OpenSSL reads keys from files only; where the system allows, this one never meets a disk."""
    if sys.platform == "linux" and os.path.isdir("/proc/self/fd"):
        with os.fdopen(os.memfd_create("pem"), "wb", buffering=0) as file:
            file.write(content)
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(buffering=0) as named:  # made with mode 0600
            named.write(content)
            yield named.name


def _by_name(
    certificates: Sequence[Certificate], contexts: Sequence[ssl.SSLContext]
) -> dict[str, ssl.SSLContext | None]:
    """Which context a name is served with; None stands for the default one, the first certificate wins."""
    found: dict[str, ssl.SSLContext | None] = {}
    for number, (certificate, context) in enumerate(zip(certificates, contexts, strict=True)):
        for name in certificate.names:
            found.setdefault(name, context if number else None)
    return found


def _choose(
    contexts: Mapping[str, ssl.SSLContext | None], connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext
) -> None:
    """RFC 6066 §3: the name asked for decides; a name that nobody has gets the default certificate."""
    wanted = clean((name or "").lower().removesuffix("."))
    if isinstance(connection, ServerConnection):
        connection.server_name = wanted
    wildcard = "*." + wanted.partition(".")[2]  # RFC 9525 §6.3: a wildcard stands for exactly one label
    context = contexts[wanted] if wanted in contexts else contexts.get(wildcard)
    if context is not None:
        connection.context = context
