"""What cannot be read in a log with `privacy`: who people are."""

import pytest
from log_lines import Lines

from smtpd import replies
from smtpd.config import LogOptions
from smtpd.log import Log


@pytest.fixture
def lines() -> Lines:
    return Lines()


def make(lines: Lines, salt: bytes = b"salt") -> Log:
    """Outside of an event loop all is written at once."""
    return Log(LogOptions(privacy=True), sink=lines, salt=salt)


def test_privacy_hides_local_parts_and_keeps_domains(lines: Lines) -> None:
    make(lines).info(
        "message", sender="Anna@example.org", recipients=["bob@example.com", '"anna b"@example.org'], login="anna",
        helo="annas-laptop", reply="550 5.1.1 No mailbox here by the name bob@example.com", empty="", bounce="",
        message_id="<1234@example.org>",
    )  # fmt: skip
    line = lines.entries[0]
    assert "nna" not in lines.octets.decode()
    assert "bob" not in lines.octets.decode()
    assert str(line["sender"]).endswith("@example.org")
    assert str(line["reply"]).startswith("550 5.1.1 No mailbox here by the name ")
    assert str(line["reply"]).endswith(str(line["recipients"][0]))
    assert line["message_id"] == "<1234@example.org>"


@pytest.mark.parametrize(
    "address",
    ["anna" + "l" * 230 + "@example.org", '"anna ' + "l m" * 70 + '"@example.org', '"anna\\"' + "x " * 99 + '"@a.test'],
)
def test_privacy_hides_addresses_that_were_cut(lines: Lines, address: str) -> None:
    log = make(lines)
    log.info("refused", reply=str(replies.NO_SUCH_USER(address=address)))
    log.info("message", reply=str(replies.SOME_REFUSED(recipients=f"bob@example.org, {address}", reason="Full")))
    for line in lines.entries:
        assert "anna" not in str(line["reply"])
        assert "..." in str(line["reply"])


def test_privacy_keeps_the_null_sender_visible(lines: Lines) -> None:
    make(lines).info("message", sender="")
    assert lines.entries[0]["sender"] == ""


def test_hashes_recognise_the_same_person_but_differ_by_salt() -> None:
    hashes = []
    for salt in (b"one", b"one", b"two"):
        lines = Lines()
        make(lines, salt).info("x", sender="Anna@example.org", login="anna")
        assert lines.entries[0]["sender"] == f"{lines.entries[0]['login']}@example.org"
        hashes.append(lines.entries[0]["sender"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("path", ["/var/mail/anna/tmp", "/var/m@il/example.org/anna", "and /m/anna@example.org: Full"])
def test_privacy_hides_paths_of_mailboxes(lines: Lines, path: str) -> None:
    make(lines).error("x", mailboxes=[path], root="/var/mail")
    make(lines).error("x", mailboxes=[path], root="/var/mail")
    first, second = lines.entries
    assert "anna" not in lines.octets.decode()
    assert first["mailboxes"] == second["mailboxes"]
    assert first["root"] == "/var/mail"


def test_privacy_hides_local_parts_in_addresses_of_web_pages(lines: Lines) -> None:
    make(lines).info("refused", reply="Ask http://why.example/?id=anna%40example.org&ip=::1")
    assert "anna" not in lines.octets.decode()
    assert "%40example.org&ip=::1" in lines.octets.decode()


def test_privacy_reaches_tracebacks(lines: Lines) -> None:
    make(lines).error("broken", exception=ValueError("no mailbox bob@example.com"))
    assert "bob" not in lines.octets.decode()
