"""Body hashes beside those of dkimpy, and what they cost at most."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256

import pytest
from dkim.canonicalization import ALGORITHMS
from dkim_house import EVE, JOE, house
from hypothesis import example, given
from hypothesis import strategies as st
from signer import LETTER

from filters.dkim import INLINE, Dkim
from filters.dkim_body import PIECE, SLICE, BodyDigest, body_pieces, digest_body
from filters.dkim_header import Canonicalisation, squeezed
from smtpd.addresses import Address
from smtpd.findings import DkimResults
from smtpd.memory import MemoryServer
from smtpd.model import Message, Transaction

bodies = st.lists(
    st.sampled_from([b"\r\n", b"\r\n\r\n", b" ", b"\t", b" \r\n", b"a", b"bc  d", b"\0", b"\xff", b"\t \t\r\n", b"."]),
    max_size=20,
).map(b"".join)
cuts = st.lists(st.integers(0, 40), max_size=6)
ways: st.SearchStrategy[Canonicalisation] = st.sampled_from(["simple", "relaxed"])


def cut(body: bytes, places: list[int]) -> Iterator[bytes]:
    start = 0
    for place in [*sorted(places), len(body)]:
        yield body[start:place]
        start = max(start, place)


def by_dkimpy(body: bytes, how: Canonicalisation) -> bytes:
    # A blank at the end of a last line without CRLF: dkimpy leaves it, RFC 6376 §3.4.4 (a) takes it away.
    found: bytes = ALGORITHMS[how.encode()].canonicalize_body(body.rstrip(b" \t") if how == "relaxed" else body)
    return found


@given(bodies, cuts, ways, st.none() | st.integers(0, 30))
@example(b"", [], "simple", None)
@example(b"", [], "relaxed", 0)
@example(b"a \r", [2], "relaxed", None)
def test_body_is_hashed_as_dkimpy_does_however_it_is_cut(
    body: bytes, places: list[int], how: Canonicalisation, length: int | None
) -> None:
    expected = by_dkimpy(body, how)
    digest = digest_body(cut(body, places), [(how, length)])[how, length]
    assert digest.digest == sha256(expected[:length]).digest()
    assert digest.beyond == (0 if length is None else len(expected) - length)


@given(bodies, st.lists(st.tuples(ways, st.none() | st.integers(0, 30)), min_size=1, max_size=6))
def test_several_hashes_of_one_pass_are_those_of_several_passes(
    body: bytes, wanted: list[tuple[Canonicalisation, int | None]]
) -> None:
    together = digest_body([body], wanted)
    assert together == {part: digest_body([body], [part])[part] for part in wanted}


@pytest.mark.parametrize("how", ["simple", "relaxed"])
@pytest.mark.parametrize("octets", [b" ", b"\r\n", b"\t", b" \r\n", b"x ", b"\r", b"\n", b"\r\n\t"])
def test_runs_longer_than_a_piece_are_hashed_as_one(octets: bytes, how: Canonicalisation) -> None:
    body = b"x" + octets * (3 * PIECE // len(octets)) + b"y\r\n"
    # dkimpy's own pattern for blanks at line ends would take minutes
    whole = re.sub(rb"[\t ]+", b" ", body).replace(b" \r\n", b"\r\n") if how == "relaxed" else body
    assert digest_body([body], [(how, None)])[how, None] == BodyDigest(sha256(whole).digest(), 0)


def test_rfc_6376_shows_how() -> None:
    body = b" C \r\nD \t E\r\n\r\n\r\n"  # §3.4.5
    assert digest_body([body], [("relaxed", None)])["relaxed", None].digest == sha256(b" C\r\nD E\r\n").digest()
    assert digest_body([body], [("simple", None)])["simple", None].digest == sha256(b" C \r\nD \t E\r\n").digest()


class Counted(bytes):
    """Counts how often it was rewritten."""

    rounds = 0

    def replace(self, *words: bytes) -> "Counted":  # type: ignore[override]
        Counted.rounds += 1
        return Counted(super().replace(*words))


@pytest.mark.parametrize("blanks", [b" " * PIECE, b"\t" * PIECE, b" x" * (PIECE // 2), b"  x" * (PIECE // 3)])
def test_blanks_of_a_piece_are_squeezed_in_few_rounds(blanks: bytes) -> None:
    Counted.rounds = 0
    squeezed(Counted(blanks))
    assert Counted.rounds <= 18


def test_body_begins_behind_the_header() -> None:
    for places in ([], [1], [5], [6], [7], [3, 9]):
        assert b"".join(body_pieces(cut(b"header" + b"body", places), 6)) == b"body"


# Big bodies


class Source:
    """Content that tells who reads it, and waits to be let."""

    def __init__(self, octets: bytes) -> None:
        self.octets = octets
        self.size = len(octets)
        self.readers: list[int] = []
        self.read = 0
        self.began = threading.Event()
        self.may_go_on = threading.Event()
        self.ended = threading.Event()
        self.may_go_on.set()
        self.when_read: Callable[[], int] = lambda: 0
        self.then = 0

    def chunks(self) -> Iterator[bytes]:
        self.readers.append(threading.get_ident())
        self.then = self.when_read()
        try:
            for start in range(0, self.size, 1000):
                self.read += 1
                yield self.octets[start : start + 1000]
                self.began.set()
                self.may_go_on.wait(30)
        finally:
            self.ended.set()

    def head(self) -> bytes:
        return self.octets[: self.octets.index(b"\r\n\r\n") + 4]

    def close(self) -> None:
        """Nothing is open."""


def big(size: int) -> Source:
    return Source(JOE.sign(LETTER + b"x" * size + b"\r\n"))


async def transaction(server: MemoryServer) -> Transaction:
    return Transaction(id="test", session=(await server.connect()).session, sender=Address.null)


async def ask(server: MemoryServer, source: Source, mail: Transaction | None = None) -> frozenset[str]:
    dkim = server.filters["dkim"]
    assert isinstance(dkim, Dkim)
    return (await dkim.on_message(mail or await transaction(server), Message(source))).labels


async def test_big_bodies_are_read_in_a_thread_and_small_ones_at_once() -> None:
    small, large = big(10), big(INLINE)
    async with house() as server:
        assert await ask(server, small) == await ask(server, large) == {"dkim-pass"}
    assert small.readers == [threading.get_ident()]
    assert len(large.readers) == 1
    assert large.readers != [threading.get_ident()]


async def test_one_big_body_is_read_at_a_time() -> None:
    first, second = big(INLINE), big(INLINE)
    first.may_go_on.clear()
    async with house() as server:
        both = asyncio.gather(ask(server, first), ask(server, second))
        await asyncio.to_thread(first.began.wait, 30)
        for _ in range(20):  # turns in which a second thread would begin
            await asyncio.to_thread(threading.get_ident)
        assert second.readers == []
        first.may_go_on.set()
        assert await both == [{"dkim-pass"}] * 2
    assert len(second.readers) == 1


async def test_big_body_waits_for_one_turn_of_each_other_and_not_for_the_end() -> None:
    first, second = big(3 * SLICE), big(INLINE)
    first.may_go_on.clear()
    async with house() as server:
        slow = asyncio.create_task(ask(server, first))
        await asyncio.to_thread(first.began.wait, 30)
        quick = asyncio.create_task(ask(server, second))
        second.when_read = lambda: first.read
        for _ in range(20):
            await asyncio.to_thread(threading.get_ident)
        first.may_go_on.set()
        assert await quick == await slow == {"dkim-pass"}
    assert second.then == -(-SLICE // 1000)
    assert first.read == -(-first.size // 1000)


async def test_body_is_not_read_for_a_signature_that_was_not_made_for_its_header() -> None:
    forged = big(INLINE)
    forged.octets = forged.octets.replace(b"Subject: ", b"Subject: Re: ")
    async with house() as server:
        assert await ask(server, forged) == {"dkim-fail"}
    assert forged.readers == []


async def test_signatures_have_results_when_there_is_no_time_to_read_the_body() -> None:
    forged = EVE.field(LETTER.replace(b"Hi", b"Ho"))
    source = Source(forged + JOE.sign(LETTER + b"x" * INLINE + b"\r\n"))
    source.may_go_on.clear()
    async with house({"timeout": 0.3}) as server:
        mail = await transaction(server)
        assert await ask(server, source, mail) == {"dkim-temperror"}
        source.may_go_on.set()
        await asyncio.to_thread(source.ended.wait, 30)
    found = mail.facts.get(DkimResults)
    assert found is not None
    assert [(one.result, one.reason, one.unread) for one in found.signatures] == [
        ("fail", "the signature does not match", False),
        ("temperror", "there was no time to read the body", True),
    ]


async def test_nobody_reads_on_when_the_client_has_gone() -> None:
    source = big(10 * INLINE)
    source.may_go_on.clear()
    async with house() as server:
        task = asyncio.create_task(ask(server, source))
        await asyncio.to_thread(source.began.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        source.may_go_on.set()
        await asyncio.to_thread(source.ended.wait, 30)
    assert source.read <= 3
