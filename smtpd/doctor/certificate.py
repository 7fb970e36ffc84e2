"""Our certificates, seen as a strict sender or a mail program sees them: a handshake in memory, with no network."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd.certificates import Certificate, TlsError, labels, read_certificate
from smtpd.doctor.examination import Examination
from smtpd.doctor.finding import Finding

if TYPE_CHECKING:
    from smtpd.config.models import Certificate as Pair
    from smtpd.config.models import TlsOptions

DAY = 86400.0
WARN_DAYS = 14  # what renews by itself does so a month before the end, so something is wrong by then
MAX_STEPS = 20  # of a handshake; it takes three

_RENEW = "Renew it; the server notices by itself."


async def check_certificates(examination: Examination) -> list[Finding]:
    """One or more findings for each certificate; the first one has to fit `hostname`."""
    tls = examination.config.tls
    if tls is None or not tls.cert_file:
        text = "There is none, so nothing can be encrypted: mail is read by whoever is in between."
        return [Finding("warning", "certificate", text, "Get one and set [smtpd.tls] cert_file and key_file.")]
    return await asyncio.to_thread(_check_all, tls, examination)


def _check_all(tls: TlsOptions, examination: Examination) -> list[Finding]:
    pairs: Sequence[TlsOptions | Pair] = (tls, *tls.certificates)
    client, now, hostname = examination.trust(), examination.now(), examination.config.hostname
    findings: list[Finding] = []
    for place, (pair, label) in enumerate(zip(pairs, labels([pair.cert_file for pair in pairs]), strict=True)):
        subject = f"certificate {label}"
        try:
            certificate = read_certificate(pair, label, {})
        except TlsError as error:
            if "." not in hostname and not Path(pair.cert_file).exists():
                findings.append(Finding("info", subject, "It is not there yet; a developer's server makes one."))
                continue
            text = f"It cannot be used by whoever runs this command: {error}"
            findings.append(Finding("problem", subject, text, "Correct the path, or run this as the server's user."))
            continue
        days = (certificate.expires - now) / DAY
        findings.append(_judge(subject, certificate, pair, client, hostname if place == 0 else "", days))
    return findings


def _judge(
    subject: str, certificate: Certificate, pair: TlsOptions | Pair, client: ssl.SSLContext, hostname: str, days: float
) -> Finding:
    if days < 0:
        text = f"It expired {-days:.0f} days ago. Mail programs refuse to connect, and strict senders do not send."
        return Finding("problem", subject, text, _RENEW)
    name = hostname or next((name.replace("*", "any", 1) for name in certificate.names), "")
    if hostname and not any(_fits(hostname.lower(), name) for name in certificate.names):
        text = f"It is for {', '.join(certificate.names) or 'no host name'}, not for {hostname}."
        advice = "Get one that has the name of this server in its subjectAltName."
        return Finding("problem", subject, text, advice)
    try:
        problem = _handshake(pair, name, client)
    except OSError as error:  # ssl.SSLError is one
        text = f"Certificate and key cannot be used together: {error.strerror or type(error).__name__}"
        return Finding("problem", subject, text, "Give the key that was made for this certificate.")
    if problem:
        text = f"Who checks it refuses: {problem}. Mail programs and strict senders (MTA-STS) do."
        advice = "Put the whole chain into cert_file, the certificate first; or get it from a known authority."
        return Finding("warning", subject, text, advice)
    if days < WARN_DAYS:
        return Finding("warning", subject, f"It expires in {days:.0f} days.", _RENEW)
    return Finding("ok", subject, f"It is good for {days:.0f} days, for {', '.join(certificate.names)}.")


def _fits(hostname: str, name: str) -> bool:
    # RFC 9525 §6.3: a wildcard stands for the whole leftmost label and nothing else.
    return name == hostname or (name.startswith("*.") and name[2:] == hostname.partition(".")[2])


def _handshake(pair: TlsOptions | Pair, name: str, client: ssl.SSLContext) -> str:
    """Why a client refuses the certificate for a name, "" when it does not; OSError when no server can use it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.cert_file, pair.key_file or None, password="")  # no prompt
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(upward, downward, server_side=True)
    theirs = client.wrap_bio(downward, upward, server_hostname=name or None)
    for _ in range(MAX_STEPS):
        try:
            with suppress(ssl.SSLWantReadError):
                theirs.do_handshake()
                return ""
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        with suppress(ssl.SSLWantReadError):
            ours.do_handshake()
    return "the handshake does not end"
