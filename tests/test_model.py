import pytest

from smtpd.content import Content
from smtpd.limits import ContentBudget
from smtpd.model import Message


def fields(head: bytes) -> list[tuple[str, bytes]]:
    content = Content(ContentBudget(0), in_memory=1 << 24)
    content.write(head)
    return Message(content).fields


def test_fields_keep_their_folding_and_end_at_the_empty_line() -> None:
    assert fields(b"A: x\r\n y\r\n \r\nb-C : z\r\n\r\nD: w\r\n") == [("a", b" x\r\n y\r\n "), ("b-c", b" z")]


@pytest.mark.parametrize("line", [b" leading: x", b"no colon", b": nameless", b"two words: x", "ü: x".encode()])
def test_line_that_is_no_field_has_no_name(line: bytes) -> None:
    assert fields(line + b"\r\nA: x\r\n\r\n") == [("", line), ("a", b" x")]


def test_header_section_may_end_with_the_message() -> None:
    assert fields(b"A: x\r\nB: y") == [("a", b" x"), ("b", b" y")]
    assert fields(b"") == fields(b"\r\nA: x\r\n") == []
