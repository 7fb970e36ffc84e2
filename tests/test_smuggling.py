"""What must not end a message: RFC 5321 §2.3.8 and §4.1.1.4 know one line end, CRLF, and one end of data, CRLF.CRLF.

Every variant that some server once took for the end of data stands between harmless content and a command that
must never be executed. It is sent by DATA and by BDAT, cut at every octet, to a listener that rejects lone line ends
and to one that makes them whole.
"""

import re
from collections.abc import Callable

import pytest
from stage import Kept, Stage

VARIANTS = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\n.\r", b"\r.\r\n", b"\r.\n", b"\n\n.\n\n",
    b"\r\r.\r\r", b"\r\r\n.\r\r\n", b"\n\r.\n\r", b"\n\r\n.\n", b"\r\n.\r\r\n", b"\r\n\n.\r\n", b"\r\n.\n\r\n",
    b"\r\n\r.\r\n",
    b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n.\r\0\n", b"\r\0\n.\r\n", b"\0\r\n.\n", b"\r\n.\r\0", b"\n.\0\n",
    b"\r\n\x20.\r\n", b"\r\n.\x20\r\n", b"\r\n\x85.\x85", b"\xe2\x80\xa8.\xe2\x80\xa8", b"\x0b.\x0b", b"\x0c.\x0c",
]  # fmt: skip
HARMLESS = {v for v in VARIANTS if not re.search(rb"\r(?!\n)|(?<!\r)\n", v)}
SMUGGLED = b"MAIL FROM:<evil@client.test>\r\nRCPT TO:<ann@example.test>\r\nDATA\r\nevil\r\n"
HEAD = b"From: joe@client.test\r\n\r\nhello"
ENVELOPE = b"EHLO client.test\r\nMAIL FROM:<joe@client.test>\r\nRCPT TO:<ann@example.test>\r\n"

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: repr(variant)[2:-1])
each_listener = pytest.mark.parametrize("lone", ["reject", "normalise"])


def by_data(content: bytes) -> bytes:
    return b"DATA\r\n" + content + b"\r\n.\r\n"


def by_bdat(content: bytes) -> bytes:
    content += b"\r\n"
    return b"BDAT %d LAST\r\n%b" % (len(content), content)


def by_two_chunks(content: bytes) -> bytes:
    content += b"\r\n"
    cut = content.index(b"hello") + 7  # inside the variant
    return b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (cut, content[:cut], len(content) - cut, content[cut:])


each_way = pytest.mark.parametrize("framed", [by_data, by_bdat, by_two_chunks])


def cuts(octets: bytes) -> list[list[bytes]]:
    """Whole, octet by octet, and in two pieces cut at every place."""
    single = [octets[place : place + 1] for place in range(len(octets))]
    return [[octets], single, *([octets[:place], octets[place:]] for place in range(1, len(octets)))]


@each_way
@each_listener
@each_variant
async def test_nothing_but_the_end_ends_a_message(variant: bytes, lone: str, framed: Callable[[bytes], bytes]) -> None:
    content = HEAD + variant + SMUGGLED.rstrip(b"\r\n")
    octets = framed(content) + b"NOOP\r\n"
    refused = lone == "reject" and variant not in HARMLESS
    async with Stage(listener={"bare_line_ends": lone}) as server:
        for pieces in cuts(octets):
            said = await converse(server, pieces)
            assert said.count(b"250 2.1.0") == said.count(b"250 2.1.5") == 1, "a smuggled command was executed"
            if refused:
                assert re.search(rb"\r\n550 5\.5\.2 [^\r\n]*\r\n$", said), said
                assert not server.kept
            else:
                assert re.search(rb"250 2\.0\.0 Ok, delivered [^\r\n]*\r\n250 2\.0\.0 Ok\r\n$", said), said
                assert_is_whole(server.kept, content)
                server.kept.clear()


async def converse(server: Stage, pieces: list[bytes]) -> bytes:
    talk = server.talk()
    said = await talk.say(ENVELOPE)
    for piece in pieces:
        said += await talk.say(piece)
    is_refused = b"\r\n550 " in said
    assert talk.is_over or not is_refused, "the connection goes on behind a lone line end"
    await talk.hang_up()
    return said


def assert_is_whole(kept: list[Kept], sent: bytes) -> None:
    (message,) = kept
    stored = message.received
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", stored), "a lone line end reached the mailstore"
    # The dots at line starts come and go with the framing; everything else arrives.
    assert re.sub(rb"[\r\n.]+", b"", stored) == re.sub(rb"[\r\n.]+", b"", sent)


async def test_the_true_end_does_end_it() -> None:
    """So that the tests above can fail: with the one real end in the place of the variant, the command is executed."""
    async with Stage() as server:
        said = await converse(server, [by_data(HEAD + b"\r\n.\r\n" + SMUGGLED.rstrip(b"\r\n"))])
    assert said.count(b"250 2.1.0") == 2
    assert len(server.kept) == 2
