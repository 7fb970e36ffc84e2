"""Replies: both codes agree, nothing from outside gets out unescaped, no line is too long."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd import replies
from smtpd.replies import MAX_LINE, Reply

# RFC 5321 §4.2, RFC 3463 §2, RFC 2034 §4: three digits, an enhanced code of the same class, printable ASCII.
LINE = re.compile(r"([245])\d\d[ -]\1\.\d{1,3}\.\d{1,3} [ -~]+|3\d\d[ -][ -~]*")
# RFC 2034 §4: greeting, EHLO and HELO have none.
WITHOUT_STATUS = {"greeting", "lmtp-greeting", "ehlo", "helo", "no-service"}

every_reply = pytest.mark.parametrize("reply", [pytest.param(r, id=n) for n, r in replies.all_replies().items()])
placeholder = re.compile(r"\{(\w+)\}")
anything = st.text(st.characters(codec="utf-8"), max_size=600) | st.binary(max_size=50).map(str)


def wire(reply: Reply, trace: str = "") -> list[str]:
    text = reply.encode(trace).decode("ascii")
    assert text.endswith("\r\n")
    return text.split("\r\n")[:-1]


@every_reply
def test_both_codes_agree_on_every_line(reply: Reply) -> None:
    for line in wire(reply):
        assert reply.key in WITHOUT_STATUS or LINE.fullmatch(line), line
        assert len(line) + 2 <= MAX_LINE
    has_none = reply.key in WITHOUT_STATUS or 300 <= reply.code < 400
    assert bool(reply.status) != has_none


@given(
    reply=st.sampled_from(list(replies.all_replies().values())),
    value=anything,
    trace=st.sampled_from(["", "01M7XZ8HNZNCQ54W", "spf 01M7XZ8HNZNCQ54W"]),
)
def test_no_text_from_outside_breaks_a_reply(reply: Reply, value: str, trace: str) -> None:
    filled = reply(**dict.fromkeys(placeholder.findall(reply.text), value))
    lines = wire(filled, trace)
    assert len(lines) == reply.text.count("\n") + 1
    for number, line in enumerate(lines):
        assert re.fullmatch(r"[ -~]*", line)
        assert len(line) + 2 <= MAX_LINE
        assert line[:3] == str(reply.code)
        assert line[3] == (" " if number == len(lines) - 1 else "-")
    assert not trace or lines[-1].endswith(f" [{trace}]")


@given(text=anything, trace=st.sampled_from(["", "spf 01ARZ3NDEKTSV4RR"]))
def test_a_reply_that_a_plugin_made_of_text_from_outside_is_sound(text: str, trace: str) -> None:
    """What a server behind an agent said, or what a filter heard from the client."""
    said = Reply("own", 550, "5.7.1", text).encode(trace).decode("ascii")
    assert said.endswith("\r\n")
    for line in said.removesuffix("\r\n").split("\r\n"):
        assert re.fullmatch(r"550[ -]5\.7\.1 [ -~]*", line)
        assert len(line) + 2 <= MAX_LINE


@pytest.mark.parametrize("code", [0, 100, 199, 600, 700, -550, "550", None, 550.0])
def test_code_that_is_none_cannot_be_written(code: Any) -> None:
    with pytest.raises(ValueError, match="is no code of a reply"):
        Reply("x", code, "", "Hello")


def test_codes_that_disagree_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="disagree"):
        Reply("wrong", 550, "4.0.0", "x")


def test_keys_are_different() -> None:
    known = [reply.key for reply in replies.all_replies().values()]
    assert len(known) == len(set(known))


def test_a_value_that_looks_like_a_placeholder_stays_text() -> None:
    reply = Reply("x", 550, "5.0.0", "{one} and {two}")(one="{two}", two="2")
    assert reply.message == "{two} and 2"


def test_a_placeholder_without_value_stays() -> None:
    assert replies.NO_SUCH_USER.message == "No mailbox here by the name {address}"


def test_filling_keeps_the_constant() -> None:
    replies.NO_SUCH_USER(address="a@b.test")
    assert b"{address}" in replies.NO_SUCH_USER.plain


def test_the_operators_text_takes_the_place_of_ours() -> None:
    reply = replies.NO_SUCH_USER(address="a@b.test")
    assert reply.encode("ID", {"no-such-user": "Unknown: {address}"}) == b"550 5.1.1 Unknown: a@b.test [ID]\r\n"
    assert reply.encode("ID", {"other": "x"}) == reply.encode("ID")


def test_every_line_carries_the_code_and_the_last_one_the_trace() -> None:
    reply = Reply("x", 550, "5.7.1", "one\ntwo")
    assert reply.encode("ID") == b"550-5.7.1 one\r\n550 5.7.1 two [ID]\r\n"


def test_long_texts_lose_their_end_and_not_their_trace() -> None:
    (line,) = wire(Reply("x", 550, "5.7.1", "a" * 2000), "ID")
    assert line.startswith("550 5.7.1 aaa")
    assert line.endswith("aaa [ID]")
    assert len(line) + 2 == MAX_LINE


@pytest.mark.parametrize(
    ("code", "positive", "temporary", "permanent", "syntax"),
    [(250, True, False, False, False), (354, True, False, False, False), (451, False, True, False, False),
     (550, False, False, True, False), (503, False, False, True, True), (555, False, False, True, True)],
)  # fmt: skip
def test_classes_of_codes(code: int, positive: bool, temporary: bool, permanent: bool, syntax: bool) -> None:
    reply = Reply("x", code, "", "text")
    found = reply.is_positive, reply.is_temporary, reply.is_permanent, reply.is_syntax_error
    assert found == (positive, temporary, permanent, syntax)


def test_ehlo_has_no_enhanced_codes() -> None:
    assert replies.ehlo("mx.test\nPIPELINING\nSIZE 100") == b"250-mx.test\r\n250-PIPELINING\r\n250 SIZE 100\r\n"


def test_a_long_value_is_cut_and_says_so() -> None:
    assert replies.clean("a" * 200) == "a" * 200
    assert replies.clean("a" * 201) == "a" * 197 + "..."


def test_every_reply_is_said_somewhere() -> None:
    top = Path(__file__).resolve().parent.parent
    files = [path for folder in ("smtpd", "filters", "delivery_agents") for path in (top / folder).rglob("*.py")]
    said = "\n".join(path.read_text(encoding="utf-8") for path in files if path.name != "replies.py")
    assert [name for name in replies.all_replies() if not re.search(rf"\b{name}\b", said)] == []
