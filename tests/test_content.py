"""Content as it is received, beside a slow implementation that anybody can check by reading it."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd import content, replies
from smtpd.content import (
    MAX_HEAD,
    BareLineEnds,
    ChunkReceiver,
    Content,
    DataReceiver,
    Receiver,
    SkippedChunk,
)
from smtpd.limits import ContentBudget

MAX_SIZE = 60
MAX_LINE = 20

# What a parser could stumble over, often; anything at all, sometimes.
octets = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"\r\n.", b"\r\n.\r", b"\0", b"a", b"bc" * 6, b"\xff"])
    | st.integers(MAX_LINE - 3, MAX_LINE + 1).map(lambda length: b"x" * length)
    | st.binary(max_size=4),
    max_size=14,
).map(b"".join)
modes = st.sampled_from(["reject", "normalise"])
cuts = st.lists(st.integers(min_value=0, max_value=80), max_size=8)


def expected(raw: bytes, mode: BareLineEnds) -> str | bytes:
    """The key of the heaviest problem, or what is stored; `raw` has no dots in the way any more."""
    size, is_long, lone, stored = 0, False, False, b""
    for line in re.findall(rb"[^\r\n]*(?:\r\n|\r|\n|\Z)", raw):
        text = line.rstrip(b"\r\n")
        lone |= line != text and not line.endswith(b"\r\n")
        kept = text + b"\r\n" if line != text else text
        if mode == "reject":
            kept = line
        size += len(kept)
        is_long |= bool(kept) and len(text) + (2 if line != text else 1) > MAX_LINE
        stored += kept
    if lone and mode == "reject":
        return replies.BARE_LINE_END.key
    if size > MAX_SIZE:
        return replies.TOO_BIG.key
    return replies.TEXT_LINE_TOO_LONG.key if is_long else stored


def expected_data(stream: bytes, mode: BareLineEnds) -> tuple[int, str | bytes]:
    """Where the data ends (-1: not in this stream), and what becomes of it, line by line."""
    end = (b"\r\n" + stream).find(b"\r\n.\r\n")
    if end < 0:
        return -1, b""
    lines = stream[:end].split(b"\r\n")
    return end + 3, expected(b"\r\n".join(undotted(line.removeprefix(b".")) for line in lines), mode)


def undotted(line: bytes) -> bytes:
    """A line that may hold lone LFs: of two dots behind one, one goes."""
    first, *others = line.split(b"\n")
    return b"\n".join([first, *(other[1:] if other.startswith(b"..") else other for other in others)])


def new[R: Receiver](kind: type[R], mode: BareLineEnds) -> R:
    content = Content(ContentBudget(0), in_memory=1 << 20)
    return kind(content, max_size=MAX_SIZE, max_line=MAX_LINE, bare=mode)


def result(receiver: Receiver) -> str | bytes:
    problem = receiver.finish()
    return problem.key if problem is not None else b"".join(receiver.content.chunks())


def cut(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    start = 0
    for place in sorted({place for place in places if 0 < place < len(data)}):
        yield data[start:place]
        start = place
    if data[start:]:
        yield data[start:]


@given(stream=octets, mode=modes, places=cuts)
@example(stream=b"one\rtwo\nthree\r\n.\r\n", mode="reject", places=[])
@example(stream=b"\r\r\n.\r\n", mode="normalise", places=[1])
@example(stream=b"\n..a\n.b\n...\n\r..\n.", mode="normalise", places=[1, 2, 3])
@example(stream=b"x\n..\r\n..\n..\r\n.\n..", mode="normalise", places=[])
@example(stream=b"x\n\r\n..y", mode="normalise", places=[2, 3])
@example(stream=b".\r\n", mode="reject", places=[])
@example(stream=b".\r\n", mode="reject", places=[1, 2])
@example(stream=b"a\r\n" + b"x" * (MAX_LINE - 1), mode="reject", places=[])
@example(stream=b"a\r\n" + b"x" * (MAX_LINE - 2), mode="reject", places=[9])
@example(stream=b"..\r\n\r\n..x\r\n.\r\n", mode="reject", places=[1, 2, 3])
def test_data_is_the_same_however_it_is_cut(stream: bytes, mode: BareLineEnds, places: list[int]) -> None:
    compare_data(stream, mode, places)


@given(stream=octets, mode=modes, places=cuts, few=st.integers(1, 3))
@example(stream=b"..\r\n..\r\n.x", mode="reject", places=[], few=1)
def test_many_dots_are_taken_away_like_few(stream: bytes, mode: BareLineEnds, places: list[int], few: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "_FEW_DOTS", few)
        patch.setattr(content, "_DOTS_APART", 1 << 30)
        compare_data(stream, mode, places)


@given(stream=octets, mode=modes, places=cuts, apart=st.integers(1, 20))
@example(stream=b"a.b\r\n..\r\n.c", mode="reject", places=[], apart=1)
@example(stream=b"a.b\r\n..\r\n.c", mode="reject", places=[], apart=15)
def test_dots_looked_for_one_at_a_time_are_the_same(
    stream: bytes, mode: BareLineEnds, places: list[int], apart: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "_DOTS_APART", apart)
        compare_data(stream, mode, places)


def compare_data(stream: bytes, mode: BareLineEnds, places: list[int]) -> None:
    stream += b"\r\n.\r\nMAIL"
    end, wanted = expected_data(stream, mode)
    receiver = new(DataReceiver, mode)
    position = 0
    for piece in cut(stream, places):
        found = receiver.feed(piece)
        if found >= 0:
            assert position + found == end
            break
        position += len(piece)
    assert receiver.complete
    assert result(receiver) == wanted


@given(
    lines=st.lists(st.sampled_from([b".", b"..", b"", b".x", b"x", b"x.", b". "]), min_size=55, max_size=80),
    places=st.lists(st.integers(0, 300), max_size=4),
)
def test_many_dots_are_the_same_however_they_are_cut(lines: list[bytes], places: list[int]) -> None:
    wanted = b"".join(line + b"\r\n" for line in lines)
    stuffed = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)
    receiver = DataReceiver(Content(ContentBudget(0), in_memory=1 << 20), max_size=0, max_line=100, bare="reject")
    *pieces, last = cut(stuffed + b".\r\nMAIL", [place for place in places if place < len(stuffed)])
    assert all(receiver.feed(piece) < 0 for piece in pieces)
    assert receiver.feed(last) == len(last) - len(b"MAIL")
    assert result(receiver) == wanted


@given(
    lines=st.lists(st.sampled_from([b"a" * 70, b"word. " * 9, b".dot", b""]), min_size=1, max_size=8),
    size=st.integers(10_000, 70_000),
    places=st.lists(st.integers(0, 70_000), max_size=3),
)
@example(lines=[b"a" * 70], size=70_000, places=[])
@example(lines=[b"a" * 70], size=70_000, places=[20_000])
@example(lines=[*[b"a" * 70] * 300, b".dot"], size=30_000, places=[])
@example(lines=[*[b"word. " * 9] * 600, b".dot"], size=40_000, places=[])
def test_long_content_is_the_same_however_many_dots_are_in_it(lines: list[bytes], size: int, places: list[int]) -> None:
    """As long as it takes for every way of looking for dots."""
    wanted = b"".join(line + b"\r\n" for line in lines)
    wanted *= size // len(wanted) + 1
    receiver = DataReceiver(Content(ContentBudget(0), in_memory=1 << 20), max_size=0, max_line=100, bare="reject")
    stuffed = re.sub(rb"(?m)^\.", b"..", wanted)
    *pieces, last = cut(stuffed + b".\r\nMAIL", [place for place in places if place < len(stuffed)])
    assert all(receiver.feed(piece) < 0 for piece in pieces)
    assert receiver.feed(last) == len(last) - len(b"MAIL")
    assert result(receiver) == wanted


@given(stream=octets, mode=modes, before=st.binary(max_size=5))
@example(stream=b"..x", mode="reject", before=b"ab")
@example(stream=b".x", mode="reject", before=b"\r\n")
@example(stream=b"x", mode="reject", before=b"\r\n.\r\n")
def test_data_may_start_inside_a_buffer(stream: bytes, mode: BareLineEnds, before: bytes) -> None:
    stream += b"\r\n.\r\n"
    end, wanted = expected_data(stream, mode)
    receiver = new(DataReceiver, mode)
    assert receiver.feed(before + stream, len(before)) == len(before) + end
    assert result(receiver) == wanted


@given(chunks=st.lists(octets, max_size=4), mode=modes, places=cuts, behind=octets)
@example(chunks=[b"a\r", b"\nb"], mode="reject", places=[], behind=b"")
@example(chunks=[b"\r\n.\r\n", b".\r\n"], mode="reject", places=[2], behind=b"")
@example(chunks=[b"x" * MAX_LINE], mode="reject", places=[], behind=b"")
@example(chunks=[b"x" * (MAX_LINE - 1)], mode="reject", places=[3], behind=b"")
def test_chunks_are_the_same_however_they_are_cut(
    chunks: list[bytes], mode: BareLineEnds, places: list[int], behind: bytes
) -> None:
    receiver = new(ChunkReceiver, mode)
    for chunk in chunks:
        receiver.expect(len(chunk))
        rest = len(chunk)
        for piece in cut(chunk + behind, places):
            if receiver.complete:
                break
            found = receiver.feed(piece)
            assert found == (-1 if len(piece) < rest else rest)
            rest -= len(piece)
        assert receiver.complete
    assert result(receiver) == expected(b"".join(chunks), mode)


@given(chunk=octets)
def test_a_skipped_chunk_is_counted_and_forgotten(chunk: bytes) -> None:
    receiver = new(SkippedChunk, "reject")
    receiver.expect(len(chunk))
    if chunk:
        assert receiver.feed(b"xx" + chunk + b"NOOP", 2) == 2 + len(chunk)
    assert receiver.complete
    assert receiver.content.size == 0


@given(stream=octets)
def test_bdat_gives_what_data_gives(stream: bytes) -> None:
    """Filters and agents cannot see how a message came."""
    text = re.sub(rb"\r\n|\r|\n", b"\r\n", stream) + b"\r\n"
    by_data, by_bdat = new(DataReceiver, "reject"), new(ChunkReceiver, "reject")
    by_data.feed(re.sub(rb"(?m)^\.", b"..", text) + b".\r\n")
    by_bdat.expect(len(text))
    by_bdat.feed(text)
    assert result(by_data) == result(by_bdat)


def test_what_is_far_beyond_the_limit_is_hopeless() -> None:
    receiver = new(DataReceiver, "reject")
    receiver.feed(b"x" * (1 << 20))
    assert not receiver.hopeless
    receiver.feed(b"x" * (MAX_SIZE * 4 + 10))
    assert receiver.hopeless


def test_skipped_chunk_far_beyond_the_limit_is_hopeless() -> None:
    receiver = new(SkippedChunk, "reject")
    receiver.expect(1 << 22)
    receiver.feed(b"x" * (1 << 20))
    assert not receiver.hopeless
    receiver.feed(b"x" * (MAX_SIZE * 4 + 1))
    assert receiver.hopeless


def test_nothing_is_hopeless_without_a_limit() -> None:
    receiver = DataReceiver(Content(ContentBudget(0), in_memory=10), max_size=0, max_line=10, bare="reject")
    for _ in range(3):
        receiver.feed(b"x" * (1 << 20))
    assert receiver.problem is not None
    assert not receiver.hopeless


def test_each_octet_counts_once() -> None:
    receiver = new(ChunkReceiver, "reject")
    receiver.expect(5)
    for piece in (b"a\r", b"\nb\r"):
        receiver.feed(piece)
    assert receiver.octets == 5


def test_lone_line_end_is_known_at_once_whatever_was_wrong_before() -> None:
    receiver = new(DataReceiver, "reject")
    receiver.feed(b"x" * (MAX_SIZE + 1))
    assert receiver.problem is not None
    assert not receiver.found_bare_line_end
    receiver.feed(b"a\nb")
    assert receiver.found_bare_line_end
    receiver.feed(b"x" * 100)
    assert receiver.problem is replies.BARE_LINE_END


def test_nothing_is_kept_of_what_is_refused() -> None:
    budget = ContentBudget(0)
    content = Content(budget, in_memory=1 << 20)
    receiver = DataReceiver(content, max_size=10, max_line=1000, bare="reject")
    receiver.feed(b"12345")
    assert budget.used == 5
    receiver.feed(b"6789012345")
    assert budget.used == 0
    assert receiver.problem is not None


@pytest.mark.parametrize("budget", [ContentBudget(0), ContentBudget(5)], ids=["too big", "too much for all"])
def test_content_spills_to_a_file_and_reads_back(budget: ContentBudget, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    content = Content(budget, in_memory=20 if not budget.limit else 1 << 20, spool=str(tmp_path))
    pieces = [b"%06d" % number for number in range(10)]
    for piece in pieces:
        content.write(piece)
    assert content.spilled
    assert budget.used == 0
    assert b"".join(content.chunks()) == b"".join(content.chunks()) == b"".join(pieces)
    assert content.size == 60
    assert not list(tmp_path.iterdir()), "the file has no name, so nothing is left behind by a crash"
    content.close()
    content.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_is_given_back_when_the_spool_fails(tmp_path: Path) -> None:
    budget = ContentBudget(0)
    content = Content(budget, in_memory=10, spool=str(tmp_path / "gone"))
    content.write(b"12345")
    with pytest.raises(OSError, match="gone"):
        content.write(b"678901")
    content.close()
    assert budget.used == 0


def test_content_of_exactly_the_threshold_stays_in_memory() -> None:
    budget = ContentBudget(0)
    content = Content(budget, in_memory=10)
    content.write(b"1234567890")
    assert not content.spilled
    assert budget.used == 10
    content.close()
    assert budget.used == 0


def test_a_full_spool_is_no_bug_but_no_space(tmp_path: Path) -> None:
    content = Content(ContentBudget(0), in_memory=4, spool=str(tmp_path / "gone"))
    receiver = DataReceiver(content, max_size=0, max_line=1000, bare="reject")
    receiver.feed(b"more than four\r\n.\r\n")
    assert receiver.finish() == replies.NO_SPACE


@pytest.mark.parametrize(
    ("text", "head"),
    [
        (b"a: b\r\n\r\nbody\r\n\r\n", b"a: b\r\n\r\n"),
        (b"\r\nbody\r\n\r\n", b"\r\n"),
        (b"a: b\r\nc: d\r\n", b"a: b\r\nc: d\r\n"),
        (b"", b""),
        (b"x" * (MAX_HEAD + 10), b"x" * MAX_HEAD),
        (b"a: b\r\n\r\n" + b"x" * 600_000, b"a: b\r\n\r\n"),
        (b"x" * 300_000 + b"\r\n\r\n" + b"x" * 600_000, b"x" * 300_000 + b"\r\n\r\n"),
        (b"\r\n" + b"x" * 300_000 + b"\r\n\r\n", b"\r\n"),
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("piece", [1 << 22, 3])
def test_the_head_ends_with_the_first_empty_line(text: bytes, head: bytes, piece: int) -> None:
    content = Content(ContentBudget(0), in_memory=1 << 30)
    if len(text) > 100:
        piece = 1 << 18
    for start in range(0, len(text), piece):
        content.write(text[start : start + piece])
    assert content.head() == head


@pytest.mark.parametrize("piece", [1 << 16, MAX_HEAD - 2, MAX_HEAD + 2, 1 << 21])
def test_a_head_is_never_longer_than_the_limit(piece: int) -> None:
    content = Content(ContentBudget(0), in_memory=1 << 30)
    text = b"A: " + b"x" * (MAX_HEAD - 5) + b"\r\n\r\nbody\r\n"
    for start in range(0, len(text), piece):
        content.write(text[start : start + piece])
    assert content.head() == text[:MAX_HEAD]


@pytest.mark.parametrize("in_memory", [1 << 20, 0])
def test_closed_content_is_never_taken_for_an_empty_one(in_memory: int) -> None:
    content = Content(ContentBudget(0), in_memory=in_memory)
    content.write(b"a: b\r\n\r\nbody\r\n")
    content.close()
    with pytest.raises(OSError, match="content is gone"):
        b"".join(content.chunks())
    with pytest.raises(OSError, match="content is gone"):
        content.head()
