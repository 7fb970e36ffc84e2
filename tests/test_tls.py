"""Handshakes are real ones, over memory instead of a network."""

import asyncio
import json
import os
import re
import shutil
import ssl
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from smtpd.config import Certificate, LogOptions, TlsOptions
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.tls import Certificates, Combination, TlsError, describe, make_developer_certificate

AUTHORITY = trustme.CA()
OFF = {"session_tickets": False, "client_certificates": "off"}


class Lines:
    """A log sink that keeps everything."""

    def __init__(self) -> None:
        self.octets = bytearray()

    def write(self, data: bytes) -> int:
        self.octets += data
        return len(data)

    def reopen(self) -> None: ...

    def close(self) -> None: ...


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).timestamp()

    def __call__(self) -> float:
        return self.now


class Server:
    """Certificates with everything around them, in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metrics = Metrics()
        self.clock = Clock()
        self._lines = Lines()
        self._log = Log(LogOptions(), sink=self._lines)

    def issue(self, stem: str, *names: str, expires: datetime | None = None) -> dict[str, str]:
        leaf = AUTHORITY.issue_cert(*names, not_after=expires)
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return self.write(stem, chain, leaf.private_key_pem.bytes())

    def write(self, stem: str, chain: bytes, key: bytes) -> dict[str, str]:
        cert_file, key_file = self.directory / f"{stem}.crt", self.directory / f"{stem}.key"
        for file, content in ((cert_file, chain), (key_file, key)):
            draft = file.with_suffix(".new")
            draft.write_bytes(content)
            draft.rename(file)
        return {"cert_file": str(cert_file), "key_file": str(key_file)}

    def certificates(self, options: TlsOptions) -> Certificates:
        return Certificates(options, self._log, self.metrics, now=self.clock)

    def events(self, event: str) -> list[dict[str, object]]:
        self._log.flush()
        lines = [json.loads(line) for line in self._lines.octets.splitlines()]
        return [line for line in lines if line["event"] == event]

    def seconds_left(self) -> dict[str, float]:
        text = self.metrics.exposition()[0].decode()
        pattern = r'^smtpd_tls_certificate_expiry_seconds\{certificate="([^"]*)"\} (\S+)$'
        return {label: float(value) for label, value in re.findall(pattern, text, re.MULTILINE)}


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@dataclass
class Pair:
    """Both ends of a connection after the handshake."""

    client: ssl.SSLObject
    server: ssl.SSLObject
    move: Callable[[], None]

    @property
    def names(self) -> set[str]:
        """What the certificate of the server says it is called."""
        certificate = self.client.getpeercert()
        assert certificate is not None
        return {str(value) for _, value in certificate["subjectAltName"]}  # type: ignore[misc]


def shake_hands(
    server: ssl.SSLContext, *, client: ssl.SSLContext | None = None, name: str | None = "mail.example.com"
) -> Pair:
    client = client or trusting()
    pipes = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    ours = server.wrap_bio(pipes[0], pipes[1], server_side=True)
    theirs = client.wrap_bio(pipes[1], pipes[0], server_hostname=name)
    waiting = [theirs, ours]
    for _ in range(10):
        for end in tuple(waiting):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)

    def move() -> None:
        for end in (theirs, ours):
            with suppress(ssl.SSLWantReadError):
                end.read(0 if end.pending() else 1)

    assert not waiting
    move()
    return Pair(theirs, ours, move)


def trusting(**changes: object) -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    context.check_hostname = False
    for name, value in changes.items():
        setattr(context, name, value)
    return context


def context_of(certificates: Certificates, **changes: object) -> ssl.SSLContext:
    return certificates.context(**{**OFF, **changes})  # type: ignore[arg-type]


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


def with_client_authority(server: Server) -> Certificates:
    authority = server.directory / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(authority)
    return server.certificates(TlsOptions(**server.issue("mail", "mail.example.com"), client_ca_file=str(authority)))


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
        server.certificates(TlsOptions(**table))  # type: ignore[arg-type]


def test_renewed_certificate_is_used_for_the_next_handshake_and_open_connections_live_on(server: Server) -> None:
    options = TlsOptions(**server.issue("mail", "old.example.com"))
    certificates = server.certificates(options)
    open_pair = shake_hands(context_of(certificates))
    server.issue("mail", "new.example.com")
    assert certificates.check() is True
    assert shake_hands(context_of(certificates)).names == {"new.example.com"}
    open_pair.client.write(b"NOOP\r\n")
    assert open_pair.server.read() == b"NOOP\r\n"
    assert certificates.check() is False
    assert len(server.events("certificates-loaded")) == 1


def test_renewal_reaches_every_combination_in_use(server: Server) -> None:
    certificates = with_client_authority(server)
    used = [{**OFF}, {**OFF, "session_tickets": True}, {**OFF, "client_certificates": "optional"}]
    before = [context_of(certificates, **combination) for combination in used]
    server.issue("mail", "new.example.com")
    assert certificates.check() is True
    after = [context_of(certificates, **combination) for combination in used]
    assert not set(map(id, before)) & set(map(id, after))
    assert all(shake_hands(context).names == {"new.example.com"} for context in after)


def test_symlink_swap_of_a_directory_is_noticed(server: Server) -> None:
    """How Kubernetes renews secrets: `..data` is a link to a directory and gets replaced."""
    for version, name in (("v1", "old.example.com"), ("v2", "new.example.com")):
        (server.directory / version).mkdir()
        server.issue(f"{version}/tls", name)
    data = server.directory / "..data"
    data.symlink_to("v1")
    options = TlsOptions(cert_file=str(data / "tls.crt"), key_file=str(data / "tls.key"))
    certificates = server.certificates(options)
    fresh = server.directory / "..tmp"
    fresh.symlink_to("v2")
    fresh.rename(data)
    assert certificates.check() is True
    assert shake_hands(context_of(certificates)).names == {"new.example.com"}


def test_symlink_swap_of_each_file_is_noticed(server: Server) -> None:
    """How certbot renews: `live/cert.pem` is a link into `archive/`."""
    server.issue("archive1", "old.example.com")
    server.issue("archive2", "new.example.com")
    links = {ending: server.directory / f"live.{ending}" for ending in ("crt", "key")}
    for ending, link in links.items():
        link.symlink_to(f"archive1.{ending}")
    options = TlsOptions(cert_file=str(links["crt"]), key_file=str(links["key"]))
    certificates = server.certificates(options)
    for ending, link in links.items():
        link.unlink()
        link.symlink_to(f"archive2.{ending}")
    assert certificates.check() is True
    assert shake_hands(context_of(certificates)).names == {"new.example.com"}


def _break(server: Server, how: str, paths: dict[str, str]) -> None:
    certificate, key = Path(paths["cert_file"]), Path(paths["key_file"])
    match how:
        case "only the certificate is new":
            shutil.copy(server.issue("other", "new.example.com")["cert_file"], certificate)
        case "the certificate is half written":
            certificate.write_bytes(certificate.read_bytes()[:300])
        case "the key is half written":
            key.write_bytes(key.read_bytes()[:50])
        case "the key is gone":
            key.unlink()
        case "the chain is empty":
            certificate.write_bytes(b"")


@pytest.mark.parametrize(
    "how",
    [
        "only the certificate is new",
        "the certificate is half written",
        "the key is half written",
        "the key is gone",
        "the chain is empty",
    ],
)
def test_unusable_files_keep_the_old_pair_with_one_warning(server: Server, how: str) -> None:
    paths = server.issue("mail", "old.example.com")
    certificates = server.certificates(TlsOptions(**paths))
    _break(server, how, paths)
    assert [certificates.check() for _ in range(3)] == [False] * 3
    assert shake_hands(context_of(certificates)).names == {"old.example.com"}
    assert shake_hands(context_of(certificates, session_tickets=True)).names == {"old.example.com"}
    assert len(server.events("certificates-kept")) == 1
    server.issue("mail", "new.example.com")
    assert certificates.check() is True
    assert shake_hands(context_of(certificates)).names == {"new.example.com"}


def test_each_different_failure_is_reported(server: Server) -> None:
    paths = server.issue("mail", "old.example.com")
    certificates = server.certificates(TlsOptions(**paths))
    _break(server, "the chain is empty", paths)
    certificates.check()
    _break(server, "the key is gone", paths)
    certificates.check()
    errors = [str(line["error"]) for line in server.events("certificates-kept")]
    assert len(set(errors)) == 2


def test_private_key_is_never_shown(server: Server) -> None:
    paths = server.issue("mail", "mail.example.com")
    certificates = server.certificates(TlsOptions(**paths))
    assert "PRIVATE" not in repr(vars(certificates))
    _break(server, "the key is half written", paths)
    certificates.check()
    assert "BEGIN" not in str(server.events("certificates-kept"))


def test_contexts_can_be_made_after_the_files_became_unreadable(server: Server) -> None:
    paths = server.issue("mail", "mail.example.com")
    certificates = server.certificates(TlsOptions(**paths))
    Path(paths["key_file"]).unlink()
    shake_hands(context_of(certificates, session_tickets=True))


def test_other_options_are_taken_over_whole_or_not_at_all(server: Server) -> None:
    old = TlsOptions(**server.issue("old", "old.example.com"))
    certificates = server.certificates(old)
    new = server.issue("new", "new.example.com")
    with pytest.raises(TlsError):
        certificates.configure(TlsOptions(**new), [Combination(False, "required")])
    assert shake_hands(context_of(certificates)).names == {"old.example.com"}
    certificates.configure(TlsOptions(**new), [Combination(False, "off")])
    assert shake_hands(context_of(certificates)).names == {"new.example.com"}


async def test_watching_takes_a_renewed_certificate_over(server: Server) -> None:
    options = TlsOptions(**server.issue("mail", "old.example.com"), reload_interval=0.01)
    certificates = server.certificates(options)
    watching = asyncio.create_task(certificates.watch())
    before = context_of(certificates)
    server.issue("mail", "new.example.com")
    async with asyncio.timeout(20):
        while context_of(certificates) is before:
            await asyncio.sleep(0)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    assert shake_hands(context_of(certificates)).names == {"new.example.com"}


def test_seconds_until_expiry_are_a_metric_and_follow_a_renewal(server: Server) -> None:
    moment = datetime.fromtimestamp(server.clock.now, UTC).replace(microsecond=0)
    server.clock.now = moment.timestamp()
    options = TlsOptions(**server.issue("mail", "mail.example.com", expires=moment + timedelta(days=60)))
    certificates = server.certificates(options)
    assert server.seconds_left() == {"mail.crt": 60 * 86400}
    server.clock.now += 86400
    assert server.seconds_left() == {"mail.crt": 59 * 86400}
    server.issue("mail", "mail.example.com", expires=moment + timedelta(days=90))
    certificates.check()
    assert server.seconds_left() == {"mail.crt": 89 * 86400}


def test_files_of_the_same_name_are_told_apart_in_the_metric(server: Server) -> None:
    tables = []
    for host in ("a.example", "b.example"):
        (server.directory / host).mkdir()
        tables.append(server.issue(f"{host}/fullchain", host))
    _certificates = server.certificates(TlsOptions(**tables[0], certificates=(Certificate(**tables[1]),)))
    assert set(server.seconds_left()) == {"a.example/fullchain.crt", "b.example/fullchain.crt"}


def test_expiry_is_warned_of_once_a_day(server: Server) -> None:
    soon = datetime.now(UTC) + timedelta(days=2, hours=2)
    certificates = server.certificates(TlsOptions(**server.issue("mail", "mail.example.com", expires=soon)))
    for hours in (0, 12, 13, 12, 20):
        server.clock.now += hours * 3600
        certificates.check()
    assert [line["days_left"] for line in server.events("certificate-expires-soon")] == [2, 1]
    assert len(server.events("certificate-expired")) == 1


def test_certificate_that_lasts_is_not_warned_of(server: Server) -> None:
    later = datetime.now(UTC) + timedelta(days=15)
    server.certificates(TlsOptions(**server.issue("mail", "mail.example.com", expires=later))).check()
    assert not server.events("certificate-expires-soon")


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
