"""Lookups start early, are awaited late, and end with what they belong to."""

import asyncio

import pytest

from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.policy import PASS, Filter, Policy, Verdict
from smtpd.replies import Reply

NO = Reply("test-no", 550, "5.7.1", "No")


class Answer:
    def __init__(self, text: str) -> None:
        self.text = text


class Lookup(Filter):
    """Says what the test tells it, when the test tells it; one gate per name of the class."""

    gives = (Answer,)

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.gate = asyncio.Event()
        self.asked = False
        self.cancelled = False

    async def look_up(self, session: Session) -> Verdict:
        self.asked = True
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        session.facts.add(Answer(self.table))
        return Verdict(NO)


class AtConnect(Lookup):
    async def on_connect(self, session: Session) -> Verdict:
        return await self.look_up(session)


class AtMail(Lookup):
    async def on_mail(self, mail: Transaction) -> Verdict:
        return await self.look_up(mail.session)


class AtRcpt(Lookup):
    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        return await self.look_up(mail.session)


class AlsoAtRcpt(AtRcpt):
    pass


class Reader(Filter):
    """Needs the answer, and says what it was."""

    needs = (Answer,)

    async def on_mail(self, mail: Transaction) -> Verdict:
        answer = mail.session.facts.get(Answer)
        return Verdict(labels=frozenset({answer.text if answer else "nothing"}))


def filter_of(policy: Policy, name: str) -> Lookup:
    stages = (policy.connect, policy.helo, policy.mail, policy.recipient, policy.known_recipient, policy.message)
    hooks = [hook for stage in stages for hook in stage._hooks]
    [found] = {hook.check.filter for hook in hooks if hook.check.name == name}
    return found


async def finished(*tasks: asyncio.Task) -> None:
    await asyncio.wait(tasks)


async def test_lookup_started_at_connect_is_awaited_at_rcpt(world):
    policy = world.policy(AtConnect)
    assert world.begin(policy.connect(world.session)).done()
    assert filter_of(policy, "atconnect").asked
    assert policy.mail.idle
    asking = world.begin(policy.recipient(world.mail(), world.recipient()))
    assert not asking.done()
    filter_of(policy, "atconnect").gate.set()
    assert await asking == NO


async def test_answer_that_is_there_leaves_nothing_behind(world):
    policy = world.policy(AtConnect)
    filter_of(policy, "atconnect").gate.set()
    world.begin(policy.connect(world.session))
    assert world.session.pending is None


async def test_answered_lookup_takes_no_memory(world):
    policy = world.policy(AtConnect)
    world.begin(policy.connect(world.session))
    [lookup] = world.session.pending
    filter_of(policy, "atconnect").gate.set()
    await finished(lookup.task)
    assert world.session.pending is None


async def test_postmaster_does_not_wait_for_lookups(world):
    policy = world.policy(AtConnect)
    world.begin(policy.connect(world.session))
    assert world.begin(policy.recipient(world.mail(), world.recipient(exempt=True))).done()
    await policy.close(world.session)


async def test_filter_that_only_marks_is_waited_for_at_the_message(world):
    class Marks(AtConnect):
        labels = frozenset({"seen"})

        def can_refuse(self) -> bool:
            return False

        async def look_up(self, session: Session) -> Verdict:
            await super().look_up(session)
            return Verdict(labels=self.labels)

    policy = world.policy(Marks)
    world.begin(policy.connect(world.session))
    assert policy.recipient.idle
    judging = world.begin(policy.message(world.mail(), world.message()))
    assert not judging.done()
    filter_of(policy, "marks").gate.set()
    await judging
    assert world.session.labels == {"seen"}


async def test_reader_waits_for_a_fact_that_is_still_looked_up(world):
    policy = world.policy(Reader, AtConnect)
    world.begin(policy.connect(world.session))
    mail = world.mail()
    world.begin(policy.mail(mail))
    assert mail.labels == frozenset()
    [reading] = mail.pending
    filter_of(policy, "atconnect").gate.set()
    await finished(reading.task)
    assert mail.labels == {"atconnect"}


async def test_reader_waits_for_a_fact_of_its_own_stage_whatever_the_file_says(world):
    policy = world.policy(Reader, AtMail)
    mail = world.mail()
    world.begin(policy.mail(mail))
    waiting = [lookup.task for lookup in mail.pending]
    assert len(waiting) == 2
    filter_of(policy, "atmail").gate.set()
    await finished(*waiting)
    assert mail.labels == {"atmail"}


async def test_waiting_for_a_fact_is_not_the_readers_time(world):
    policy = world.policy((Reader, {"timeout": "1ms"}), (AtMail, {"timeout": "5ms"}))
    mail = world.mail()
    world.begin(policy.mail(mail))
    await finished(*[lookup.task for lookup in mail.pending])
    assert {(one.filter, one.result) for one in mail.trace} == {("atmail", "timeout"), ("reader", "pass")}


async def test_independent_filters_run_at_the_same_time(world):
    policy = world.policy(AtRcpt, AlsoAtRcpt)
    asking = world.begin(policy.known_recipient(world.mail(), world.recipient()))
    filters = [filter_of(policy, "atrcpt"), filter_of(policy, "alsoatrcpt")]
    assert all(one.asked for one in filters)
    for one in reversed(filters):
        one.gate.set()
    reply = await asking
    assert reply.values["filter"] == "atrcpt"


async def test_one_filter_is_asked_without_another_task(world):
    class Alone(Filter):
        async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
            tasks.append(asyncio.current_task())
            return PASS

    tasks: list = []
    await world.policy(Alone).known_recipient(world.mail(), world.recipient())
    assert tasks == [asyncio.current_task()]


@pytest.mark.parametrize("kinds", [(AtRcpt,), (AtRcpt, AlsoAtRcpt)])
async def test_vanished_client_cancels_the_filters_of_a_stage(world, kinds):
    policy = world.policy(*((kind, {"on_error": "defer"}) for kind in kinds))
    asking = world.begin(policy.known_recipient(world.mail(), world.recipient()))
    running = asyncio.all_tasks() - {asyncio.current_task()}
    asking.cancel()
    await finished(*running)
    assert asking.cancelled()
    assert all(filter_of(policy, kind.__name__.lower()).cancelled for kind in kinds)
    assert world.logged() == []  # demand 40: no traceback for somebody who hung up


async def test_vanished_client_cancels_the_lookup_that_was_waited_for(world):
    policy = world.policy(AtConnect)
    world.begin(policy.connect(world.session))
    [lookup] = world.session.pending
    asking = world.begin(policy.recipient(world.mail(), world.recipient()))
    asking.cancel()
    await finished(asking, lookup.task)
    assert lookup.task.cancelled()


async def test_end_of_transaction_cancels_its_lookups_and_no_others(world):
    policy = world.policy(Reader, AtConnect)
    world.begin(policy.connect(world.session))
    mail = world.mail()
    world.begin(policy.mail(mail))
    [reading], [looking] = mail.pending, world.session.pending
    policy.abort(mail)
    await finished(reading.task)
    assert reading.task.cancelled()
    assert not looking.task.done()
    filter_of(policy, "atconnect").gate.set()
    await finished(looking.task)
    assert world.session.facts.get(Answer)


async def test_end_of_session_cancels_its_lookups(world):
    policy = world.policy(AtConnect)
    world.begin(policy.connect(world.session))
    [lookup] = world.session.pending
    await policy.close(world.session)
    await finished(lookup.task)
    assert filter_of(policy, "atconnect").cancelled


async def test_filters_hear_of_the_end(world):
    class Listens(Filter):
        async def on_end(self, mail: Transaction, outcome: Reply | None) -> None:
            heard.append((self.table, mail.id, outcome))

        async def on_close(self, session: Session) -> None:
            heard.append((self.table, session.id))

    class BreaksThere(Filter):
        async def on_end(self, mail: Transaction, outcome: Reply | None) -> None:
            raise KeyError

    heard: list = []
    policy = world.policy(BreaksThere, Listens)
    assert policy.watches_end
    assert policy.watches_close
    assert policy.message.idle
    await policy.end(world.mail(), NO)
    await policy.close(world.session)
    assert heard == [("listens", "MAIL", NO), ("listens", "SESSION")]
    assert [line["hook"] for line in world.logged()] == ["on_end"]


async def test_message_is_never_read_behind_the_clients_back(world):
    class Scans(Lookup):
        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            return await self.look_up(mail.session)

    policy = world.policy((Scans, {"mode": "observe"}))
    judging = world.begin(policy.message(world.mail(), world.message()))
    assert not judging.done()
    filter_of(policy, "scans").gate.set()
    assert (await judging).reply is None
