"""A mailstore or a smarthost that answers early, late, too much, too little, nonsense, in pieces, or hangs up anywhere.

Whatever it does: nothing breaks, nobody hears 250 for a message the store does not have or a refusal it did not
speak, and what is left of it is never taken for an answer about the next message.
"""

import asyncio
import re

import pytest
import uvloop
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from lmtp_store import CLOSE, LmtpStore

from delivery_agents.forwarding import Forwarding
from delivery_agents.lmtp import Lmtp
from delivery_agents.relay import Relay
from smtpd.memory import MemoryServer

NAMES = ("ann", "bob", "eve")
FIRST, SECOND = "Subject: first\n\nfirst\n", "Subject: second\n\nsecond\n"
MISSING = b"(nothing)"
# One answer too many at the beginning of a burst, and the last one of the burst comes when content is under way.
LATE_SURPLUS = {3: ("close-behind", b""), 9: ("append", b"250 2.0.0 Ok\r\n"), 13: ("close-behind", b"")}

codes = st.sampled_from([200, 211, 220, 221, 250, 251, 353, 354, 421, 450, 451, 452, 500, 503, 550, 552, 554, 555])
odd_answers = (
    codes.map(lambda code: b"%d something\r\n" % code)
    | codes.map(lambda code: b"%d-%d.1.1 two\r\n%d lines\r\n" % (code, code // 100, code))
    | st.binary(max_size=20)
    | st.sampled_from([b"x" * 9000, b"250-x\r\n" * 101, b"250-a\r\n550 b\r\n", b"25", b"\r\n", b"250 2.0.0", b"."])
)
# An answer is replaced, repeated, put in front, followed by another, cut off, or it never comes.
twists = st.one_of(
    st.tuples(st.just("replace"), odd_answers),
    st.tuples(st.sampled_from(["append", "prepend"]), odd_answers | st.just(b"250 2.0.0 Ok\r\n")),
    st.tuples(st.just("close-behind"), st.sampled_from([b"", b"421 4.3.2 Bye\r\n"])),
    st.tuples(st.just("cut"), st.integers(0, 20).map(lambda length: b"x" * length)),
    st.tuples(st.just("miss"), st.just(MISSING)),
)
scripts = st.dictionaries(st.integers(0, 14), twists, min_size=1, max_size=4)


class Script:
    """Twists the answers with the given numbers, and remembers everything that was said."""

    def __init__(self, twists: dict[int, tuple[str, bytes]]) -> None:
        self.twists = twists
        self.said = b""
        self.number = -1

    def __call__(self, key: str, usual: bytes) -> bytes:
        self.number += 1
        kind, octets = self.twists.get(self.number, ("", b""))
        said = {
            "": usual,
            "replace": octets,
            "append": usual + octets,
            "prepend": octets + usual,
            "close-behind": usual + octets + CLOSE,
            "cut": usual[: len(octets)] + CLOSE,
            "miss": b"",
        }[kind]
        self.said += said
        return said


@given(
    twists=scripts,
    piece=st.sampled_from([0, 0, 1, 3]),
    chunking=st.booleans(),
    offers=st.sampled_from([("PIPELINING", "CHUNKING", "8BITMIME"), ("8BITMIME", "CHUNKING")]),
    fast=st.booleans(),
    kind=st.sampled_from([Lmtp, Relay]),
    prdr=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
@example({4: ("append", b"550 5.1.1 No\r\n")}, 0, True, ("PIPELINING", "CHUNKING"), False, Lmtp, False)
@example({6: ("miss", MISSING)}, 0, True, ("PIPELINING", "CHUNKING"), False, Lmtp, False)
@example({6: ("append", b"250 2.0.0 Saved\r\n250 2.0.0 Saved\r\n")}, 0, False, ("PIPELINING",), False, Lmtp, False)
@example({7: ("cut", b"xxxxxx")}, 1, True, ("PIPELINING", "CHUNKING"), True, Lmtp, False)
@example({6: ("append", b"250 2.0.0 Saved\r\n")}, 0, True, ("PIPELINING", "CHUNKING"), False, Relay, False)
@example({6: ("miss", MISSING)}, 0, True, ("PIPELINING", "CHUNKING"), False, Relay, True)
@example(LATE_SURPLUS, 0, True, ("PIPELINING", "CHUNKING", "8BITMIME"), False, Relay, False)
@example({6: ("replace", b"353 a\r\n")}, 0, True, ("PIPELINING", "CHUNKING"), False, Relay, False)
def test_whatever_the_store_does_nothing_false_is_said(
    twists: dict[int, tuple[str, bytes]],
    piece: int,
    chunking: bool,
    offers: tuple[str, ...],
    fast: bool,
    kind: type[Forwarding],
    prdr: bool,
) -> None:
    offers = (*offers, "PRDR") if prdr else offers
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if fast else None) as runner:
        event(runner.run(suffer(twists, piece, chunking, offers, kind))[:5])


async def suffer(
    twists: dict[int, tuple[str, bytes]], piece: int, chunking: bool, offers: tuple[str, ...], kind: type[Forwarding]
) -> str:
    """The answer to the second message, which the store takes as it should."""
    # Only where something is missing is a time limit ever reached.
    waits = any(kind == "miss" or b"250-" in octets or not octets.endswith(b"\n") for kind, octets in twists.values())
    limits = {"connect_timeout": 0.1, "reply_timeout": 0.1, "delivery_timeout": 0.1} if waits else {}
    store, script = LmtpStore(offers=offers), Script(twists)
    store.twist, store.piece = script, piece
    table = {"address": "", "chunking": chunking, **limits}
    async with store, MemoryServer(agents={"store": (kind, table | {"address": store.address})}) as server:
        talk = await server.connect()
        answers = await talk.send(FIRST, recipients=[f"{name}@example.test" for name in NAMES])
        check_first(answers[1:], store, script)
        store.twist = None
        last = (await talk.send(SECOND))[-1]
        saved = re.match(r"250 2\.0\.0 Saved (\d+) ", last)
        if saved is not None:
            assert store.messages[int(saved[1]) - 1].content.endswith(b"second\r\n")
            assert store.messages[int(saved[1]) - 1].recipients == [b"RCPT TO:<alice@example.test>\r\n"]
        else:
            assert waits, last
            assert last.startswith("451 4.4."), last
        assert not talk.is_over
        return last


def check_first(answers: list[str], store: LmtpStore, script: Script) -> None:
    for answer in answers:
        code = answer[:3]
        assert code[0] in "245"
        assert code != "421"
        if code[0] == "5" and not answer.startswith("550 5.0.0 Delivered, but not to"):
            assert code.encode() in script.said, answer
    accepted = sum(answer.startswith("250 2.1.5 ") for answer in answers[: len(NAMES)])
    if len(answers) > len(NAMES) and answers[-1].startswith("2"):
        complete = [message for message in store.messages if message.content.endswith(b"first\r\n")]
        assert complete, "250 for a message that the store does not have"
        assert script.said.count(b"25") >= accepted


@pytest.mark.parametrize("kind", [Lmtp, Relay])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("number", range(14))
def test_store_may_hang_up_anywhere(number: int, fast: bool, kind: type[Forwarding]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if fast else None) as runner:
        answer = runner.run(suffer({number: ("cut", b"\n")}, 0, True, ("PIPELINING", "CHUNKING", "PRDR"), kind))
    assert answer.startswith("250 ")
