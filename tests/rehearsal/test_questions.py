import asyncio

from rehearsals import play, step_at

from smtpd.dns import NXDOMAIN, Answer, Type
from smtpd.model import Transaction
from smtpd.policy import PASS, Filter, Verdict
from smtpd.rehearsal.questions import MAX_QUESTIONS, WatchedResolver
from smtpd.rehearsal.telling import words_of
from smtpd.zone import Zone


class Asking(Filter):
    """Asks for its own name, from a task of its own."""

    async def on_mail(self, mail: Transaction) -> Verdict:
        lookups = self.services.lookups(mail)
        await asyncio.create_task(lookups.resolve(f"{self.table}.test", "A"))
        lookups.peek(f"{self.table}.test", "MX")
        lookups.peek(f"{self.table}.test", "MX")
        return PASS


async def test_every_lookup_belongs_to_the_filter_that_asked() -> None:
    zone = Zone({"one.test": {"A": ["192.0.2.7"]}, "two.test": {"A": "tempfail: timeout"}})
    done = await play(filters={"one": Asking, "two": Asking}, zone=zone)
    asked = {
        opinion.filter: [(one.name, one.kind, words_of(one.answer)) for one in opinion.questions.values()]
        for opinion in step_at(done, "mail").opinions
    }
    assert asked == {
        "one": [("one.test", "A", "192.0.2.7"), ("one.test", "MX", "nodata")],
        "two": [("two.test", "A", "tempfail (timeout)"), ("two.test", "MX", "nodata")],
    }
    assert [one for step in done.steps for one in step.shared] == []


async def test_a_lookup_that_nobody_waits_for_is_shown_as_such() -> None:
    class Silent(Zone):
        async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
            await asyncio.Event().wait()
            return NXDOMAIN

    rules = {"one": {"timeout": 0.01}}
    done = await play(filters={"one": Asking}, rules=rules, zone=Silent(cached=False))
    (question,) = step_at(done, "mail").opinions[0].questions.values()
    assert (question.name, words_of(question.answer)) == ("one.test", "(not waited for)")
    assert done.ending == "accepted"


async def test_a_lookup_of_no_single_filter_is_shared() -> None:
    class Background(Filter):
        async def start(self) -> None:
            await self.services.resolver.resolve("list.test", "A")

    done = await play(filters={"list": Background})
    assert [one.name for one in step_at(done, "connect").shared] == ["list.test"]


async def test_questions_beyond_the_limit_are_answered_but_not_written_down() -> None:
    resolver = WatchedResolver(Zone())
    for number in range(MAX_QUESTIONS + 1):
        assert await resolver.resolve(f"{number}.test", "A") == NXDOMAIN
    assert len(resolver.shared) == MAX_QUESTIONS
