"""Which HELO counts: the last one, and every one that was said before STARTTLS."""

import asyncio

import pytest

from smtpd.model import Session, TlsInfo
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply

NO = Reply("test-no", 550, "5.7.1", "No")


class JudgesHelo(Filter):
    name = "helo"
    labels = frozenset({"liar"})

    async def on_helo(self, session: Session) -> Verdict:
        return Verdict(NO, labels=self.labels) if session.helo == "liar.test" else PASS


class OnlyMarks(Filter):
    labels = frozenset({"liar"})

    async def on_helo(self, session: Session) -> Verdict:
        return Verdict(labels=self.labels) if session.helo == "liar.test" else PASS


def start_tls(session: Session) -> None:
    session.forget_claims()
    session.tls = TlsInfo("TLSv1.3", "AES", 256)


async def say(policy, session: Session, name: str) -> Reply | None:
    policy.forget_helo(session)
    session.helo = name
    reply: Reply | None = await policy.helo(session)
    return reply


@pytest.mark.parametrize("over_tls", [False, True])
async def test_second_helo_replaces_the_verdict_on_the_first(world, over_tls):
    policy = world.policy(JudgesHelo)
    if over_tls:
        start_tls(world.session)
    await say(policy, world.session, "liar.test")
    assert await policy.recipient(world.mail(), world.recipient()) == NO
    await say(policy, world.session, "honest.test")
    assert await policy.recipient(world.mail(), world.recipient()) is None
    assert world.session.labels == frozenset()


async def test_refused_helo_does_not_spoil_the_next(world):
    policy = world.policy((JudgesHelo, {"act_at": "helo"}))
    assert await say(policy, world.session, "liar.test") == NO
    assert await say(policy, world.session, "honest.test") is None
    assert await policy.mail(world.mail()) is None


async def test_helo_of_before_starttls_is_not_forgotten(world):
    policy = world.policy(JudgesHelo)
    await say(policy, world.session, "liar.test")
    start_tls(world.session)
    for _ in range(2):
        await say(policy, world.session, "honest.test")
    assert await policy.recipient(world.mail(), world.recipient()) == NO


async def test_label_of_the_first_helo_goes_with_it(world):
    policy = world.policy(OnlyMarks)
    await say(policy, world.session, "liar.test")
    assert world.session.labels == {"liar"}
    await say(policy, world.session, "honest.test")
    assert world.session.labels == frozenset()


async def test_label_that_the_connection_has_too_stays(world):
    class Connection(Filter):
        async def on_connect(self, session: Session) -> Verdict:
            return Verdict(labels=frozenset({"liar"}))

    policy = world.policy(Connection, OnlyMarks)
    await policy.connect(world.session)
    await say(policy, world.session, "liar.test")
    await say(policy, world.session, "honest.test")
    assert world.session.labels == {"liar"}


class Name:
    pass


class LooksUpNames(Filter):
    gives = (Name,)

    async def on_helo(self, session: Session) -> Verdict:
        if session.helo == "slow.test":
            await asyncio.Event().wait()
        session.facts.add(Name())
        return PASS


async def test_facts_of_the_first_helo_go(world):
    policy = world.policy(LooksUpNames)
    await say(policy, world.session, "quick.test")
    assert world.session.facts.get(Name)
    await say(policy, world.session, "slow.test")
    assert world.session.facts.get(Name) is None
    await policy.close(world.session)


async def test_facts_of_the_connection_stay(world):
    class Connection(Filter):
        gives = (Name,)

        async def on_connect(self, session: Session) -> Verdict:
            session.facts.add(Name())
            return PASS

    policy = world.policy(Connection, JudgesHelo)
    await policy.connect(world.session)
    await say(policy, world.session, "honest.test")
    assert world.session.facts.get(Name)


async def test_lookup_for_the_first_helo_is_cancelled(world):
    policy = world.policy(LooksUpNames)
    await say(policy, world.session, "slow.test")
    [lookup] = world.session.pending
    await say(policy, world.session, "quick.test")
    assert world.session.pending is None
    await asyncio.wait([lookup.task])
    assert lookup.task.cancelled()


async def test_lookup_of_before_starttls_goes_on(world):
    policy = world.policy(LooksUpNames)
    await say(policy, world.session, "slow.test")
    start_tls(world.session)
    await say(policy, world.session, "quick.test")
    [lookup] = world.session.pending
    await policy.close(world.session)
    await asyncio.wait([lookup.task])
