"""The name in EHLO is checked by SPF once, however many messages a client sends."""

import pytest
from resolvers import Counting

from tests.filters.spf_server import MESSAGE, ZONE, house, labels, results


@pytest.mark.parametrize("first", ["joe@pass.example", ""])
@pytest.mark.parametrize("second", ["joe@soft.example", ""])
async def test_name_in_ehlo_is_checked_once_for_all_messages(first: str, second: str) -> None:
    zone = Counting(ZONE)
    async with house({"helo_fail": "tag"}, resolver=zone) as server:
        talk = await server.connect(helo="fail.example")
        await talk.send(MESSAGE, sender=first)
        before = results(server).rpartition("; ")[2]
        await talk.send(MESSAGE, sender=second)
        assert results(server).rpartition("; ")[2] == before
        assert before.partition(" ")[0] == "spf=fail"
        assert labels(server) >= {"spf-helo-fail" if second else "spf-fail"}
        assert zone.asked.count("fail.example") == 1


@pytest.mark.parametrize(
    ("helo", "again", "asked"),
    [("fail.example", "pass.example", 1), ("down.example", "down.example", 2), ("fail.example", "FAIL.example", 2)],
)
async def test_another_name_and_one_that_could_not_be_looked_up_is_checked_anew(
    helo: str, again: str, asked: int
) -> None:
    zone = Counting(ZONE)
    async with house(resolver=zone) as server:
        talk = await server.connect(helo=helo)
        await talk.send(MESSAGE, sender="")
        await talk.say(f"EHLO {again}\r\n".encode())
        await talk.send(MESSAGE, sender="")
        assert f"smtp.helo={again}" in results(server)
        assert [name.lower() for name in zone.asked].count(helo) == asked


async def test_what_is_known_of_a_name_in_ehlo_gets_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filters.spf._HELO_SECONDS", 0.0)
    zone = Counting(ZONE)
    async with house(resolver=zone) as server:
        talk = await server.connect(helo="fail.example")
        await talk.send(MESSAGE)
        await talk.send(MESSAGE)
        assert zone.asked.count("fail.example") == 2
