"""Outcomes of several recipients that become one reply."""

import pytest

from smtpd import replies
from smtpd.addresses import parse_address
from smtpd.delivery import combine
from smtpd.model import Recipient
from smtpd.replies import Reply


def recipient(*, local: str) -> Recipient:
    return Recipient(parse_address(f"{local}@example.com"), "store")


TWO, TEMPORARY = replies.ACCEPTED, replies.MAILBOX_FULL
UNKNOWN, FULL, REFUSED = replies.NO_SUCH_USER, replies.MAILBOX_FULL_PERMANENTLY, replies.MAIL_LOOP


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([TWO], "250 2.0.0"),
        ([TWO, TWO], "250 2.0.0"),
        ([TEMPORARY], "452 4.2.2"),
        ([TEMPORARY, replies.OUR_FAULT], "452 4.2.2"),
        ([UNKNOWN], "550 5.1.1"),
        ([REFUSED, UNKNOWN], "554 5.4.6"),
        ([TWO, TEMPORARY], "451 4.3.0"),
        ([TEMPORARY, TWO], "451 4.3.0"),
        ([TWO, UNKNOWN], "451 4.3.0"),
        ([FULL, TWO], "451 4.3.0"),
        ([TWO, REFUSED], "550 5.0.0"),
        ([TWO, TEMPORARY, REFUSED], "451 4.3.0"),
        ([TWO, UNKNOWN, REFUSED], "451 4.3.0"),
        ([TEMPORARY, UNKNOWN], "451 4.3.0"),
        ([REFUSED, TEMPORARY], "451 4.3.0"),
        ([], "451 4.3.0"),
    ],
)
def test_mixed_outcomes_follow_the_table(outcomes: list[Reply], expected: str) -> None:
    reply = combine({recipient(local=f"r{number}"): reply for number, reply in enumerate(outcomes)}, prdr=False)
    assert f"{reply.code} {reply.status}" == expected


def test_refused_recipients_are_named() -> None:
    outcomes = {recipient(local="good"): TWO, recipient(local="bad"): REFUSED}
    assert "bad@example.com" in str(combine(outcomes, prdr=False))
    assert "good@example.com" not in str(combine(outcomes, prdr=False))


def test_client_that_has_to_come_back_hears_what_is_wrong_with_the_others() -> None:
    outcomes = {recipient(local="good"): TWO, recipient(local="bad"): FULL(address="bad@example.com")}
    reply = combine(outcomes, prdr=False)
    assert str(reply) == (
        "451 4.3.0 Not delivered to everybody, please try again later: The mailbox of bad@example.com is full"
    )


def test_filter_that_refused_some_recipients_is_named_behind_the_one_reply() -> None:
    outcomes = {recipient(local="good"): TWO, recipient(local="bad"): replies.DENIED_CLIENT(ip="::1", filter="access")}
    assert combine(outcomes, prdr=False).values["filter"] == "access"


def test_with_prdr_one_success_is_enough_for_the_last_reply() -> None:
    outcomes = {recipient(local="good"): TWO, recipient(local="bad"): TEMPORARY}
    assert combine(outcomes, prdr=True) is TWO
