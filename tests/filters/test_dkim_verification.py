"""Signatures and the message they are on: what may change on the way, and what may not."""

import re
import time
from collections.abc import Iterator

import dkim
import pytest
from dkim_house import ED25519, JOE, SMALL, Witness, house, only
from hypothesis import assume, given
from hypothesis import strategies as st
from signer import LETTER, NAMES, Signer

from filters.dkim_header import HeaderSection
from filters.dkim_keys import Unusable, parse_key
from filters.dkim_signature import Signature, described, read_signature, read_tags
from filters.dkim_verification import Candidate, Verification
from smtpd.zone import Zone


@pytest.mark.parametrize(
    ("change", "result", "reason"),
    [
        ((b"From:", b"From: eve@eve.test\r\nFrom:"), "fail", "a From field is not signed"),
        ((b"From:", b"FROM : eve@eve.test\r\nFrom:"), "fail", "a From field is not signed"),
        ((b"Subject:", b"Subject: Buy\r\nSubject:"), "policy", "a second Subject field is not signed"),
        ((b"Date:", b"DATE: x\r\nDate:"), "policy", "a second Date field is not signed"),
        ((b"From:", b"X-New: field\r\nFrom:"), "pass", ""),
        ((b"To:", b"To: first@c.test\r\nTo:"), "pass", ""),  # see `single`
        ((b"From: Joe <joe@a.test>\r\n", b""), "permerror", "the message has no From field"),
        ((b"Subject: Hi  there", b"Subject:\r\n Hi\r\n\t there\t"), "pass", ""),
        ((b"Subject: Hi", b"subject :Hi"), "pass", ""),
        ((b"you.\r\n", b"you.\t \r\n"), "pass", ""),
        ((b"Joe\r\n", b"Joe\r\n\r\n \r\n\r\n"), "pass", ""),
        ((b"Joe\r\n", b"Joe"), "pass", ""),
        ((b"Joe\r\n", b"Joe\t "), "pass", ""),
        ((b"Joe\r\n", b"Joe\r\nPS\r\n"), "fail", "the body was changed"),
        ((b"Subject: Hi", b"Subject: High"), "fail", "the signature does not match"),
        ((b"Subject:", b"no field\r\nSubject:"), "neutral", "line 4 of the header is no field"),
    ],
)
async def test_change_on_the_way_is_found_where_it_matters(
    change: tuple[bytes, bytes], result: str, reason: str
) -> None:
    signature = await only(JOE.field() + LETTER.replace(*change, 1))
    assert (signature.result, signature.reason) == (result, reason)


async def test_second_subject_is_fine_when_both_are_signed() -> None:
    twice = LETTER.replace(b"Subject:", b"Subject: One\r\nSubject:")
    assert (await only(JOE.sign(twice, h=f"{NAMES}:subject"))).result == "pass"
    assert (await only(JOE.sign(twice), {"single": []})).result == "pass"
    assert (await only(JOE.sign(twice, h="from:date"))).result == "pass"  # the signer never said anything about it


async def test_body_without_line_end_empty_or_absent_is_verified_as_it_came() -> None:
    head, _, _ = LETTER.partition(b"\r\n\r\n")
    for message in (LETTER[:-2], head + b"\r\n\r\n", head + b"\r\n", head, head + b"\r\n\r\n\r\n\r\n"):
        for kind in ("simple/simple", "relaxed/relaxed"):
            assert (await only(JOE.sign(message, c=kind))).result == "pass", message


async def test_international_domains_are_looked_up_as_a_labels() -> None:
    signer = Signer("xn--bcher-kva.test")
    message = signer.sign(d="bücher.test", i="@bücher.test", s="s")
    async with house(resolver=Zone(signer.zone)) as server:
        await (await server.connect()).send(message)
    signature = Witness.seen.pop().signatures[0]
    assert (signature.result, signature.domain) == ("pass", "xn--bcher-kva.test")


async def test_pass_counts_only_when_all_of_the_body_is_signed() -> None:
    whole = JOE.sign(l=str(len(b"Hello, you.\r\n\r\nJoe\r\n")))
    assert await only(whole) == await only(whole, {"body_length": "count"})
    signature = await only(whole + b"Buy this\r\n")
    assert (signature.result, signature.counts) == ("pass", False)
    assert signature.reason == "10 octets of the body are not signed"
    assert (await only(whole + b"Buy this\r\n", {"body_length": "count"})).counts


async def test_pass_of_a_testing_key_counts_only_when_the_operator_says_so() -> None:
    record = f"t=y; p={JOE.public}"
    assert not (await only(JOE.sign(), s=record)).counts
    assert (await only(JOE.sign(), {"testing_keys": "count"}, s=record)).counts
    assert (await only(JOE.sign(), s=record)).testing


def test_signatures_have_results_before_the_first_octet_of_the_body_is_read() -> None:
    content = InMemory(JOE.sign(LETTER.replace(b"Hi", b"Ho")).replace(b"Ho", b"Hi", 1))
    forged = work_on(content)
    assert [(one.result, one.unread) for one in forged.so_far()] == [("fail", False)]
    good = work_on(InMemory(JOE.sign()))
    assert [(one.result, one.unread) for one in good.so_far()] == [("temperror", True)]


# Beside dkimpy

SIGNERS = {signer.name: signer for signer in (JOE, SMALL, ED25519)}
bodies = st.lists(
    st.sampled_from([b"Hello\r\n", b"\r\n", b" \t\r\n", b"two  words \r\n", b"\tx\r\n", b".\r\n"]), max_size=6
).map(b"".join)
extra_fields = st.lists(
    st.sampled_from([b"X: 1\r\n", b"To: b@b.test\r\n", b"Subject: a  b\r\n\tc \r\n", b"Cc:\r\n"]), max_size=3
).map(b"".join)
tags = st.fixed_dictionaries(
    {
        "c": st.sampled_from(["simple/simple", "simple/relaxed", "relaxed/simple", "relaxed/relaxed", "relaxed"]),
        "h": st.sampled_from(["from", NAMES, "from:from:to:to:subject", "date:x:x:from", "cc:from:to"]),
    },
    optional={"l": st.sampled_from(["0", "3"]), "i": st.sampled_from(["@a.test", "@b.a.test", "@b.test"])},
)
OCTETS = b"xX \t:;=/1."
_ODD_NAME = re.compile(rb"^:|^[!-9;-~]+[ \t]+:", re.MULTILINE)


class InMemory:
    """Content as it is."""

    def __init__(self, octets: bytes) -> None:
        self.octets = octets
        self.size = len(octets)

    def chunks(self) -> Iterator[bytes]:
        yield self.octets

    def head(self) -> bytes:
        return self.octets[: self.octets.index(b"\r\n\r\n") + 4]

    def close(self) -> None:
        """Nothing is open."""


def work_on(content: InMemory) -> Verification:
    """The work that is to come, for a signature with JOE's key."""
    header = HeaderSection(content.head())
    (place,) = header.places(b"dkim-signature")
    tags = read_tags(header.value(place))
    candidate = Candidate(place, described(tags), read_signature(tags, time.time()))
    return Verification(header, content, [candidate], {JOE.name: parse_key(JOE.record.encode())})


def passes(message: bytes) -> bool:
    """Whether ours says so, guards apart."""
    content = InMemory(message)
    try:
        header = HeaderSection(content.head())
        (place,) = header.places(b"dkim-signature")
        tags = read_tags(header.value(place))
        signature: Signature = read_signature(tags, time.time())
    except ValueError:  # no such field any more
        return False
    except Unusable as unusable:
        assume(unusable.reason != "the From field is not signed")  # which dkimpy does not care about
        return False
    keys = {name: parse_key(signer.record.encode()) for name, signer in SIGNERS.items()}
    if signature.key_name not in keys:
        return False
    (report,) = Verification(header, content, [Candidate(place, described(tags), signature)], keys).run()
    assume(report.reason != "l= is more than the body has")  # neither about this
    return report.result == "pass"


def passes_dkimpy(message: bytes) -> bool:
    records = {f"{name}.".encode(): signer.record.encode() for name, signer in SIGNERS.items()}
    try:
        answer: bool = dkim.DKIM(message).verify(dnsfunc=lambda name, timeout: records.get(name.lower()))
    except (dkim.DKIMException, ValueError, IndexError):  # the last two escape it by mistake
        return False
    return answer


@given(
    st.sampled_from(list(SIGNERS.values())), extra_fields, bodies, tags, st.integers(0, 3000), st.sampled_from(OCTETS)
)
def test_ours_and_dkimpy_agree_on_good_and_on_changed_messages(
    signer: Signer, more: bytes, body: bytes, tags: dict[str, str | None], place: int, octet: int
) -> None:
    head = LETTER.partition(b"\r\n\r\n")[0]
    message = signer.sign(head + b"\r\n" + more + b"\r\n" + body, **tags)
    assert passes(message) == passes_dkimpy(message) == (tags.get("i") != "@b.test")
    place %= len(message)
    assume(message[place] not in b"\r\n")  # dkimpy takes a lone CR or LF for a line end; no such message gets here
    changed = message[:place] + bytes([octet]) + message[place + 1 :]
    assume(b"; l=" not in changed or b" l=0;" in changed or b" l=3;" in changed)
    # A blank before the colon is fine (RFC 5322 §4.5.3), a name that begins with one is none; dkimpy thinks otherwise.
    assume(_ODD_NAME.search(changed) is None)
    assert passes(changed) == passes_dkimpy(changed), changed
