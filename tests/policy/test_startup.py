"""Mistakes are found before the first connection, all at once, and named by their key."""

from typing import ClassVar

import pytest

from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.options import FilterOptions, Strings
from smtpd.policy import PASS, Filter, PolicyError, Verdict


class SpfResult:
    pass


class DkimResult:
    pass


class Spf(Filter):
    name = "spf"
    gives = (SpfResult,)
    labels = frozenset({"forged"})

    async def on_mail(self, mail: Transaction) -> Verdict:
        return PASS


class Dkim(Filter):
    name = "dkim"
    gives = (DkimResult,)
    labels = frozenset({"signed"})

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        return PASS


class Dmarc(Filter):
    name = "dmarc"
    needs = (SpfResult, DkimResult)

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        return PASS


class Rbl(Filter):
    name = "rbl"

    async def on_connect(self, session: Session) -> Verdict:
        return PASS


class Milter(Filter):
    name = "milter"
    on_connect = Rbl.on_connect
    on_message = Dmarc.on_message


class Greylist(Filter):
    name = "greylist"
    labels = frozenset({"grey"})

    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        return PASS


def problems(world, *entries):
    with pytest.raises(PolicyError) as caught:
        world.policy(*entries)
    return caught.value.problems


def test_needed_fact_without_a_giver_names_fact_and_table(world):
    [spf, dkim] = problems(world, Dmarc)
    assert spf.startswith("smtpd.filters.dmarc: SpfResult is needed by dmarc")
    assert "DkimResult" in dkim


def test_missing_giver_is_advised_by_the_module_of_the_fact(world):
    class Verified:
        pass

    Verified.__module__ = "filters.verify"
    assert problems(world, type("Reader", (Dkim,), {"name": "reader", "needs": (Verified,)})) == [
        "smtpd.filters.reader: Verified is needed by reader and given by no filter, add [smtpd.filters.verify]"
    ]


@pytest.mark.parametrize(
    ("given_by", "advice"), [("", " of the configuration"), ("geo", ", add [smtpd.filters.geo]")]
)
def test_giver_of_somebody_elses_fact_is_not_guessed(world, given_by, advice):
    class Country:
        pass

    Country.__module__ = "smtpd_filter_places"
    Country.given_by = given_by
    assert problems(world, type("Reader", (Dkim,), {"name": "reader", "needs": (Country,)})) == [
        f"smtpd.filters.reader: Country is needed by reader and given by no filter{advice}"
    ]


def test_giver_that_is_switched_off_is_named(world):
    assert problems(world, (Spf, {"mode": "off"}), Dkim, Dmarc) == [
        'smtpd.filters.dmarc: needs SpfResult of spf, but its mode is "off"'
    ]


def test_giver_on_another_listener_is_named(world):
    assert problems(world, (Spf, {"listeners": ["submission"]}), Dkim, Dmarc) == [
        "smtpd.filters.dmarc: needs SpfResult of spf, but it does not run on listener smtp"
    ]


def test_fact_that_comes_after_its_reader_is_a_problem(world):
    class Early(Filter):
        name = "reader"
        needs = (DkimResult,)

        async def on_mail(self, mail: Transaction) -> Verdict:
            return PASS

    assert problems(world, Dkim, Early) == ["smtpd.filters.reader: needs DkimResult, but dkim gives it only later"]


def test_reader_cannot_need_a_fact_of_a_filter_that_changes(world):
    changer = type("Changer", (Dkim,), {"changes": True})
    assert problems(world, Spf, changer, Dmarc) == [
        "smtpd.filters.dmarc: needs DkimResult, but dkim gives it only later"
    ]


def test_filters_that_wait_for_each_other_are_named_with_their_facts(world):
    one = type("One", (Dkim,), {"name": "one", "needs": (SpfResult,)})
    two = type("Two", (Spf,), {"name": "two", "needs": (DkimResult,), "on_message": Dkim.on_message})
    [problem] = problems(world, one, two)
    assert "one needs SpfResult of two" in problem
    assert "two needs DkimResult of one" in problem


def test_order_of_the_file_does_not_matter_for_facts(world):
    world.policy(Dmarc, Dkim, Spf)


def test_filter_may_need_what_it_gives_itself(world):
    world.policy(type("Both", (Dkim,), {"needs": (DkimResult,)}))


def test_unknown_condition_comes_with_a_suggestion(world):
    assert problems(world, (Rbl, {"unless": ["authentcated"]})) == [
        'smtpd.filters.rbl.unless: "authentcated" is no condition and no label of a filter, '
        'did you mean "authenticated"?'
    ]


def test_unknown_condition_without_likeness_lists_what_there_is(world):
    [problem] = problems(world, Spf, (Rbl, {"unless": ["xyzzy"]}))
    assert problem.endswith("there are authenticated, forged, tls, trusted")


def test_label_of_a_filter_that_is_off_is_known(world):
    world.policy((Spf, {"mode": "off"}), (Rbl, {"unless": ["forged"]}))


def test_label_of_the_class_default_may_be_given_by_nobody(world):
    class Options(FilterOptions):
        unless: Strings = ("allowlisted",)

    careful = type("Careful", (Rbl,), {"Options": Options})
    world.policy(careful)
    assert problems(world, (careful, {"unless": ["allowlisted"]}))


@pytest.mark.parametrize("giver", [Dkim, Greylist])
@pytest.mark.parametrize("kind", [Rbl, Milter])
def test_label_that_comes_after_the_refusal_is_a_problem(world, giver, kind):
    [label] = giver.labels
    assert problems(world, giver, (kind, {"unless": [label]})) == [
        f'smtpd.filters.{kind.name}.unless: {giver.name} gives the label "{label}" only after {kind.name} has refused'
    ]


def test_label_that_comes_late_is_fine_for_a_refusal_that_comes_later(world):
    world.policy(Dkim, (Rbl, {"unless": ["signed"], "act_at": "message"}))


def test_act_at_before_the_first_question_is_a_problem(world):
    assert problems(world, (Spf, {"act_at": "helo"})) == [
        'smtpd.filters.spf.act_at: "helo" is before spf is asked, the earliest is "mail"'
    ]


def test_all_mistakes_are_reported_at_once(world):
    assert len(problems(world, (Spf, {"act_at": "helo", "unless": ["nonsense"]}), Dmarc)) == 3


def test_filters_of_other_listeners_are_left_out(world):
    class Loud(Filter):
        asked: ClassVar[int] = 0

        async def on_connect(self, session: Session) -> Verdict:
            Loud.asked += 1
            return PASS

    assert world.policy((Loud, {"listeners": ["smtps"]})).connect.idle
    assert world.policy((Loud, {"mode": "off"})).connect.idle
    assert not world.policy((Loud, {"listeners": ["smtps"]}), on="smtps").connect.idle


def test_without_filters_every_stage_is_idle(world):
    policy = world.policy()
    stages = (policy.connect, policy.helo, policy.mail, policy.recipient, policy.known_recipient, policy.message)
    assert all(stage.idle for stage in stages)
    assert not policy.watches_end
    assert not policy.watches_close


def test_stages_that_nothing_can_reach_are_idle(world):
    policy = world.policy(Rbl)
    assert [policy.connect.idle, policy.helo.idle, policy.mail.idle] == [False, True, True]
    assert [policy.recipient.idle, policy.known_recipient.idle] == [False, True]
    assert policy.watches_close  # a lookup can still run when the client leaves
    assert not world.policy((Rbl, {"act_at": "mail"})).mail.idle
    assert world.policy((Rbl, {"mode": "observe"})).recipient.idle
    assert not world.policy((Rbl, {"on_error": "defer"})).mail.idle  # what broke at connect is asked again


def test_label_given_only_at_rcpt_cannot_silence_what_is_spoken_before(world):
    class Access(Filter):
        name = "access"
        labels = frozenset({"allowed", "allowed_recipient"})
        labels_at: ClassVar = {"allowed_recipient": "rcpt"}
        early = True

        async def on_connect(self, session: Session) -> Verdict:
            return PASS

        async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
            return PASS

    assert problems(world, Access, (Spf, {"act_at": "mail", "unless": ["allowed_recipient", "allowed"]})) == [
        'smtpd.filters.spf.unless: access gives the label "allowed_recipient" only after spf has refused'
    ]
    assert world.policy(Access, (Spf, {"unless": ["allowed_recipient"]}))
