"""Content far beyond the size limit, from clients that do not announce its size and read no reply before its end."""

import asyncio

import pytest
from stage import ENVELOPE, Stage, codes

FAR_TOO_BIG = (b"x" * 998 + b"\r\n") * 3000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"DATA\r\n" + FAR_TOO_BIG + b".\r\n", ["354", "552"]),
        (b"BDAT %d LAST\r\n" % len(FAR_TOO_BIG) + FAR_TOO_BIG, ["552"]),
        (b"BDAT %d\r\n" % len(FAR_TOO_BIG) + FAR_TOO_BIG, ["552"]),
        (b"RSET\r\nBDAT %d\r\n" % len(FAR_TOO_BIG) + FAR_TOO_BIG, ["250", "503"]),
    ],
    ids=["data", "last chunk", "chunk", "chunk without a transaction"],
)
async def test_what_is_far_too_big_is_read_to_its_end(content: bytes, said: list[str]) -> None:
    """RFC 1870 §6.3; cut off while sending, a client would see a reset instead of the reply, and come again."""
    async with Stage(tables={"max_message_size": 1000}) as server:
        talk = await server.ready()
        heard = b"".join([await talk.say(content[at : at + 65536]) for at in range(0, len(content), 65536)])
        heard += await talk.say(b"RSET\r\nNOOP\r\n")
        assert codes(heard) == [*said, "250", "250"]
        assert not server.kept


async def test_what_never_ends_is_read_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpd.conversation.DRAIN_SECONDS", 0.05)
    async with Stage(tables={"max_message_size": 1000}, listens=True) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(ENVELOPE + b"DATA\r\n" + FAR_TOO_BIG)
        heard = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert codes(heard)[-2:] == ["354", "552"]
