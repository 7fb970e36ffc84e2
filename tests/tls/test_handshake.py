"""What is negotiated with whom, and which certificate is shown."""

import ssl
from collections.abc import Mapping
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from smtpd.config import Certificate, TlsOptions
from smtpd.tls import TlsError, describe
from tests.tls.conftest import AUTHORITY, Server, context_of, shake_hands, trusting, with_client_authority


def test_handshake_succeeds_and_is_described(server: Server) -> None:
    options = TlsOptions(**server.issue("mail", "mail.example.com"))
    pair = shake_hands(context_of(server.certificates(options)))
    found = describe(pair.server)
    assert (found.version, found.bits) == ("TLSv1.3", 256)
    assert found.cipher.startswith("TLS_")
    assert found.client_subject == ""


def test_key_may_be_in_the_certificate_file(server: Server) -> None:
    paths = server.issue("mail", "mail.example.com")
    both = server.directory / "both.pem"
    both.write_bytes(Path(paths["key_file"]).read_bytes() + Path(paths["cert_file"]).read_bytes())
    shake_hands(context_of(server.certificates(TlsOptions(cert_file=str(both)))))


def test_context_is_the_same_object_until_files_change(server: Server) -> None:
    options = TlsOptions(**server.issue("mail", "mail.example.com"))
    certificates = server.certificates(options)
    first = context_of(certificates)
    assert certificates.check() is False
    assert context_of(certificates) is first
    assert context_of(certificates, session_tickets=True) is not first


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_are_spoken_by_default(server: Server, version: ssl.TLSVersion) -> None:
    certificates = server.certificates(TlsOptions(**server.issue("mail", "mail.example.com")))
    pair = shake_hands(context_of(certificates), client=trusting(maximum_version=version))
    assert pair.server.version() == {771: "TLSv1.2", 772: "TLSv1.3"}[version]


def test_older_version_than_the_minimum_is_refused(server: Server) -> None:
    options = TlsOptions(**server.issue("mail", "mail.example.com"), min_version="TLS1.3")
    context = context_of(server.certificates(options))
    with pytest.raises(ssl.SSLError):
        shake_hands(context, client=trusting(maximum_version=ssl.TLSVersion.TLSv1_2))


def test_ciphers_can_be_chosen(server: Server) -> None:
    options = TlsOptions(**server.issue("mail", "mail.example.com"), ciphers="ECDHE+AES128+AESGCM")
    client = trusting(maximum_version=ssl.TLSVersion.TLSv1_2)
    pair = shake_hands(context_of(server.certificates(options)), client=client)
    assert "AES128-GCM" in describe(pair.server).cipher


def test_default_ciphers_have_forward_secrecy_and_prefer_aead(server: Server) -> None:
    certificates = server.certificates(TlsOptions(**server.issue("mail", "mail.example.com")))
    ciphers = context_of(certificates).get_ciphers()
    assert all(cipher["kea"] in ("kx-ecdhe", "kx-dhe", "kx-any") for cipher in ciphers)
    elliptic = [cipher["aead"] for cipher in ciphers if cipher["kea"] == "kx-ecdhe"]
    assert elliptic == sorted(elliptic, reverse=True)


def test_compression_and_renegotiation_are_off(server: Server) -> None:
    certificates = server.certificates(TlsOptions(**server.issue("mail", "mail.example.com")))
    wanted = ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    assert context_of(certificates).options & wanted == wanted


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["smtp"], "smtp"), (["http/1.1", "smtp"], "smtp"), (["h2"], None), ([], None)]
)
def test_alpn_offers_smtp_and_refuses_nobody(server: Server, offered: list[str], chosen: str | None) -> None:
    certificates = server.certificates(TlsOptions(**server.issue("mail", "mail.example.com")))
    client = trusting()
    if offered:
        client.set_alpn_protocols(offered)
    assert shake_hands(context_of(certificates), client=client).server.selected_alpn_protocol() == chosen


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("tickets", [False, True])
def test_session_tickets_are_sent_only_when_on(server: Server, version: ssl.TLSVersion, tickets: bool) -> None:
    certificates = server.certificates(TlsOptions(**server.issue("mail", "mail.example.com")))
    context = context_of(certificates, session_tickets=tickets)
    pair = shake_hands(context, client=trusting(maximum_version=version))
    session = pair.client.session
    assert bool(session is not None and session.has_ticket) is tickets


def test_certificate_is_chosen_by_the_name_asked_for(server: Server) -> None:
    options = TlsOptions(
        **server.issue("default", "mail.example.com"),
        certificates=(
            Certificate(**server.issue("other", "mail.example.net", "*.example.net")),
            Certificate(**server.issue("third", "mail.example.com", "mx.example.org")),
        ),
    )
    context = context_of(server.certificates(options))
    served = {
        name: shake_hands(context, name=name).names
        for name in ("mail.example.net", "MAIL.Example.NET", "any.example.net", "mx.example.org")
    }
    other = {"mail.example.net", "*.example.net"}
    assert served == {
        "mail.example.net": other,
        "MAIL.Example.NET": other,
        "any.example.net": other,
        "mx.example.org": {"mail.example.com", "mx.example.org"},
    }


@pytest.mark.parametrize("name", [None, "unknown.example", "two.labels.example.net", "example.net", "mail.example.com"])
def test_default_certificate_is_served_otherwise(server: Server, name: str | None) -> None:
    options = TlsOptions(
        **server.issue("default", "mail.example.com"),
        certificates=(Certificate(**server.issue("other", "*.example.net", "mail.example.com")),),
    )
    context = context_of(server.certificates(options))
    assert shake_hands(context, name=name).names == {"mail.example.com"}


def test_name_asked_for_is_described(server: Server) -> None:
    options = TlsOptions(
        **server.issue("default", "mail.example.com"),
        certificates=(Certificate(**server.issue("other", "mail.example.net")),),
    )
    context = context_of(server.certificates(options))
    assert describe(shake_hands(context, name="mail.example.net").server).server_name == "mail.example.net"
    assert describe(shake_hands(context, name=None).server).server_name == ""


@pytest.mark.parametrize("tickets", [False, True])
def test_chosen_certificate_keeps_the_rules_of_its_listener(server: Server, tickets: bool) -> None:
    authority = server.directory / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(authority)
    options = TlsOptions(
        **server.issue("default", "mail.example.com"),
        certificates=(Certificate(**server.issue("other", "mail.example.net")),),
        client_ca_file=str(authority),
    )
    context = context_of(server.certificates(options), session_tickets=tickets, client_certificates="required")
    client = trusting()
    client.set_alpn_protocols(["smtp"])
    AUTHORITY.issue_cert(common_name="phone", organization_name="A, B").configure_cert(client)
    pair = shake_hands(context, client=client, name="mail.example.net")
    assert pair.names == {"mail.example.net"}
    assert pair.server.selected_alpn_protocol() == "smtp"
    assert "CN=phone" in describe(pair.server).client_subject
    assert r"O=A\, B" in describe(pair.server).client_subject
    assert bool(pair.client.session is not None and pair.client.session.has_ticket) is tickets


def test_optional_client_certificate_may_be_missing_but_not_strange(server: Server) -> None:
    context = context_of(with_client_authority(server), client_certificates="optional")
    assert describe(shake_hands(context).server).client_subject == ""
    stranger = trusting()
    trustme.CA().issue_cert("phone").configure_cert(stranger)
    with pytest.raises(ssl.SSLError):
        shake_hands(context, client=stranger)


def test_required_client_certificate_must_be_there(server: Server) -> None:
    context = context_of(with_client_authority(server), client_certificates="required")
    with pytest.raises(ssl.SSLError):
        shake_hands(context)


def test_client_certificates_without_authority_are_a_mistake_told_in_words(server: Server) -> None:
    certificates = server.certificates(TlsOptions(**server.issue("mail", "mail.example.com")))
    with pytest.raises(TlsError, match="client_ca_file"):
        context_of(certificates, client_certificates="optional")


def test_without_certificate_tls_is_not_available(server: Server) -> None:
    certificates = server.certificates(TlsOptions())
    assert certificates.available is False
    with pytest.raises(TlsError, match="no certificate"):
        context_of(certificates)


def _mistakes(server: Server) -> Mapping[str, tuple[dict[str, str], str]]:
    good, other = server.issue("good", "mail.example.com"), server.issue("other", "mail.example.com")
    key = serialization.load_pem_private_key(Path(good["key_file"]).read_bytes(), None)
    encrypted = server.directory / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"sesame"),
        )
    )
    empty = server.directory / "empty.pem"
    empty.touch()
    return {
        "missing": ({**good, "cert_file": str(server.directory / "none.crt")}, "none.crt: No such file"),
        "empty": ({**good, "cert_file": str(empty)}, "empty.pem: no certificate in PEM form"),
        "no key": ({**good, "key_file": str(empty)}, "good.crt and .*empty.pem: no key in PEM form"),
        "mismatch": ({**good, "key_file": other["key_file"]}, "do not belong together"),
        "encrypted": ({**good, "key_file": str(encrypted)}, "without a pass phrase"),
        "ciphers": ({**good, "ciphers": "NONSENSE"}, "ciphers = 'NONSENSE'"),
        "authority": ({**good, "client_ca_file": str(server.directory / "none.pem")}, "none.pem: No such file"),
    }


@pytest.mark.parametrize("mistake", ["missing", "empty", "no key", "mismatch", "encrypted", "ciphers", "authority"])
def test_mistake_is_told_at_the_start(server: Server, mistake: str) -> None:
    table, words = _mistakes(server)[mistake]
    with pytest.raises(TlsError, match=words):
        server.certificates(TlsOptions(**table))
