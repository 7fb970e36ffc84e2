"""Everything a client could possibly send, at the whole conversation: it answers by the rules, and never breaks.

`task fuzz` runs it much longer. A failing example is kept by adding it with `@example`.
"""

import asyncio
import re

from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from stage import ENVELOPE, Stage

from smtpd.channel import HIGH_WATER
from smtpd.memory import Talk

# RFC 5321 §4.2; RFC 2034 §4: an enhanced code of the same class on every line, but none on 3xx, the greeting and
# the reply to EHLO and HELO, which start with our name.
REPLY = re.compile(
    rb"([245])\d\d[ -]\1\.\d{1,3}\.\d{1,3} [ -~]*|3\d\d [ -~]*|(?:220|250)[ -]mx\.test[ -~]*"
    rb"|250[ -](?:PIPELINING|SIZE \d+|8BITMIME|ENHANCEDSTATUSCODES|CHUNKING|SMTPUTF8|PRDR|STARTTLS)"
    rb"|250[ -](?:LIMITS [A-Z0-9= ]+|AUTH [A-Z0-9 -]+)"
)
CODES = frozenset((
    214, 220, 221, 235, 250, 252, 334, 354, 421, 450, 451, 452, 454, 500, 501, 502, 503, 504, 530, 535, 538, 550,
    552, 553, 554, 555,
))  # fmt: skip
LIMITS = {"errors_per_session": 0, "messages_per_session": 0, "content_in_memory": 200, "memory_for_content": 1000}
TABLES = {"max_message_size": 500, "max_recipients": 2, "max_text_line": 1000, "limits": LIMITS}

line_ends = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"\r\r\n", b""])
junk = st.binary(max_size=30)
words = st.sampled_from([
    b"EHLO client.test", b"HELO client.test", b"EHLO", b"MAIL FROM:<joe@client.test>", b"MAIL FROM:<> SIZE=10",
    b"MAIL FROM:<joe@client.test> SIZE=501", b"MAIL FROM:<j\xc3\xb6@client.test> SMTPUTF8",
    b"RCPT TO:<ann@example.test>", b"DATA\r\nFrom: a@b.test\r\n\r\nHi\r\n.", b"BDAT 3 LAST\r\nx\r\nNOOP",
    b"RCPT TO:<Postmaster>", b"RCPT TO:<bob@elsewhere.test>", b"RCPT TO:<\"a\\\"b\"@example.test>", b"DATA", b".",
    b"BDAT 0 LAST", b"BDAT 3 LAST", b"BDAT 5", b"BDAT 600", b"BDAT x", b"RSET", b"NOOP", b"QUIT", b"VRFY x", b"HELP",
    b"EXPN x", b"STARTTLS", b"AUTH PLAIN", b"AUTH LOGIN AAAA", b"*", b"", b"From: a@b.test", b"..x", b"GET / HTTP/1.1",
    b"x" * 600, b"NOOP " + b"x" * 1200,
])  # fmt: skip
line = st.tuples(words | junk | st.tuples(words, junk).map(b" ".join), line_ends).map(b"".join)
polite_message = st.sampled_from([
    ENVELOPE + b"DATA\r\nFrom: a@b.test\r\n.\r\n",
    ENVELOPE + b"BDAT 6\r\nQUIT\r\nBDAT 3 LAST\r\n.\r\n",
])  # fmt: skip
streams = st.lists(line | polite_message, max_size=25).map(b"".join)
polite = st.just(ENVELOPE)
starts = st.sampled_from([b"", b"EHLO client.test\r\n"]) | polite | polite


@given(
    start=starts, stream=streams, piece=st.sampled_from([0, 1, 2, 7, 64]), lone=st.sampled_from(["reject", "normalise"])
)
@settings(suppress_health_check=[HealthCheck.too_slow])
@example(start=b"", stream=b"BDAT 5\r\nQUIT\r\nNOOP\r\n", piece=0, lone="reject")
def test_every_answer_follows_the_rules(start: bytes, stream: bytes, piece: int, lone: str) -> None:
    asyncio.run(converse(start + stream, piece, lone))


async def converse(octets: bytes, piece: int, lone: str) -> None:
    async with Stage(listener={"tls": "starttls", "bare_line_ends": lone}, tables=TABLES) as server:
        talk = server.talk()
        said = await talk.hear()
        step = piece or max(len(octets), 1)
        for begin in range(0, len(octets), step):
            said += await talk.say(octets[begin : begin + step])
            assert len(unread(talk)) <= HIGH_WATER
        assert said.endswith(b"\r\n")
        replies = said.split(b"\r\n")[:-1]
        for one in replies:
            assert REPLY.fullmatch(one), one
            assert len(one) <= 510
            assert int(one[:3]) in CODES
        check_continuations(replies)
        if not talk.is_over:
            await talk.hang_up()
        budget = server.service.budget
        assert budget.used == 0, "memory for content was not given back"  # type: ignore[attr-defined]
        assert not server.events("our-fault")
        event(f"delivered {min(len(server.kept), 2)}")
        for kept in server.kept:
            assert not re.search(rb"\r(?!\n)|(?<!\r)\n", kept.content)
            assert len(kept.received) <= TABLES["max_message_size"]
        assert said.count(b"Ok, delivered [") == len(server.kept)


def unread(talk: Talk) -> bytes:
    return talk._channel.pending_octets


def check_continuations(replies: list[bytes]) -> None:
    """RFC 5321 §4.2.1: all lines of a reply have the same code, and the last one a space behind it."""
    code = b""
    for one in replies:
        assert code in (b"", one[:3]), one
        code = one[:3] if one[3:4] == b"-" else b""
    assert code == b""


@given(start=starts, stream=streams, cuts=st.lists(st.integers(0, 400), max_size=6))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_cuts_change_nothing(start: bytes, stream: bytes, cuts: list[int]) -> None:
    """Except for one command, that must look at what came with it: STARTTLS."""
    octets = (start + stream).replace(b"STARTTLS", b"NOOP")
    assert asyncio.run(answers(octets, [])) == asyncio.run(answers(octets, cuts))


async def answers(octets: bytes, cuts: list[int]) -> tuple[bytes, list[bytes]]:
    async with Stage(tables=TABLES) as server:
        talk = server.talk()
        said, begin = await talk.hear(), 0
        for place in [*sorted({cut for cut in cuts if cut < len(octets)}), len(octets)]:
            said += await talk.say(octets[begin:place])
            begin = place
        await talk.hang_up()
        return re.sub(rb"\[\w{16}\]", b"[]", said), [kept.received for kept in server.kept]
