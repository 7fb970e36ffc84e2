from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd.content import DataReceiver
from smtpd.rehearsal import Envelope, Line, ScriptError, read_dialog, read_message
from smtpd.rehearsal.script import with_line_ends


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        (b"a: b\n\nc\n", b"a: b\r\n\r\nc\r\n"),
        (b"a: b\r\n\r\nc\r\n", b"a: b\r\n\r\nc\r\n"),
        (b"a: b\r\n\nc", b"a: b\r\n\nc"),
    ],
)
def test_lf_becomes_crlf_unless_the_file_has_line_ends_of_its_own(written: bytes, sent: bytes) -> None:
    assert with_line_ends(written) == sent


def test_dialogs_are_read_as_those_of_the_server_are(tmp_path: Path) -> None:
    path = tmp_path / "dialog.smtp"
    path.write_bytes(
        b"# RFC 5321\n# start: ehlo\nS: 220 hi\n"
        b"C: EHLO \\x41\\\\\r\nC- half\\r\nC: (starts TLS)\nC: (c)x\n\nC: (hangs up)\n"
    )
    assert read_dialog(path) == [
        Line(b"EHLO A\\\r\n"), Line(b"half\r"), Line(b"(c)x\r\n"), Line(hangs_up=True)
    ]  # fmt: skip


def test_bare_lines_are_what_the_client_says(tmp_path: Path) -> None:
    path = tmp_path / "dialog.txt"
    path.write_bytes(b"EHLO pc\r\n\nS: x\n")
    assert read_dialog(path) == [Line(b"EHLO pc\r\n"), Line(b"\r\n"), Line(b"S: x\r\n")]


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dialog.smtp"
    path.write_text("C: NOOP\nQUIT\n")
    with pytest.raises(ScriptError, match=r"dialog\.smtp:2: "):
        read_dialog(path)


@pytest.mark.parametrize("octets", [b"", b"\n", b" \r\n\r\n"])
def test_an_empty_dialog_is_a_mistake(tmp_path: Path, octets: bytes) -> None:
    path = tmp_path / "dialog.smtp"
    path.write_bytes(octets)
    with pytest.raises(ScriptError, match=r"dialog\.smtp: there is nothing in it that a client says"):
        read_dialog(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"none\.eml: cannot be read: No such file"):
        read_message(tmp_path / "none.eml")
    with pytest.raises(ScriptError, match=r"^\.: cannot be read: Is a directory"):
        read_message(Path())


def test_a_file_that_is_too_big_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "dialog.smtp"
    with path.open("wb") as stream:
        stream.truncate((4 << 20) + 1)
    with pytest.raises(ScriptError, match=r"dialog\.smtp: is larger than 4194304 octets"):
        read_dialog(path)


def test_commands_say_what_the_message_needs() -> None:
    plain = Envelope("a@b.test", ("c@d.test", "<e@f.test>"), b"x\r\n")
    assert plain.mail_command() == b"MAIL FROM:<a@b.test> SIZE=3"
    assert plain.recipient_commands() == [b"RCPT TO:<c@d.test>", b"RCPT TO:<e@f.test>"]
    wide = Envelope("", ("é@d.test",), b"\xe9")
    assert wide.mail_command() == b"MAIL FROM:<> SIZE=1 BODY=8BITMIME SMTPUTF8"


@given(st.binary().map(lambda octets: b"\r\n".join(part.replace(b"\n", b".") for part in octets.split(b"\r"))))
def test_the_dot_of_data_is_found_where_the_message_ends(content: bytes) -> None:
    from smtpd.content import Content
    from smtpd.limits import ContentBudget

    sent = Envelope("", ("a@b.test",), content).dotted()
    received = Content(ContentBudget(1 << 20), in_memory=1 << 20, spool=None)
    receiver = DataReceiver(received, max_size=0, max_line=1 << 20, bare="reject")
    assert receiver.feed(sent, 0) == len(sent)
    expected = content if not content or content.endswith(b"\r\n") else content + b"\r\n"
    assert b"".join(received.chunks()) == expected
    received.close()
