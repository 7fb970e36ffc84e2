"""Answers that dialog files cannot provoke: after a bug, and to clients that never tire."""

from stage import CONTENT, ENVELOPE, Stage, codes

MAIL = b"MAIL FROM:<joe@client.test>\r\n"
RCPT = b"RCPT TO:<u%d@example.test>\r\n"


def broken_clock() -> float:
    raise RuntimeError("our bug")


async def test_lmtp_client_is_left_after_a_bug_because_it_waits_for_more_replies() -> None:
    """Else it would take the 250 to its next MAIL for what became of its second recipient."""
    async with Stage(listener={"mode": "lmtp"}) as server:
        talk = server.talk(now=broken_clock)
        await talk.say(ENVELOPE.replace(b"EHLO", b"LHLO") + RCPT % 2)
        said = await talk.say(b"DATA\r\n" + CONTENT + b".\r\n" + MAIL)
        assert codes(said) == ["354", "451"]
        assert talk.is_over
