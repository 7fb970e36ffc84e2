"""What pretends to be ours goes; every other octet stays, however the content is cut."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd import replies
from smtpd.content import MAX_HEAD, Content
from smtpd.forgeries import MAX_FIELDS, WithoutFields, forged_fields, without_forged_fields
from smtpd.limits import ContentBudget
from smtpd.model import Message
from smtpd.replies import Refused

OURS = "mx.example.com"
FORGED = sorted((Path(__file__).parent / "vectors/forged").glob("*.eml"))
FIELD_START = re.compile(rb"(?<=\r\n)(?![ \t])")

forged = st.sampled_from([
    b"Authentication-Results: mx.example.com; spf=pass\r\n", b"X-Smtpd-Labels: junk\r\n", b"x-smtpd-a :\r\n b\r\n",
    b"authentication-RESULTS:\r\n (\r\n\t) mx.example.com\r\n\t; none\r\n", b"Authentication-Results:\r\n",
])  # fmt: skip
honest = st.sampled_from([
    b"Authentication-Results: other.example; spf=pass\r\n", b"Subject: Authentication-Results: x\r\n folded\r\n",
    b"ARC-Authentication-Results: i=1; mx.example.com; none\r\n", b"no field\r\n", b"X-Smtp: a\r\n", b": nameless\r\n",
    b"X: a\r\n X-Smtpd-Labels: b\r\n \r\n", b"Received: from a\r\n\tby b; c\r\n", b"\xff\0: a\r\n",
])  # fmt: skip
fields = st.lists(st.tuples(st.just(True), forged) | st.tuples(st.just(False), honest), max_size=12)
bodies = st.sampled_from(
    [b"", b"\r\n", b"\r\nHello.\r\n", b"\r\nX-Smtpd-Labels: a\r\n\r\nAuthentication-Results: b\r\n"]
)
cuts = st.lists(st.integers(1, 40), max_size=30)


def kept(message: bytes) -> bytes:
    """The message without every field that has the word "forged" in it, the slow way."""
    head, empty_line, body = message.partition(b"\r\n\r\n")
    lines = [line for line in FIELD_START.split(head + empty_line[:2]) if b"forged" not in line]
    return b"".join(lines) + empty_line[2:] + body


class Pieces:
    """A content that comes in given pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = list(pieces)
        self.size = sum(map(len, self.pieces))
        self.is_closed = False

    def chunks(self) -> list[bytes]:
        return self.pieces

    def head(self) -> bytes:
        content = Content(ContentBudget(0), in_memory=1 << 30)
        for piece in self.pieces:
            content.write(piece)
        return content.head()

    def close(self) -> None:
        self.is_closed = True


def cut(message: bytes, lengths: Iterable[int]) -> Iterator[bytes]:
    for length in lengths:
        yield message[:length]
        message = message[length:]
    yield message


def stored(message: bytes, *, in_memory: int = 1 << 30) -> Content:
    content = Content(ContentBudget(0), in_memory=in_memory)
    content.write(message)
    return content


def test_there_are_enough_forged_messages() -> None:
    assert len(FORGED) >= 30


@pytest.mark.parametrize("path", FORGED, ids=lambda path: path.stem)
def test_forged_fields_vanish_and_nothing_else(path: Path) -> None:
    message = path.read_bytes()
    expected = kept(message)
    assert expected != message
    assert b"".join(without_forged_fields(stored(message), OURS).chunks()) == expected
    assert b"".join(without_forged_fields(Pieces(cut(message, [7] * 400)), OURS).chunks()) == expected


@given(fields, bodies, cuts)
def test_exactly_what_pretends_to_be_ours_vanishes(
    lines: list[tuple[bool, bytes]], body: bytes, cuts: list[int]
) -> None:
    content = Pieces(cut(b"".join(line for _, line in lines) + body, cuts))
    view = without_forged_fields(content, OURS)
    expected = b"".join(line for is_forged, line in lines if not is_forged) + body
    assert b"".join(view.chunks()) == b"".join(view.chunks()) == expected
    assert view.size == len(expected)
    assert view.head() == stored(expected).head()


@given(st.lists(honest, max_size=12), bodies)
def test_content_without_forged_fields_is_not_even_wrapped(lines: list[bytes], body: bytes) -> None:
    content = stored(b"".join(lines) + body)
    assert without_forged_fields(content, OURS) is content


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8), cuts)
def test_any_spans_are_left_out_however_the_content_is_cut(octets: bytes, borders: list[int], cuts: list[int]) -> None:
    places = sorted({min(border, len(octets)) for border in borders})
    spans = list(zip(places[::2], places[1::2], strict=False))
    expected = bytes(octet for at, octet in enumerate(octets) if not any(start <= at < end for start, end in spans))
    view = WithoutFields(Pieces(cut(octets, cuts)), spans)
    assert b"".join(view.chunks()) == expected
    assert view.size == len(expected)


def test_pieces_behind_the_last_forged_field_are_not_copied() -> None:
    pieces = [b"X-Smtpd-Labels: a\r\nSubject: b\r\n\r\n", b"Hello.\r\n", b"Goodbye.\r\n"]
    view = without_forged_fields(Pieces(pieces), OURS)
    first, *others = view.chunks()
    assert first == b"Subject: b\r\n\r\n"
    assert all(other is piece for other, piece in zip(others, pieces[1:], strict=True))


def test_spilled_content_is_read_the_same_way() -> None:
    content = stored(b"Subject: a\r\nX-Smtpd-Labels: b\r\n\r\n" + b"Hello.\r\n" * 100_000, in_memory=1000)
    assert content.spilled
    view = without_forged_fields(content, OURS)
    assert b"".join(view.chunks()) == b"Subject: a\r\n\r\n" + b"Hello.\r\n" * 100_000
    content.close()


def test_message_of_such_a_content_has_no_forged_fields() -> None:
    message = Message(without_forged_fields(stored(b"A: 1\r\nX-Smtpd-Labels: b\r\nC: 2\r\n\r\nHello.\r\n"), OURS))
    message.added.append(b"Received: d\r\n")
    assert message.fields == [("a", b" 1"), ("c", b" 2")]
    assert bytes(message) == b"Received: d\r\nA: 1\r\nC: 2\r\n\r\nHello.\r\n"
    assert message.size == len(bytes(message))


def test_fields_that_are_left_out_are_known_one_by_one() -> None:
    lines = b"X-Smtpd-A: 1\r\nAuthentication-Results: mx.example.com;\r\n\tnone\r\nC: 2\r\nx-smtpd-b:\r\n\r\nHello.\r\n"
    view = without_forged_fields(stored(lines), OURS)
    assert isinstance(view, WithoutFields)
    assert [field.strip() for field in view.left_out] == [
        b"X-Smtpd-A: 1", b"Authentication-Results: mx.example.com;\r\n\tnone", b"x-smtpd-b:"
    ]  # fmt: skip


def test_a_piece_that_goes_whole_is_no_piece() -> None:
    assert list(WithoutFields(Pieces([b"ab", b"c"]), [(0, 2)]).chunks()) == [b"c"]


def test_closing_goes_through_to_the_content() -> None:
    content = Pieces([b"X-Smtpd-Labels: a\r\n\r\n"])
    without_forged_fields(content, OURS).close()
    assert content.is_closed


@pytest.mark.parametrize(
    ("head", "left"),
    [
        (b" Subject: a\r\nX-Smtpd-B: 2\r\nC: 3\r\n\r\n", b" Subject: a\r\nC: 3\r\n\r\n"),
        (b" \t\r\n X-Smtpd-A: 1\r\nB: 2\r\nX-Smtpd-C: 3\r\n\r\n", b"B: 2\r\n\r\n"),
        (b"Authentication-Results:\r\nother.example:\r\n\r\n", b"other.example:\r\n\r\n"),
        (b"Authentication-Results: (\r\nA: ) other.example; none\r\n\r\n", b"A: ) other.example; none\r\n\r\n"),
    ],
)
def test_a_field_begins_and_ends_with_its_own_lines(head: bytes, left: bytes) -> None:
    assert b"".join(without_forged_fields(stored(head + b"Hello.\r\n"), OURS).chunks()) == left + b"Hello.\r\n"


def test_neighbours_are_one_span() -> None:
    head = b"X-Smtpd-A: 1\r\nX-Smtpd-B: 2\r\nC: 3\r\nX-Smtpd-D: 4\r\n\r\n"
    assert forged_fields(head, OURS) == [(0, 28), (34, 48)]


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\r\n"])
def test_header_section_of_the_greatest_size_is_read_to_its_end(end: bytes) -> None:
    forged = b"\r\nX-Smtpd-Labels: b"
    head = b"A: " + b"a" * (MAX_HEAD - 3 - len(forged + end)) + forged + end
    body = b"Hello.\r\n" if end == b"\r\n\r\n" else b""
    view = without_forged_fields(stored(head + body), OURS)
    assert view.size == len(head + body) - len(forged)


@pytest.mark.parametrize("piece", [1 << 10, 1 << 18, MAX_HEAD - 1, MAX_HEAD, 1 << 22])
@pytest.mark.parametrize("end", [b"\r\nX-Smtpd-Labels: b\r\n\r\nHello.\r\n", b"\r\n", b""])
def test_nobody_hides_a_field_behind_a_long_header_section(end: bytes, piece: int) -> None:
    head = b"A: " + b"a" * (MAX_HEAD - 2) + end
    content = Pieces(head[start : start + piece] for start in range(0, len(head), piece))
    with pytest.raises(Refused) as refused:
        without_forged_fields(content, OURS)
    assert refused.value.reply.key == replies.HEADER_TOO_BIG.key


def test_behind_many_fields_all_are_in_doubt() -> None:
    honest, subject = b"Authentication-Results: other.example; none\r\n", b"Subject: a\r\n"
    head = honest * MAX_FIELDS + subject
    assert forged_fields(head + b"\r\n", OURS) == []
    assert forged_fields(head + honest + honest + b"\r\n", OURS) == [(len(head), len(head + honest + honest))]
    assert forged_fields(head + b"X-Smtpd-A: b\r\n" + b"\r\n", OURS) == [(len(head), len(head) + 14)]
    ours = b"X-Smtpd-A: b\r\n" * (MAX_FIELDS + 1)
    assert forged_fields(ours + honest + b"\r\n", OURS) == [(0, len(ours))]


def test_a_million_octets_of_forged_fields_vanish() -> None:
    head = b"Authentication-Results:;\r\n" * (MAX_HEAD // 26 - 10) + b"Subject: a\r\n\r\n"
    view = without_forged_fields(stored(head), OURS)
    assert view.head() == b"Subject: a\r\n\r\n"
