"""Content that a filter has made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd import PASS, Filter, Message, Transaction, Verdict
from smtpd.content import MAX_HEAD, Content
from smtpd.limits import ContentBudget
from smtpd.memory import MemoryServer
from smtpd.octets import Octets

texts = st.lists(st.sampled_from([b"\r\n", b"a: b", b"\r\n\r\n", b" ", b"x"]), max_size=8).map(b"".join)


@given(texts)
@pytest.mark.parametrize("before", [b"", b"A: " + b"x" * (MAX_HEAD - 10), b"\r\n"])
def test_octets_are_read_like_what_was_received(before: bytes, text: bytes) -> None:
    received = Content(ContentBudget(0), in_memory=1 << 30)
    received.write(before + text)
    made = Octets(before + text)
    assert (made.size, made.head(), b"".join(made.chunks())) == (received.size, received.head(), before + text)


@pytest.mark.parametrize("text", [b"a\nb\r\n", b"a\rb\r\n", b"\n", b"a\r\r\n", b"\r\n.\n"])
def test_lone_line_ends_are_none_of_a_message(text: bytes) -> None:
    with pytest.raises(ValueError, match="lone"):
        Octets(text)


def test_closed_octets_are_never_taken_for_none() -> None:
    made = Octets(b"a\r\n")
    made.close()
    with pytest.raises(OSError, match="content is gone"):
        made.head()


async def test_filter_that_would_smuggle_leaves_the_message_as_it_was() -> None:
    class Smuggler(Filter):
        changes = True

        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            message.replace_content(b"Subject: x\r\n\r\n\n.\r\nMAIL FROM:<>\r\n")
            return PASS

    async with MemoryServer(filters={"smuggler": Smuggler}) as server:
        assert (await (await server.connect()).send("Subject: x\n\nHello\n"))[-1].startswith("250 ")
        server.forget("filter-failed")
        assert server.delivered[0].content.endswith(b"\r\nSubject: x\r\n\r\nHello\r\n")
