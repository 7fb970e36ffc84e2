"""Certificates on the disk: reading them, naming them, making one for a developer."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from smtpd import files
from smtpd.replies import clean

MAX_PEM = 16 << 20  # bytes of one file
DEVELOPER_DAYS = 365


class TlsError(Exception):
    """A certificate, a key or an option of `[smtpd.tls]` is not usable; the text names the file."""


class CertificateFiles(Protocol):
    """Where one certificate is; an empty `key_file` means that the key is in `cert_file`, too."""

    @property
    def cert_file(self) -> str: ...  # noqa: D102
    @property
    def key_file(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate as read from its files; the content is kept, see `tls.Certificates`."""

    label: str
    pem: bytes = field(repr=False)
    """Private key, certificate and chain."""
    names: tuple[str, ...]
    expires: float
    """Unix time."""
    paths: str
    """Its files, for messages."""


def labels(paths: Sequence[str]) -> list[str]:
    """As few last parts of the paths as make them differ: Let's Encrypt calls all files fullchain.pem."""
    deepest = max((len(Path(path).parts) for path in paths), default=1)
    for depth in range(1, deepest):
        found = ["/".join(Path(path).parts[-depth:]) for path in paths]
        if len(set(found)) == len(set(paths)):
            return found
    return list(paths)


def read_pem(path: Path, stamps: dict[Path, files.Stamp | None]) -> bytes:
    """One file's content; its stamp goes to `stamps`. Raises TlsError."""
    try:
        content, stamps[path] = files.read(path, max_bytes=MAX_PEM)
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise TlsError(str(error)) from error
    return content


def read_certificate(pair: CertificateFiles, label: str, stamps: dict[Path, files.Stamp | None]) -> Certificate:
    """A certificate with its chain and key; raises TlsError. That they fit together shows in a context."""
    chain = read_pem(Path(pair.cert_file), stamps)
    key = read_pem(Path(pair.key_file), stamps) if pair.key_file else b""
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        names = _names(leaf)
    except ValueError as error:
        raise TlsError(f"{pair.cert_file}: no certificate in PEM form: {clean(error)}") from error
    paths = f"{pair.cert_file} and {pair.key_file}" if pair.key_file else pair.cert_file
    return Certificate(label, key + b"\n" + chain, names, leaf.not_valid_after_utc.timestamp(), paths)


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()  # RFC 9525 §2: the common name is no host name any more
    return tuple(name.lower() for name in extension.value.get_values_for_type(x509.DNSName))


def make_developer_certificate(cert_file: Path, key_file: Path, hostname: str) -> bool:
    """Make a self-signed certificate for `hostname`, localhost, 127.0.0.1 and ::1; whether one was made.

    Nothing happens while a pair is there that has not expired. The key is readable by its owner only.
    """
    if key_file.exists() and _still_good(cert_file):
        return False
    for file in (cert_file, key_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_signed(key, hostname)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files.replace(key_file, secret, mode=0o600)
    files.replace(cert_file, certificate.public_bytes(pem), mode=0o644)
    return True


def _still_good(cert_file: Path) -> bool:
    try:
        found = x509.load_pem_x509_certificates(files.read(cert_file, max_bytes=MAX_PEM)[0])[0]
    except (OSError, ValueError):
        return False
    return found.not_valid_after_utc > _now()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _self_signed(key: ec.EllipticCurvePrivateKey, hostname: str) -> x509.Certificate:
    names = [x509.DNSName(name) for name in dict.fromkeys((hostname, "localhost"))]
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "smtpd developer set-up")])
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - datetime.timedelta(hours=1))
        .not_valid_after(_now() + datetime.timedelta(days=DEVELOPER_DAYS))
        .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
