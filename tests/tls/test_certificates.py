"""The certificate a developer gets."""

import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from smtpd.certificates import make_developer_certificate
from smtpd.config import TlsOptions
from tests.tls.conftest import Server, context_of, shake_hands


def test_developer_certificate_is_trusted_for_all_its_names(server: Server) -> None:
    certificate, key = server.directory / "new" / "dev.crt", server.directory / "new" / "dev.key"
    assert make_developer_certificate(certificate, key, "dev.example.test") is True
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(os.listdir(certificate.parent)) == ["dev.crt", "dev.key"]
    certificates = server.certificates(TlsOptions(cert_file=str(certificate), key_file=str(key)))
    for name in ("dev.example.test", "localhost", "127.0.0.1", "::1"):
        client = ssl.create_default_context(cafile=str(certificate))
        shake_hands(context_of(certificates), client=client, name=name)


def test_developer_certificate_is_made_once(tmp_path: Path) -> None:
    certificate, key = tmp_path / "dev.crt", tmp_path / "dev.key"
    make_developer_certificate(certificate, key, "localhost")
    before = certificate.read_bytes()
    assert make_developer_certificate(certificate, key, "localhost") is False
    assert certificate.read_bytes() == before
    key.unlink()
    assert make_developer_certificate(certificate, key, "localhost") is True


def test_expired_developer_certificate_is_made_anew(server: Server) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    paths = server.issue("dev", "localhost", expires=past)
    assert make_developer_certificate(Path(paths["cert_file"]), Path(paths["key_file"]), "localhost") is True
    found = x509.load_pem_x509_certificate(Path(paths["cert_file"]).read_bytes())
    assert found.not_valid_after_utc > datetime.now(UTC)
