"""Renewed files are taken over as a whole or not at all; days left are known."""

import asyncio
import shutil
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smtpd.config import Certificate, TlsOptions
from smtpd.tls import Combination, TlsError
from tests.tls.conftest import OFF, Server, context_of, shake_hands, with_client_authority


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
        while context_of(certificates) is before:  # noqa: ASYNC110 - nothing tells us but the context
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


def test_warning_from_before_the_clock_was_set_back_does_not_count(server: Server) -> None:
    soon = datetime.now(UTC) + timedelta(days=2, hours=2)
    certificates = server.certificates(TlsOptions(**server.issue("mail", "mail.example.com", expires=soon)))
    right = server.clock.now
    for now in (right + 1e9, right, right + 60):
        server.clock.now = now
        certificates.check()
    assert [line["days_left"] for line in server.events("certificate-expires-soon")] == [2, 2]


def test_certificate_that_lasts_is_not_warned_of(server: Server) -> None:
    later = datetime.now(UTC) + timedelta(days=15)
    server.certificates(TlsOptions(**server.issue("mail", "mail.example.com", expires=later))).check()
    assert not server.events("certificate-expires-soon")


def test_broken_authority_file_keeps_what_is_in_use(server: Server) -> None:
    certificates = with_client_authority(server)
    before = context_of(certificates, client_certificates="optional")
    (server.directory / "ca.pem").write_bytes(b"")
    assert certificates.check() is False
    assert context_of(certificates, client_certificates="optional") is before
