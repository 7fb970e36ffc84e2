"""What a chain must look like before any key is asked for (RFC 8617 §5.2, steps 1 to 3): broken in every way."""

import pytest
from arc_house import HOPS, ONE, Tags, chain, drop, field_of, found, zone
from signer import LETTER

from filters.arc_chain import MAX_SETS, Broken, has_ended, highest_instance, read_chain
from filters.dkim_header import HeaderSection
from smtpd.dns import Answer, Type
from smtpd.zone import Zone

NAMES = ("ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal")


def why(message: bytes, *, max_sets: int = MAX_SETS) -> str:
    """What is wrong with a chain, "" when it could be one."""
    head, _, _ = message.partition(b"\r\n\r\n")
    try:
        read_chain(HeaderSection(head + b"\r\n\r\n"), 1.9e9, max_sets=max_sets)
    except Broken as broken:
        return str(broken)
    return ""


class Mute(Zone):
    """Nobody may ask."""

    def peek(self, name: str, kind: Type) -> Answer | None:
        raise AssertionError(name)


def test_good_chain_has_its_sets_in_order() -> None:
    head, _, _ = chain(3).partition(b"\r\n\r\n")
    sets = read_chain(HeaderSection(head + b"\r\n\r\n"), 1.9e9)
    assert [(one.instance, one.seal.domain) for one in sets] == [(1, "one.test"), (2, "two.test"), (3, "three.test")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("instance", [1, 2, 3])
def test_set_without_one_field_breaks_the_chain(name: str, instance: int) -> None:
    assert why(drop(chain(3), name, instance)) == f"there is no {name} {instance}"


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_left_of_a_chain_is_one_that_failed(name: str) -> None:
    assert (await found(field_of(chain(1), name, 1) + LETTER)).status == "fail"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("instance", [1, 2, 3])
def test_field_that_is_there_twice_breaks_the_chain(name: str, instance: int) -> None:
    assert why(field_of(chain(3), name, instance) + chain(3)) == f"there are two {name} fields {instance}"


@pytest.mark.parametrize("missing", [1, 2])
def test_gap_breaks_the_chain(missing: int) -> None:
    message = chain(3)
    for name in NAMES:
        message = drop(message, name, missing)
    assert why(message) == f"there is no ARC-Authentication-Results {missing}"


def test_chain_that_begins_later_is_none() -> None:
    assert why(ONE.forge(LETTER, 2)) == "there is no ARC-Authentication-Results 1"


@pytest.mark.parametrize(
    ("instance", "said", "reason"),
    [
        (1, "pass", "cv= of ARC-Seal 1 is not none"),
        (1, "fail", "cv= of ARC-Seal 1 is not none"),
        (1, "PASS", "cv= of ARC-Seal 1 is not none"),
        (1, None, "cv= of ARC-Seal 1 is not none"),
        (2, "none", "cv= of ARC-Seal 2 is not pass"),
        (2, "fail", "cv= of ARC-Seal 2 is not pass"),
        (2, "", "cv= of ARC-Seal 2 is not pass"),
        (3, "none", "cv= of ARC-Seal 3 is not pass"),
        (3, "temperror", "cv= of ARC-Seal 3 is not pass"),
        (3, "fail", "it had failed already when it came to host 3"),
    ],
)
def test_what_each_host_said_of_the_chain_must_fit(instance: int, said: str | None, reason: str) -> None:
    message = LETTER
    for number, hop in enumerate(HOPS, start=1):
        message = hop.forge(message, number, seal={"cv": said} if number == instance else {})
    assert why(message) == reason


async def test_chain_that_has_failed_at_once_is_told() -> None:
    assert why(ONE.forge(LETTER, 1, seal={"cv": "fail"})) == "it had failed already when it came to host 1"


@pytest.mark.parametrize(
    ("signature", "seal", "reason"),
    [
        ({}, {"h": "from"}, "ARC-Seal 1 has h="),
        ({}, {"d": None}, "ARC-Seal 1: the signature has no d="),
        ({}, {"s": None}, "ARC-Seal 1: the signature has no s="),
        ({}, {"a": None}, "ARC-Seal 1: the signature has no a="),
        ({}, {"a": "rsa-sha1"}, "ARC-Seal 1: rsa-sha1 proves nothing"),
        ({}, {"t": "soon"}, "ARC-Seal 1: t= is no number"),
        ({}, {"t": "99999999999"}, "ARC-Seal 1: the signature is from the future"),
        ({}, {"i": None}, "i= of ARC-Seal is no number from 1 to 50"),
        ({}, {"i": "0"}, "i= of ARC-Seal is no number from 1 to 50"),
        ({}, {"i": "51"}, "i= of ARC-Seal is no number from 1 to 50"),
        ({}, {"i": "001"}, "i= of ARC-Seal is no number from 1 to 50"),
        ({}, {"i": "1.0"}, "i= of ARC-Seal is no number from 1 to 50"),
        ({}, {"i": "1" * 5000}, "i= of ARC-Seal is no number from 1 to 50"),
        ({"i": "x"}, {}, "i= of ARC-Message-Signature is no number from 1 to 50"),
        ({"i": None}, {}, "i= of ARC-Message-Signature is no number from 1 to 50"),
        ({"d": "one.test; d=two.test"}, {}, "ARC-Message-Signature: the signature field cannot be read"),
        ({"xyz": "x" * 9000}, {}, "ARC-Message-Signature: the signature field is longer than 8192 octets"),
    ],
)
def test_tags_that_make_no_sense_break_the_chain(signature: Tags, seal: Tags, reason: str) -> None:
    assert why(ONE.forge(LETTER, 1, signature=signature, seal=seal)) == reason


def test_message_signature_that_makes_no_sense_is_for_later() -> None:
    assert why(ONE.forge(LETTER, 1, signature={"bh": None})) == ""


@pytest.mark.parametrize(
    ("instance", "good"),
    [
        (b" i=1;", True),
        (b"\r\n\ti = 01 ;", True),
        (b" (first (x\\)) i (y) = 1;", False),  # comments in comments
        (b" (first) i (y) = 1 (z);", True),
        (b" i=1", False),
        (b" I=1;", False),
        (b" i=0;", False),
        (b" i=100;", False),
        (b"", False),
        (b" x=1; i=1;", False),
        (b" " * 300 + b"i=1;", False),
        (b"(" * 5000 + b" i=1;", False),
    ],
)
def test_instance_stands_first_in_the_results(instance: bytes, good: bool) -> None:
    message = chain(1)
    field = field_of(message, "ARC-Authentication-Results", 1)
    changed = b"ARC-Authentication-Results:%b mx.one.test; none\r\n" % instance
    reason = "" if good else "i= of ARC-Authentication-Results is no number from 1 to 50"
    assert why(message.replace(field, changed)) == reason


def long_chain(number: int) -> bytes:
    """So many sets, all in order, though nothing verifies."""
    message = LETTER
    for instance in range(1, number + 1):
        said = b"pass" if instance > 1 else b"none"
        message = (
            b"ARC-Seal: i=%d; a=rsa-sha256; cv=%b; d=one.test; s=k%d; b=AAAA\r\n"
            b"ARC-Message-Signature: i=%d; a=rsa-sha256; d=one.test; s=k%d; h=from; bh=AAAA; b=AAAA\r\n"
            b"ARC-Authentication-Results: i=%d; one.test; none\r\n%b"
        ) % (instance, said, instance, instance, instance, instance, message)
    return message


def test_fifty_sets_are_a_chain_and_fifty_one_are_none() -> None:
    assert why(long_chain(50)) == ""
    assert why(long_chain(51)) == "there are more than 50 sets"


def test_operator_may_want_fewer() -> None:
    assert why(chain(3), max_sets=2) == "there are more than 2 sets"


@pytest.mark.parametrize(
    ("message", "most", "is_unread"),
    [
        (long_chain(51), 50, False),
        (long_chain(3), 2, True),
        (drop(chain(2), "ARC-Seal", 1), 2, False),
        (drop(chain(2), "ARC-Seal", 1), 50, False),
    ],
    ids=["longer than any may be", "longer than we want", "broken for us", "broken for all"],
)
async def test_chain_that_may_be_good_elsewhere_is_one_that_only_we_find_too_long(
    message: bytes, most: int, is_unread: bool
) -> None:
    result = await found(message, max_instances=most)
    assert (result.status, result.is_unread) == ("fail", is_unread)


def test_highest_instance_counts_even_when_it_is_alone() -> None:
    three = HOPS[2].forge(LETTER, 3)
    assert why(three, max_sets=2) == "there are more than 2 sets"


@pytest.mark.parametrize(
    ("fields", "highest", "ended"),
    [
        (b"Subject: i=1; cv=fail\r\n", 0, False),
        (b"ARC-Seal: i=2; cv=pass; b=AAAA\r\n", 2, False),
        (b"ARC-Seal: i=2; cv=fail; b=AAAA\r\n", 2, True),
        (b"ARC-Seal:cv = FAIL\r\n ; i\r\n = 3\r\n", 3, True),
        (b"ARC-Seal: b=AAAA; cv=fail\r\n", 0, True),
        (b"ARC-Seal: bi=9; i=2; xcv=fail\r\n", 2, False),
        (b"ARC-Seal: i=2; cv=failing\r\n", 2, False),
        (b"ARC-Message-Signature: a=b; i=4; cv=fail\r\nARC-Seal: i=3; cv=pass\r\n", 4, False),
        (b"ARC-Message-Signature: z=i=9\r\n", 0, False),
        (b"ARC-Authentication-Results: (i=9;) i=5; a.test; i=8\r\nARC-Seal: cv=pass; i=3\r\n", 5, False),
        (b"ARC-Authentication-Results: a.test; i=8\r\n", 0, False),
        (b"ARC-Seal: i=999999999\r\n", 999999999, False),
    ],
)
def test_what_fields_say_for_themselves_is_read_from_the_tag_that_says_it(
    fields: bytes, highest: int, ended: bool
) -> None:
    header = HeaderSection(fields + b"\r\n")
    assert (highest_instance(header), has_ended(header)) == (highest, ended)


@pytest.mark.parametrize("message", [drop(chain(2), "ARC-Seal", 1), long_chain(51), chain(1).replace(b"cv=none", b"")])
async def test_chain_that_cannot_pass_costs_no_lookup(message: bytes) -> None:
    result = await found(message, Mute())
    assert (result.status, result.instances, result.sealers) == ("fail", 0, ())
    assert result.reason


async def test_newest_signature_that_cannot_pass_costs_no_lookup() -> None:
    result = await found(ONE.forge(LETTER, 1, signature={"bh": None}), Mute())
    assert (result.status, result.reason) == ("fail", "ARC-Message-Signature 1: the signature has no bh=")


async def test_each_key_is_looked_up_once() -> None:
    asked: list[str] = []

    class Counting(Zone):
        async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
            asked.append(name)
            return await super().resolve(name, kind, timeout)

    assert (await found(long_chain(50), Counting({}, cached=False))).reason.endswith("there is no key")
    assert sorted(asked) == sorted(f"k{number}._domainkey.one.test" for number in range(1, 51))
    assert (await found(chain(3), zone())).status == "pass"
