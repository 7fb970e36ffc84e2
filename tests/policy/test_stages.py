"""Which verdict is spoken, where, and to whom."""

import asyncio

import pytest

from smtpd.model import Recipient, Session, TlsInfo, Transaction
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply

NO = Reply("test-no", 550, "5.7.1", "No")
NEVER = Reply("test-never", 554, "5.7.1", "Never")
LATER = Reply("test-later", 451, "4.7.1", "Later")


def at_mail(name: str, verdict: Verdict, **members: object) -> type[Filter]:
    async def on_mail(self: Filter, mail: Transaction) -> Verdict:
        return verdict

    return type(name, (Filter,), {"name": name, "on_mail": on_mail, **members})


def at_connect(name: str, verdict: Verdict, **members: object) -> type[Filter]:
    async def on_connect(self: Filter, session: Session) -> Verdict:
        return verdict

    return type(name, (Filter,), {"name": name, "on_connect": on_connect, **members})


def at_rcpt(name: str, verdict: Verdict, **members: object) -> type[Filter]:
    async def on_rcpt(self: Filter, mail: Transaction, recipient: Recipient) -> Verdict:
        return verdict

    return type(name, (Filter,), {"name": name, "on_rcpt": on_rcpt, **members})


async def test_refusal_at_connect_is_spoken_at_rcpt(world):
    policy = world.policy(at_connect("rbl", Verdict(NO)))
    mail = world.mail()
    assert await policy.connect(world.session) is None
    assert policy.helo.idle
    assert policy.mail.idle
    reply = await policy.recipient(mail, world.recipient())
    assert reply == NO
    assert reply.values["filter"] == "rbl"
    assert [str(one).split()[:3] for one in world.session.trace] == [["rbl", "connect", "held"]]
    assert [(one.stage, one.result, one.reply) for one in mail.trace] == [("rcpt", "refused", "test-no")]


async def test_held_refusal_of_the_session_meets_every_transaction(world):
    policy = world.policy(at_connect("rbl", Verdict(NO)))
    await policy.connect(world.session)
    for _ in range(2):
        mail = world.mail()
        assert await policy.recipient(mail, world.recipient("a@mx.test")) == NO
        assert await policy.recipient(mail, world.recipient("b@mx.test")) == NO
        assert len(mail.trace) == 1


async def test_held_refusal_of_a_transaction_dies_with_it(world):
    verdicts = [Verdict(NO), PASS]

    class Once(Filter):
        async def on_mail(self, mail: Transaction) -> Verdict:
            return verdicts.pop(0)

    policy = world.policy(Once)
    first, second = world.mail(), world.mail()
    await policy.mail(first)
    assert await policy.recipient(first, world.recipient()) == NO
    await policy.mail(second)
    assert await policy.recipient(second, world.recipient()) is None


@pytest.mark.parametrize("act_at", ["connect", "mail", "message"])
async def test_operator_chooses_where_a_refusal_is_spoken(world, act_at):
    policy = world.policy((at_connect("rbl", Verdict(NO)), {"act_at": act_at}))
    mail = world.mail()
    mail.recipients = [world.recipient()]
    spoken = {"connect": await policy.connect(world.session), "mail": await policy.mail(mail)}
    if act_at == "message":
        assert await policy.recipient(mail, mail.recipients[0]) is None
        spoken["message"] = (await policy.message(mail, world.message())).reply
    assert spoken[act_at] == NO
    earlier = list(spoken)[: list(spoken).index(act_at)]
    assert all(spoken[stage] is None for stage in earlier)


async def test_client_that_ignores_a_refusal_at_connect_hears_it_again(world):
    policy = world.policy((at_connect("rbl", Verdict(NO)), {"act_at": "connect"}))
    assert await policy.connect(world.session) == NO
    assert await policy.mail(world.mail()) == NO
    assert await policy.recipient(world.mail(), world.recipient()) == NO


async def test_first_of_the_heaviest_class_speaks(world):
    policy = world.policy(
        at_mail("a", Verdict(LATER)), at_connect("b", Verdict(NEVER)), at_mail("c", Verdict(NO)), at_mail("d", PASS)
    )
    mail = world.mail()
    await policy.mail(mail)
    await policy.connect(world.session)
    reply = await policy.recipient(mail, world.recipient())
    assert (reply, reply.values["filter"]) == (NEVER, "b")


async def test_access_lists_speak_before_held_refusals(world):
    policy = world.policy(at_connect("rbl", Verdict(NO)), at_rcpt("access", Verdict(LATER), early=True))
    await policy.connect(world.session)
    assert await policy.recipient(world.mail(), world.recipient()) == LATER


async def test_other_recipient_filters_wait_for_the_agent(world):
    policy = world.policy(at_rcpt("greylist", Verdict(LATER)))
    assert policy.recipient.idle
    reply = await policy.known_recipient(world.mail(), world.recipient())
    assert (reply, reply.values["filter"]) == (LATER, "greylist")


async def test_recipients_that_are_refused_at_once_leave_nothing_behind(world):
    policy = world.policy(at_rcpt("greylist", Verdict(LATER)))
    mail = world.mail()
    for _ in range(3):
        assert await policy.known_recipient(mail, world.recipient()) == LATER
    assert not mail.held


async def test_postmaster_stays_reachable(world):
    policy = world.policy(
        at_connect("rbl", Verdict(NO)), at_rcpt("access", Verdict(NO), early=True), at_rcpt("greylist", Verdict(LATER))
    )
    mail, postmaster = world.mail(), world.recipient("postmaster@mx.test", exempt=True)
    await policy.connect(world.session)
    assert await policy.recipient(mail, postmaster) is None
    assert await policy.known_recipient(mail, postmaster) is None
    assert {(one.filter, one.result) for one in mail.trace} == {("access", "silenced"), ("greylist", "silenced")}


@pytest.mark.parametrize("condition", ["authenticated", "trusted", "tls"])
async def test_condition_silences_when_the_refusal_would_be_spoken(world, condition):
    policy = world.policy((at_connect("rbl", Verdict(NO)), {"unless": [condition]}))
    await policy.connect(world.session)
    assert await policy.recipient(world.mail(), world.recipient()) == NO
    if condition == "authenticated":
        world.session.login = "ann"
    elif condition == "trusted":
        world.session.trusted = True
    else:
        world.session.tls = TlsInfo("TLSv1.3", "AES", 256)
    mail = world.mail()
    assert await policy.recipient(mail, world.recipient()) is None
    assert [one.result for one in mail.trace] == ["silenced"]


@pytest.mark.parametrize("condition", ["authenticated", "trusted", "tls"])
async def test_condition_that_the_operator_did_not_name_silences_nothing(world, condition):
    others = [one for one in ("authenticated", "trusted", "tls") if one != condition]
    policy = world.policy((at_connect("rbl", Verdict(NO)), {"unless": [condition]}))
    if "authenticated" in others:
        world.session.login = "ann"
    world.session.trusted = "trusted" in others
    if "tls" in others:
        world.session.tls = TlsInfo("TLSv1.3", "AES", 256)
    await policy.connect(world.session)
    assert await policy.recipient(world.mail(), world.recipient()) == NO


async def test_label_of_another_filter_silences(world):
    allow = at_mail("allow", Verdict(labels=frozenset({"welcome"})), labels=frozenset({"welcome"}))
    policy = world.policy((at_connect("rbl", Verdict(NO)), {"unless": ["welcome"]}), allow)
    await policy.connect(world.session)
    mail = world.mail()
    assert await policy.recipient(mail, world.recipient()) == NO
    await policy.mail(mail)
    assert await policy.recipient(mail, world.recipient()) is None


async def test_label_silences_a_refusal_of_the_connection_before_there_is_mail(world):
    friend = at_connect("friend", Verdict(labels=frozenset({"welcome"})), labels=frozenset({"welcome"}))
    refusing = at_connect("rbl", Verdict(NO))
    policy = world.policy(friend, (refusing, {"unless": ["welcome"], "act_at": "connect"}))
    assert await policy.connect(world.session) is None
    policy = world.policy((refusing, {"unless": ["tls", "welcome"], "act_at": "connect"}), friend)
    assert await policy.connect(world.new_session()) is None


async def test_label_that_is_still_being_looked_up_is_waited_for(world):
    class Allow(Filter):
        name = "allow"
        labels = frozenset({"welcome"})

        def can_refuse(self) -> bool:
            return False

        async def on_connect(self, session: Session) -> Verdict:
            await answer.wait()
            return Verdict(labels=self.labels)

    answer = asyncio.Event()
    policy = world.policy(Allow, (at_connect("rbl", Verdict(NO)), {"unless": ["welcome"]}))
    await policy.connect(world.session)
    asking = world.begin(policy.recipient(world.mail(), world.recipient()))
    assert not asking.done()
    answer.set()
    assert await asking is None


async def test_label_of_an_observed_filter_neither_silences_nor_delays(world):
    class Allow(Filter):
        name = "allow"
        labels = frozenset({"welcome"})

        async def on_connect(self, session: Session) -> Verdict:
            await asyncio.Event().wait()
            return PASS

    policy = world.policy((Allow, {"mode": "observe"}), (at_connect("rbl", Verdict(NO)), {"unless": ["welcome"]}))
    await policy.connect(world.session)
    asking = world.begin(policy.recipient(world.mail(), world.recipient()))
    assert asking.done()
    assert asking.result() == NO
    await policy.close(world.session)


async def test_label_of_one_recipient_silences_for_this_one_only(world):
    class Own(Filter):
        early = True
        labels = frozenset({"mine"})

        async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
            return Verdict(labels=self.labels) if recipient.address.local == "ann" else PASS

    policy = world.policy(Own, (at_connect("rbl", Verdict(NO)), {"unless": ["mine"]}))
    await policy.connect(world.session)
    mail, ann, bob = world.mail(), world.recipient("ann@mx.test"), world.recipient("bob@mx.test")
    assert await policy.recipient(mail, ann) is None
    assert await policy.recipient(mail, bob) == NO
    assert (ann.labels, bob.labels, mail.labels) == ({"mine"}, frozenset(), frozenset())


async def test_labels_go_to_session_and_message(world):
    policy = world.policy(
        at_connect("a", Verdict(labels=frozenset({"x"}))), at_mail("b", Verdict(labels=frozenset({"y"})))
    )
    mail = world.mail()
    await policy.connect(world.session)
    await policy.mail(mail)
    assert (world.session.labels, mail.labels) == ({"x"}, {"y"})


async def test_what_a_filter_says_twice_is_bounded_in_the_trace(world):
    policy = world.policy(at_mail("a", PASS))
    mail = world.mail()
    for _ in range(600):
        await policy.mail(mail)
    assert len(mail.trace) == 500


@pytest.mark.parametrize("hook", ["on_end", "on_close"])
async def test_all_filters_that_hear_of_an_end_are_waited_for(world, hook):
    go_on, told = asyncio.Event(), []

    async def waits(self: Filter, *_: object) -> None:
        await go_on.wait()
        told.append(self.name)

    policy = world.policy(*(type(name, (Filter,), {"name": name, hook: waits}) for name in ("one", "two")))
    ended = policy.end(world.mail(), None) if hook == "on_end" else policy.close(world.session)
    ending = world.begin(ended)
    await asyncio.sleep(0)
    assert not ending.done()
    go_on.set()
    await ending
    assert told == ["one", "two"]
