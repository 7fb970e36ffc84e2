"""Command lines: RFC 5321 §4.1.1 and the parameters of RFC 1870, 4954, 6152 and 6531."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd import commands, replies
from smtpd.addresses import Address, parse_address
from smtpd.commands import (
    MAX_AUTH_LINE,
    MAX_LINE,
    MAX_MAIL_LINE,
    MailCommand,
    limit_for,
    no_argument,
    parse_auth,
    parse_bdat,
    parse_helo,
    parse_mail,
    parse_rcpt,
    split,
)
from smtpd.endings import Foreign
from smtpd.replies import Refused

EVERY = frozenset({"SIZE", "8BITMIME", "SMTPUTF8", "AUTH", "PRDR"})
NONE: frozenset[str] = frozenset()
SENDER = parse_address("a@b")


def refusal(parse: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(Refused) as caught:
        parse(*arguments, **options)
    return str(caught.value.reply)


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        (b"NOOP", "NOOP", b""),
        (b"quit", "QUIT", b""),
        (b"RSET \t ", "RSET", b""),
        (b"MaiL FROM:<a@b> SIZE=1  ", "MAIL", b"FROM:<a@b> SIZE=1"),
        (b"RCPT   TO:<a@b>", "RCPT", b"TO:<a@b>"),
        (b"EHLO  a b ", "EHLO", b"a b"),
        (b"", "", b""),
        (b" MAIL", "", b"MAIL"),
        ("MAIL FROM:<å@b>".encode(), "MAIL", "FROM:<å@b>".encode()),
        ("RCPT TO:<å@b>".encode(), "RCPT", "TO:<å@b>".encode()),
        ("vrfy å".encode(), "VRFY", "å".encode()),
    ],
)
def test_line_is_split_into_verb_and_argument(line: bytes, verb: str, argument: bytes) -> None:
    assert split(line) == (verb, argument)


@pytest.mark.parametrize(
    "line",
    [
        b"NOOP\x00",
        b"NOOP\r",
        b"NOOP a\rb",
        b"NOOP\n",
        b"MAIL FROM:<a@b>\nRCPT TO:<c@d>",
        b"MAIL\tFROM:<a@b>", b"MAIL FROM:<a\t@b>",
        b"MAIL FROM:<\x7f@b>",
        b"MAIL FROM:<\xe5@b>",
        b"RCPT TO:<\xed\xa0\x80@b>",
        "EHLO å".encode(),
        "NOOP å".encode(), "MÅIL FROM:<a@b>".encode(),
    ],
)
def test_line_beyond_printable_ascii_is_refused(line: bytes) -> None:
    assert refusal(split, line) == "500 5.5.2 Commands are printable ASCII"


@pytest.mark.parametrize("line", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"get /\xe5", b"PUT\t/a"])
def test_line_of_another_protocol_is_not_answered(line: bytes) -> None:
    with pytest.raises(Foreign):
        split(line)


@pytest.mark.parametrize("name", ["mail.example.org", "host_1", "[192.0.2.1]", "[IPv6:::1]", "a.b.", "?!", "x" * 255])
def test_helo_takes_any_one_word(name: str) -> None:
    assert parse_helo("EHLO", name.encode()) == name


@pytest.mark.parametrize("argument", [b"", b"a b", b"x" * 256, b"a\tb", "å".encode()])
def test_helo_without_one_word_is_refused_with_its_verb(argument: bytes) -> None:
    for verb in ("HELO", "EHLO"):
        assert refusal(parse_helo, verb, argument) == str(replies.HELO_ARGUMENT(verb=verb))


@pytest.mark.parametrize(
    ("argument", "command"),
    [
        (b"FROM:<a@b>", MailCommand(SENDER)),
        (b"from:<a@b>", MailCommand(SENDER)),
        (b"FROM:  <a@b>", MailCommand(SENDER)),
        (b"FROM:<>", MailCommand(Address.null)),
        (b"FROM:<> SIZE=0", MailCommand(Address.null, size=0)),
        (b"FROM:<@r:a@b>", MailCommand(SENDER)),
        (b"FROM:<a@b> SIZE=1234", MailCommand(SENDER, size=1234)),
        (b"FROM:<a@b> SIZE=99999999999999999999", MailCommand(SENDER, size=10**20 - 1)),
        (b"FROM:<a@b> SIZE=5 BODY=8BITMIME", MailCommand(SENDER, size=5, body="8BITMIME")),
        (b"FROM:<a@b>  body=8bitmime   size=5", MailCommand(SENDER, size=5, body="8BITMIME")),
        (b"FROM:<a@b> BODY=7bit", MailCommand(SENDER)),
        (b"FROM:<a@b> SMTPUTF8", MailCommand(SENDER, smtputf8=True)),
        (b"FROM:<a@b> prdr", MailCommand(SENDER, prdr=True)),
        (b"FROM:<a@b> AUTH=<>", MailCommand(SENDER, auth="")),
        (b"FROM:<a@b> AUTH=e+3Dmc2@Example.com", MailCommand(SENDER, auth="e=mc2@Example.com")),
        (b"FROM:<a@b> AUTH=e+3dmc2@example.com", MailCommand(SENDER, auth="e=mc2@example.com")),
        (b"FROM:<a@b> AUTH=+C3+A5@b", MailCommand(SENDER, auth="å@b")),
        ("FROM:<å@b> SMTPUTF8".encode(), MailCommand(Address("å", "b", "å@b"), smtputf8=True)),
    ],
)
def test_mail_is_read(argument: bytes, command: MailCommand) -> None:
    assert parse_mail(argument, EVERY) == command


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        (b"", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"<a@b>", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"TO:<a@b>", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"FROM <a@b>", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"FROM :<a@b>", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"FROM:", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"FROM:a@b", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"FROM: a (comment) @ b.c", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"FROM:<a@b>SIZE=1", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"FROM:<a@b>>", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"FROM:<a@b> =1", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"FROM:<a@b> a_b=1", "501 5.5.4 Syntax: MAIL FROM:<address>"),
        ("FROM:<a@b> SÏZE=1".encode(), "501 5.5.4 Syntax: MAIL FROM:<address>"),
        (b"FROM:<a..b@c>", "501 5.1.7 Bad sender address: the local part has a dot too many"),
        (b"FROM:<a@b c>", "501 5.1.7 Bad sender address: it does not read local-part@domain"),
        (b"FROM:<Postmaster>", "501 5.1.7 Bad sender address: the domain is missing"),
        ("FROM:<å@b>".encode(), str(replies.NON_ASCII_SENDER)),
        ("FROM:<a@å.b> SIZE=1".encode(), str(replies.NON_ASCII_SENDER)),
        (b"FROM:<\xe5@b>", "500 5.5.2 Commands are printable ASCII"),
        (b"FROM:<a@b> SIZE", "501 5.5.4 Bad value of SIZE"),
        (b"FROM:<a@b> SIZE=", "501 5.5.4 Bad value of SIZE"),
        (b"FROM:<a@b> SIZE=-1", "501 5.5.4 Bad value of SIZE"),
        (b"FROM:<a@b> SIZE=1x", "501 5.5.4 Bad value of SIZE"),
        (b"FROM:<a@b> SIZE=1=2", "501 5.5.4 Bad value of SIZE"),
        ("FROM:<a@b> SIZE=٣".encode(), "501 5.5.4 Bad value of SIZE"),
        (b"FROM:<a@b> SIZE=" + b"1" * 21, "501 5.5.4 Bad value of SIZE"),
        (b"FROM:<a@b> SIZE=1 size=1", "501 5.5.4 Bad value of SIZE"),
        (b"FROM:<a@b> SIZE=1 BODY=7BIT SIZE=1", "501 5.5.4 Bad value of SIZE"),
        (b"FROM:<a@b> BODY", "501 5.5.4 Bad value of BODY"),
        (b"FROM:<a@b> BODY=", "501 5.5.4 Bad value of BODY"),
        (b"FROM:<a@b> BODY=BINARYMIME", "501 5.5.4 Bad value of BODY"),
        ("FROM:<a@b> BODY=8bıtmime".encode(), "501 5.5.4 Bad value of BODY"),
        (b"FROM:<a@b> SMTPUTF8=1", "501 5.5.4 Bad value of SMTPUTF8"),
        (b"FROM:<a@b> SMTPUTF8=", "501 5.5.4 Bad value of SMTPUTF8"),
        (b"FROM:<a@b> SMTPUTF8 SMTPUTF8", "501 5.5.4 Bad value of SMTPUTF8"),
        (b"FROM:<a@b> PRDR=yes", "501 5.5.4 Bad value of PRDR"),
        (b"FROM:<a@b> AUTH", "501 5.5.4 Bad value of AUTH"),
        (b"FROM:<a@b> AUTH=", "501 5.5.4 Bad value of AUTH"),
        (b"FROM:<a@b> AUTH=a=b", "501 5.5.4 Bad value of AUTH"),
        (b"FROM:<a@b> AUTH=a+", "501 5.5.4 Bad value of AUTH"),
        (b"FROM:<a@b> AUTH=a+4", "501 5.5.4 Bad value of AUTH"),
        (b"FROM:<a@b> AUTH=a+GG", "501 5.5.4 Bad value of AUTH"),
        (b"FROM:<a@b> AUTH=a+0D+0A", "501 5.5.4 Bad value of AUTH"),
        (b"FROM:<a@b> AUTH=a+C2+85", "501 5.5.4 Bad value of AUTH"),
        (b"FROM:<a@b> AUTH=+FF", "501 5.5.4 Bad value of AUTH"),
        ("FROM:<a@b> AUTH=å".encode(), "501 5.5.4 Bad value of AUTH"),
        (b"FROM:<a@b> RET=HDRS", "555 5.5.4 Parameter RET is not supported"),
        (b"FROM:<a@b> SIZE=1 ENVID=x", "555 5.5.4 Parameter ENVID is not supported"),
        (b"FROM:<a@b> X-" + b"y" * 300, f"555 5.5.4 Parameter X-{'Y' * 195}... is not supported"),
    ],
)
def test_mail_is_refused(argument: bytes, reply: str) -> None:
    assert refusal(parse_mail, argument, EVERY) == reply


@pytest.mark.parametrize(
    ("parameter", "keyword"),
    [
        (b"SIZE=1", "SIZE"),
        (b"BODY=7BIT", "8BITMIME"),
        (b"SMTPUTF8", "SMTPUTF8"),
        (b"AUTH=<>", "AUTH"),
        (b"PRDR", "PRDR"),
    ],
)
def test_parameter_counts_only_with_its_extension(parameter: bytes, keyword: str) -> None:
    argument = b"FROM:<a@b> " + parameter
    name = parameter.partition(b"=")[0].decode()
    parse_mail(argument, frozenset({keyword}))
    for extensions in (EVERY - {keyword}, NONE):
        assert refusal(parse_mail, argument, extensions) == f"555 5.5.4 Parameter {name} is not supported"


def test_body_behind_size_needs_its_own_extension() -> None:
    reply = refusal(parse_mail, b"FROM:<a@b> SIZE=1 BODY=8BITMIME", frozenset({"SIZE"}))
    assert reply == "555 5.5.4 Parameter BODY is not supported"
    assert parse_mail(b"FROM:<a@b> SIZE=1", frozenset({"SIZE"})).size == 1


def test_strict_refuses_space_behind_the_colon() -> None:
    assert refusal(parse_mail, b"FROM: <a@b>", EVERY, strict=True) == "501 5.5.4 Syntax: MAIL FROM:<address>"
    assert refusal(parse_rcpt, b"TO: <a@b>", smtputf8=False, strict=True) == "501 5.5.4 Syntax: RCPT TO:<address>"
    assert parse_mail(b"FROM:<a@b>", EVERY, strict=True) == MailCommand(SENDER)


@pytest.mark.parametrize("argument", [b"TO:<a@b>", b"to:<a@b>", b"TO: <a@b>", b"TO:<@r.test,@s.test:a@b>"])
def test_rcpt_is_read(argument: bytes) -> None:
    assert parse_rcpt(argument, smtputf8=False).recipient == SENDER


def test_rcpt_takes_postmaster_without_domain() -> None:
    assert parse_rcpt(b"TO:<pOSTMASTER>", smtputf8=False).recipient == Address("pOSTMASTER", "", "pOSTMASTER")


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        (b"", "501 5.5.4 Syntax: RCPT TO:<address>"),
        (b"FROM:<a@b>", "501 5.5.4 Syntax: RCPT TO:<address>"),
        (b"TO:a@b", "501 5.5.4 Syntax: RCPT TO:<address>"),
        (b"TO:<a@b>x", "501 5.5.4 Syntax: RCPT TO:<address>"),
        (b"TO:<>", "501 5.1.3 Bad recipient address: the empty path is for senders only"),
        (b"TO:<a>", "501 5.1.3 Bad recipient address: the domain is missing"),
        (b"TO:<a@b", "501 5.1.3 Bad recipient address: the closing angle bracket is missing"),
        (b"TO:<a@b> NOTIFY=NEVER", "555 5.5.4 Parameter NOTIFY is not supported"),
        (b"TO:<a@b> orcpt=rfc822;a@b", "555 5.5.4 Parameter ORCPT is not supported"),
        (b"TO:<a@b> SIZE=1", "555 5.5.4 Parameter SIZE is not supported"),
        ("TO:<å@b>".encode(), str(replies.NON_ASCII_RECIPIENT)),
        (b"TO:<\xff@b>", "500 5.5.2 Commands are printable ASCII"),
    ],
)
def test_rcpt_is_refused(argument: bytes, reply: str) -> None:
    assert refusal(parse_rcpt, argument, smtputf8=False) == reply


def test_rcpt_beyond_ascii_is_taken_after_smtputf8() -> None:
    assert parse_rcpt("TO:<å@bücher.test>".encode(), smtputf8=True).recipient.domain == "xn--bcher-kva.test"


@pytest.mark.parametrize(
    ("argument", "size", "last"),
    [(b"0", 0, False), (b"0 LAST", 0, True), (b"1000  last", 1000, True), (b"9" * 20, 10**20 - 1, False)],
)
def test_bdat_is_read(argument: bytes, size: int, last: bool) -> None:
    command = parse_bdat(argument)
    assert (command.size, command.last) == (size, last)


@pytest.mark.parametrize("argument", [b"", b"LAST", b"-1", b"1x", b"1 LASTX", b"1 LAST x", b"9" * 21, b"1LAST"])
def test_bdat_without_a_size_is_refused(argument: bytes) -> None:
    assert refusal(parse_bdat, argument) == "501 5.5.4 Syntax: BDAT size [LAST]"


@pytest.mark.parametrize(
    ("argument", "mechanism", "initial"),
    [
        (b"plain", "PLAIN", None),
        (b"PLAIN =", "PLAIN", b"="),
        (b"Scram-Sha-256  biws", "SCRAM-SHA-256", b"biws"),
        (b"PLAIN not/base64!", "PLAIN", b"not/base64!"),
    ],
)
def test_auth_is_read(argument: bytes, mechanism: str, initial: bytes | None) -> None:
    command = parse_auth(argument)
    assert (command.mechanism, command.initial) == (mechanism, initial)


@pytest.mark.parametrize("argument", [b"", b"PLAIN a b", b"PL@IN", b"X" * 21, b"\xff"])
def test_auth_without_a_mechanism_is_refused(argument: bytes) -> None:
    assert refusal(parse_auth, argument) == "501 5.5.4 Syntax: AUTH mechanism [initial-response]"


def test_password_in_auth_stays_out_of_repr() -> None:
    assert "c2VjcmV0" not in repr(parse_auth(b"PLAIN c2VjcmV0"))


def test_argument_where_none_belongs_is_refused() -> None:
    no_argument("RSET", b"")
    assert refusal(no_argument, "STARTTLS", b"now") == "501 5.5.4 STARTTLS takes no argument"


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        (b"mail FROM:<a@b>", MAX_MAIL_LINE),
        (b"MAIL", MAX_MAIL_LINE),
        (b"auth PLAIN", MAX_AUTH_LINE),
        (b"RCPT TO:<a@b>", MAX_LINE),
        (b"", MAX_LINE),
        (b"MAI", MAX_LINE),
    ],
)
def test_line_limit_grows_with_what_the_verb_may_carry(line: bytes, limit: int) -> None:
    assert limit_for(line) == limit


def test_mail_line_has_room_for_every_parameter_at_its_longest() -> None:
    path = b"FROM:<" + b"a" * 254 + b">"
    line = b"MAIL " + path + b" SIZE=" + b"9" * 20 + b" BODY=8BITMIME SMTPUTF8 PRDR AUTH=" + b"x" * 494 + b"\r\n"
    assert len(line) <= MAX_MAIL_LINE


PIECE = st.one_of(
    st.sampled_from(
        [b"FROM:", b"TO:", b"<", b">", b"<>", b"@", b"a@b", b" ", b"=", b"+", b'"', b"\\", b"[", b"]", b":", b",", b".",
         b"SIZE=", b"BODY=", b"8BITMIME", b"SMTPUTF8", b"AUTH=", b"PRDR", b"LAST", b"1", b"IPv6:", b"\xc3\xbc", b"xn--"]
    ),
    st.binary(max_size=6),
    st.text(max_size=4).map(lambda text: text.encode("utf-8", "surrogatepass")),
)  # fmt: skip
ARGUMENT = st.lists(PIECE, max_size=16).map(b"".join)
PARSERS: list[Callable[[bytes], object]] = [
    split,
    lambda argument: parse_helo("EHLO", argument),
    lambda argument: parse_mail(argument, EVERY),
    lambda argument: parse_mail(argument, NONE, strict=True),
    lambda argument: parse_mail(b"FROM:<" + argument, EVERY),
    lambda argument: parse_mail(b"FROM:<a@b> " + argument, EVERY),
    lambda argument: parse_rcpt(argument, smtputf8=True),
    lambda argument: parse_rcpt(b"TO:<" + argument + b">", smtputf8=True),
    lambda argument: parse_rcpt(b"TO:<a@" + argument + b">", smtputf8=False, strict=True),
    parse_bdat,
    parse_auth,
    lambda argument: no_argument("RSET", argument),
    limit_for,
]


@given(ARGUMENT)
@example("TO:<a@\u0300b>".encode())
@example(b"FROM:<a@b> AUTH=+FF")
def test_nothing_but_refused_ever_escapes_from_a_parser(argument: bytes) -> None:
    for parse in PARSERS:
        reply = b"500\r\n"
        try:
            with suppress(Foreign):
                parse(argument)
        except Refused as refused:
            reply = refused.reply.encode()
        assert reply.isascii()
        assert reply.count(b"\r\n") == 1
        assert len(reply) <= MAX_LINE


@given(ARGUMENT)
def test_accepted_envelope_is_clean(argument: bytes) -> None:
    try:
        command = parse_mail(b"FROM:" + argument, EVERY)
    except Refused:
        return
    for text in (command.sender.text, command.auth or ""):
        assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text)
    assert command.smtputf8 or command.sender.is_ascii
    assert command.body in ("7BIT", "8BITMIME")


@given(st.binary(max_size=40), st.integers(0, 40))
def test_line_limit_is_known_from_the_first_octets(line: bytes, cut: int) -> None:
    assert limit_for(line) == limit_for(line[: max(cut, 4)])


def test_every_parser_of_the_module_is_in_the_property_test() -> None:
    tested = {"split", "limit_for", "no_argument"} | {name for name in vars(commands) if name.startswith("parse_")}
    assert tested - {"parse_path"} == {
        "split", "limit_for", "no_argument", "parse_helo", "parse_mail", "parse_rcpt", "parse_bdat", "parse_auth"
    }  # fmt: skip


@pytest.mark.parametrize("line", [b"AUTH PLAIN AGEAYg==", b"auth plain AGEAYg=="])
def test_password_is_not_remembered(line: bytes) -> None:
    remembered: object = getattr(split, "__self__", None)
    assert isinstance(remembered, dict)
    assert split(line) == ("AUTH", line[5:])
    split(b"NOOP kept")
    assert line not in remembered
    assert b"NOOP kept" in remembered


@pytest.mark.parametrize("line", [b"c2VjcmV0", b" AUTH PLAIN AGEAYg==", b"\tAUTH PLAIN AGEAYg==", b"PASS secret"])
def test_what_is_no_command_is_not_remembered(line: bytes) -> None:
    remembered: object = getattr(split, "__self__", None)
    assert isinstance(remembered, dict)
    with suppress(Refused):  # who goes on after AUTH was refused sends its password as a command
        split(line)
    assert line not in remembered


def test_lines_that_are_remembered_are_bounded() -> None:
    remembered: object = getattr(split, "__self__", None)
    assert isinstance(remembered, dict)
    for number in range(2 * commands.REMEMBERED):
        assert split(b"NOOP %d" % number) == ("NOOP", b"%d" % number)
    assert len(remembered) <= commands.REMEMBERED
