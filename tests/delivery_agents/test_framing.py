from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from delivery_agents.framing import MIN_BLOCK, dot_stuffed, in_blocks, in_one_chunk

pieces = st.lists(st.lists(st.sampled_from([b"\r\n", b".", b"a", b"\r\n."])).map(b"".join))


@given(pieces)
@example([b"a\r", b"\n", b".", b"\r\n"])
@example([b""])
@example([b".", b".\r\n", b"."])
def test_server_gets_the_content_back_out_of_data(content: Sequence[bytes]) -> None:
    sent = b"".join(dot_stuffed(content))
    *lines, end, rest = sent.split(b"\r\n")
    assert (end, rest) == (b".", b"")
    assert b"." not in lines  # RFC 5321 §4.5.2: nothing ends it early
    whole = b"".join(content)
    if whole and not whole.endswith(b"\r\n"):
        whole += b"\r\n"
    assert b"".join(line.removeprefix(b".") + b"\r\n" for line in lines) == whole


def test_line_end_is_added_only_where_it_is_missing() -> None:
    assert b"".join(dot_stuffed([b"a"])) == b"a\r\n.\r\n"
    assert b"".join(dot_stuffed([b"a\r\n"])) == b"a\r\n.\r\n"
    assert b"".join(dot_stuffed([b"a\r", b"\n"])) == b"a\r\n.\r\n"
    assert b"".join(dot_stuffed([])) == b".\r\n"


def test_chunk_is_sent_as_it_is() -> None:
    assert b"".join(in_one_chunk([b".a", b"\r\n."], 5)) == b"BDAT 5 LAST\r\n.a\r\n."
    assert b"".join(in_one_chunk([], 0)) == b"BDAT 0 LAST\r\n"


@pytest.mark.parametrize("size", [2, 4])
def test_chunk_of_another_size_does_not_end(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        list(in_one_chunk([b"a", b"bc"], size))


@given(st.lists(st.binary(max_size=10) | st.just(b"x" * (MIN_BLOCK // 2 + 1)) | st.just(b"y" * MIN_BLOCK), max_size=9))
def test_small_pieces_are_sent_together(content: Sequence[bytes]) -> None:
    blocks = list(in_blocks(content))
    assert b"".join(blocks) == b"".join(content)
    assert all(len(block) >= MIN_BLOCK for block in blocks[:-1])
    assert all(len(block) < 2 * MIN_BLOCK for block in blocks)
