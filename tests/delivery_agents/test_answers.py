import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery_agents.answers import MAX_LINES, MAX_OCTETS, Answer, AnswerReader, as_reply, check_verdict
from delivery_agents.failures import Nonsense


def read(octets: bytes) -> list[Answer]:
    return AnswerReader().feed(octets)


def test_answer_is_taken_apart() -> None:
    (answer,) = read(b"550 5.1.1 <x@y> User doesn't exist\r\n")
    assert (answer.code, answer.status, answer.text) == (550, "5.1.1", "<x@y> User doesn't exist")


@pytest.mark.parametrize("line", [b"250\r\n", b"250 \r\n", b"250 2.0.0\r\n", b"250\n"])
def test_answer_needs_no_text(line: bytes) -> None:
    (answer,) = read(line)
    assert (answer.code, answer.text) == (250, "")


def test_lines_of_one_answer_become_one_text() -> None:
    (answer,) = read(b"452-4.2.2 The mailbox\r\n452-4.2.2 is\r\n452 4.2.2 full\r\n")
    assert (answer.code, answer.status, answer.text) == (452, "4.2.2", "The mailbox is full")
    assert answer.lines == ("4.2.2 The mailbox", "4.2.2 is", "4.2.2 full")


@pytest.mark.parametrize(
    "octets",
    [
        b"hello\r\n", b"\r\n", b"25\r\n", b"2500 x\r\n", b"199 x\r\n", b"650 x\r\n", b"250x\r\n", b" 250 x\r\n",
        b"\x16\x03\x01\r\n", b"25\xb2 x\r\n", b"250-a\r\n550 b\r\n",
    ],
)  # fmt: skip
def test_what_is_no_answer_is_nonsense(octets: bytes) -> None:
    with pytest.raises(Nonsense):
        read(octets)


@pytest.mark.parametrize(
    "octets",
    [
        b"2" * (MAX_OCTETS + 1),
        b"250 " + b"x" * MAX_OCTETS + b"\r\n",
        b"250-x\r\n" * (MAX_LINES + 1),
        b"250-" + b"x" * 500 + b"\r\n" + b"250-" + b"x" * (MAX_OCTETS - 500),
        (b"250-" + b"x" * 900 + b"\r\n") * 10,
    ],
)
@pytest.mark.parametrize("piece", [1, 4096, 1 << 20])
def test_endless_answer_is_nonsense(octets: bytes, piece: int) -> None:
    reader = AnswerReader()
    pieces = [octets[start : start + piece] for start in range(0, len(octets), piece)]
    with pytest.raises(Nonsense):
        _ = [reader.feed(each) for each in pieces]


def test_as_many_short_answers_as_one_likes_are_read() -> None:
    assert len(read(b"250 2.1.5 Ok\r\n" * 2000)) == 2000


@given(st.lists(st.sampled_from([b"250 2.0.0 Ok\r\n", b"550-5.1.1 a\r\n550 b\r\n", b"354\r\n"])), st.integers(1, 9))
def test_answers_are_the_same_however_they_are_cut(answers: list[bytes], piece: int) -> None:
    octets, reader = b"".join(answers), AnswerReader()
    cut = [answer for start in range(0, len(octets), piece) for answer in reader.feed(octets[start : start + piece])]
    assert cut == read(octets)
    assert len(cut) == len(answers)
    assert reader.is_empty


@given(st.binary())
def test_any_octets_are_answers_or_nonsense(octets: bytes) -> None:
    try:
        answers = read(octets)
    except Nonsense:
        return
    assert all(200 <= answer.code < 600 for answer in answers)


@pytest.mark.parametrize(
    ("octets", "heard"),
    [
        (b"550 5.1.1 User doesn't exist\r\n", "550 5.1.1 User doesn't exist"),
        (b"552-5.2.2 Over\r\n552 5.2.2 quota\r\n", "552 5.2.2 Over quota"),
        (b"452 4.2.2 Mailbox full\r\n", "452 4.2.2 Mailbox full"),
        (b"250 2.0.0 <x@y> id Saved\r\n", "250 2.0.0 <x@y> id Saved"),
        (b"550 No such user\r\n", "550 5.0.0 No such user"),
        (b"450 5.2.1 confused\r\n", "450 4.0.0 confused"),
        (b"421 4.3.2 Shutting down\r\n", "451 4.3.2 Shutting down"),
        (b"421 4.7.0 Go away\r\n", "451 4.3.2 Go away"),
        (b"550 5.1.1 caf\xc3\xa9 \x1b[31m\xff {address}\r\n", "550 5.1.1 caf\\xe9 ?[31m\\xff {address}"),
    ],
)
def test_client_hears_what_the_store_said(octets: bytes, heard: str) -> None:
    (answer,) = read(octets)
    reply = as_reply(answer)
    assert reply.encode() == f"{heard}\r\n".encode()
    assert reply.key == "store-said"


def test_text_of_the_store_has_a_limit() -> None:
    (answer,) = read(b"550 5.1.1 " + b"x" * 5000 + b"\r\n")
    assert len(as_reply(answer).encode()) < 250


@pytest.mark.parametrize("code", [250, 251, 252, 421, 450, 452, 501, 550, 554])
def test_verdict_is_taken(code: int) -> None:
    (answer,) = read(b"%d x\r\n" % code)
    assert check_verdict(answer, "RCPT") is answer


@pytest.mark.parametrize("code", [220, 221, 300, 354, 500, 502, 503, 504, 530, 535, 555])
def test_what_is_about_our_command_is_no_verdict(code: int) -> None:
    (answer,) = read(b"%d x\r\n" % code)
    with pytest.raises(Nonsense, match="RCPT was answered with"):
        check_verdict(answer, "RCPT")
