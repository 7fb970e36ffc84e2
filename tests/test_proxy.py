"""Headers of the PROXY protocol: every good one is read exactly to its end, every other one is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy_headers import BAD, GOOD, v2

from smtpd.proxy import V2_START, HeaderReader, Origin, ProxyError, crc32c

STARTS = [b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", V2_START, v2(0x21, 0x11)[:14]]


def read(octets: bytes, piece: int = 0) -> tuple[Origin, bytes]:
    """The origin, and what was not read."""
    reader = HeaderReader()
    while reader.origin is None:
        assert octets, "it wants more than there is"
        count = min(reader.wanted, piece or reader.wanted)
        reader.feed(octets[:count])
        octets = octets[count:]
    return reader.origin, octets


@pytest.mark.parametrize("piece", [0, 1, 7])
@pytest.mark.parametrize(("octets", "origin"), [pytest.param(*case, id=name) for name, case in GOOD.items()])
def test_header_is_read_to_its_last_octet_and_no_further(octets: bytes, origin: Origin, piece: int) -> None:
    behind = b"\x16\x03\x01 what follows is not ours \r\n"
    assert read(octets + behind, piece) == (origin, behind)
    if origin.source is not None:
        assert str(read(octets)[0].source) == str(origin.source), "an IPv4 address is one, however it is wrapped"


@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("octets", [pytest.param(octets, id=name) for name, octets in BAD.items()])
def test_anything_else_is_refused(octets: bytes, piece: int) -> None:
    with pytest.raises(ProxyError):
        read(octets, piece)


@pytest.mark.parametrize(("octets", "origin"), [pytest.param(*case, id=name) for name, case in GOOD.items()])
def test_half_a_header_says_nothing(octets: bytes, origin: Origin) -> None:
    reader = HeaderReader()
    for position in range(len(octets) - 1):
        reader.feed(octets[position : position + 1])
        assert reader.origin is None
        assert 1 <= reader.wanted <= len(octets) - position - 1
    reader.feed(octets[-1:])
    assert reader.origin == origin


@given(
    start=st.sampled_from(STARTS),
    rest=st.binary(max_size=300),
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_no_octets_break_it_and_cutting_them_makes_no_difference(start: bytes, rest: bytes, pieces: list[int]) -> None:
    def outcome(pieces: list[int]) -> object:
        reader, position, turn = HeaderReader(), 0, 0
        try:
            while reader.origin is None and position < len(octets):
                count = min(reader.wanted, pieces[turn % len(pieces)], len(octets) - position)
                reader.feed(octets[position : position + count])
                position, turn = position + count, turn + 1
        except ProxyError:
            return "refused"
        return reader.origin, position

    octets = start + rest
    assert outcome([1]) == outcome(pieces) == outcome([1 << 20])


def test_more_than_was_asked_for_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="16 octets where 1 to 15 are wanted"):
        HeaderReader().feed(b"PROXY TCP4 1.2.3")
    with pytest.raises(ValueError, match="0 octets"):
        HeaderReader().feed(b"")


def test_checksum_is_the_one_of_the_standard() -> None:
    """The answers that every implementation of CRC-32C gives."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
