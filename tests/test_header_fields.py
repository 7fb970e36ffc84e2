"""Counted and found is what `Message.fields` has, whatever the section is like."""

from hypothesis import example, given
from hypothesis import strategies as st

from smtpd.content import Content
from smtpd.header_fields import all_values_of, count_fields, count_named, values_of
from smtpd.limits import ContentBudget
from smtpd.model import Message

PIECES = ["From", "fRoM", "To", "from", "x", "From: a", ":", " ", "\t", "\0", "\r\n", "\r\n ", "\r\n\t", "\r\n\r\n"]
sections = st.lists(st.sampled_from(PIECES), max_size=30).map(lambda pieces: "".join(pieces).encode())


def message(octets: bytes) -> Message:
    content = Content(ContentBudget(1 << 20), in_memory=1 << 20)
    content.write(octets)
    return Message(content)


@given(sections)
@example(b"")
@example(b"\r\n")
@example(b"\r\n\r\n")
@example(b" \r\n\r\n")
@example(b"From: a")
@example(b"From: a\r\n")
@example(b"From: a\r\n\r\nFrom: b\r\n")
@example(b"From \t: a\r\n b\r\n\tc\r\nX-From: d\r\nfrom:\r\n\r\n")
@example(b"From: a\r\n ")
def test_what_is_found_is_what_splitting_finds(octets: bytes) -> None:
    whole = message(octets)
    head = whole.content.head()
    assert count_fields(head) == len(whole.fields)
    assert list(values_of(head, "from")) == all_values_of(head, "from") == whole.field_values("from")
    assert count_named(head, "from") == len(whole.field_values("from"))


def test_values_come_one_at_a_time() -> None:
    assert next(values_of(b"From: a\r\n" * 3, "from")) == b" a"
