"""Key records: what they allow, and which are not computed with."""

import asyncio
import base64
from contextlib import suppress

import pytest
from dkim_house import JOE, SMALL, Witness, house, only
from hypothesis import given
from hypothesis import strategies as st
from resolvers import Slow

from filters.dkim_keys import AT_ONCE, MAX_KEPT, Keys, Unusable, parse_key
from smtpd.dns import Answer, LimitedResolver, Type
from smtpd.zone import Zone


@pytest.mark.parametrize(
    ("record", "result", "reason"),
    [
        ("{public}", "permerror", "the key record cannot be read"),
        ("p={public}", "pass", ""),
        ("v=DKIM1; p={public}; n=note; unknown=tag", "pass", ""),
        ("v=DKIM1; h=sha1:sha256; s=email:other; t=y:s; p={public}", "pass", "the key is only tried"),
        ("v=DKIM1; s=*; t=S; p={public}", "pass", ""),
        ("v=DKIM2; p={public}", "permerror", "the record is of another version than DKIM1"),
        ("v=DKIM1; k=rsa", "permerror", "the record holds no key"),
        ("v=DKIM1; p=", "permerror", "the key was revoked"),
        ("v=DKIM1; p=AAAA", "permerror", "the key is no RSA key"),
        ("v=DKIM1; p=A", "permerror", "the key is not base64"),
        ("v=DKIM1; k=dsa; p={public}", "permerror", "the key is of an unknown kind"),
        ("v=DKIM1; k=ed25519; p={public}", "permerror", "the key is no Ed25519 key"),
        ("v=DKIM1; s=tlsrpt; p={public}", "permerror", "the key is not for mail"),
        ("v=DKIM1; h=sha1; p={public}", "permerror", "the key does not allow the hash algorithm"),
        ("v=DKIM1; n=" + "x" * 4096 + "; p={public}", "permerror", "the key record is longer than 4096 octets"),
    ],
)
async def test_key_decides_too(record: str, result: str, reason: str) -> None:
    signature = await only(JOE.sign(), s=record.format(public=JOE.public))
    assert (signature.result, signature.reason) == (result, reason)


async def test_strict_key_allows_no_subdomain_in_i() -> None:
    strict = f"t=s; p={JOE.public}"
    assert (await only(JOE.sign(i="joe@a.test"), s=strict)).result == "pass"
    assert (await only(JOE.sign(i="joe@b.a.test"), s=strict)).reason == "the key does not allow subdomains in i="


async def test_small_keys_count_as_far_as_the_operator_wants() -> None:
    assert (await only(SMALL.sign())).result == "pass"
    signature = await only(SMALL.sign(), {"min_rsa_bits": 2048})
    assert (signature.result, signature.reason) == ("policy", "the key has 1024 bits, fewer than 2048")


async def test_key_that_cannot_be_looked_up_is_a_temperror() -> None:
    async with house(resolver=Zone({JOE.name: {"TXT": "tempfail: servfail"}})) as server:
        await (await server.connect()).send(JOE.sign())
        assert server.delivered[0].labels == {"dkim-temperror"}
    assert Witness.seen.pop().signatures[0].reason == "the key cannot be looked up now (servfail)"


async def test_first_usable_record_of_several_is_taken() -> None:
    records = ["v=spf1 -all", "v=DKIM1; p=", JOE.record]
    async with house(resolver=Zone({JOE.name: {"TXT": records}})) as server:
        await (await server.connect()).send(JOE.sign())
    assert Witness.seen.pop().signatures[0].result == "pass"


def integer(number: int) -> bytes:
    octets = number.to_bytes(number.bit_length() // 8 + 1)
    return b"\x02\x82" + len(octets).to_bytes(2) + octets


def rsa_record(modulus: int, exponent: int) -> bytes:
    """A record with any numbers in it (RFC 8017, appendix A.1.1)."""
    numbers = integer(modulus) + integer(exponent)
    return b"k=rsa; p=" + base64.b64encode(b"\x30\x82" + len(numbers).to_bytes(2) + numbers)


@pytest.mark.parametrize(
    ("modulus", "exponent", "reason"),
    [
        ((1 << 16_000) - 1, 65537, "the key has 16000 bits, more than 4096"),
        ((1 << 8_000) - 1, (1 << 8_000) - 3, "the key has 8000 bits, more than 4096"),
        ((1 << 4096) - 1, (1 << 4096) - 3, "the exponent of the key has more than 33 bits"),
        ((1 << 2048) - 1, 1 << 33, "the exponent of the key has more than 33 bits"),
        ((1 << 1023) - 1, 65537, "the key has 1023 bits, fewer than 1024"),
        (0, 65537, "the key has 0 bits, fewer than 1024"),
        ((1 << 2048) - 1, 0, "the key is no RSA key"),
        ((1 << 2048) - 1, 2, "the key is no RSA key"),
        ((1 << 2048) - 2, 65537, "the key is no RSA key"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.bit_length()} bits",
)
def test_hostile_numbers_are_refused_before_anything_is_computed(modulus: int, exponent: int, reason: str) -> None:
    with pytest.raises(Unusable) as problem:
        parse_key(rsa_record(modulus, exponent))
    assert problem.value.reason == reason


@pytest.mark.parametrize("bits", [1024, 4096])
def test_bounds_of_keys_are_exact(bits: int) -> None:
    parse_key(rsa_record((1 << bits) - 1, (1 << 33) - 1))
    with pytest.raises(Unusable):
        parse_key(rsa_record((1 << bits) - 1, 65537), min_bits=1025, max_bits=4095)


def test_length_that_claims_more_than_there_is_is_no_key() -> None:
    for octets in (
        b"\x30\xff" + b"\xff" * 127,
        b"\x30\x06\x02\x84\xff\xff\xff\xff",
        b"\x30",
        b"\x30\x04\x02\x01\x03\x02",
    ):
        with pytest.raises(Unusable) as problem:
            parse_key(b"p=" + base64.b64encode(octets))
        assert problem.value.reason == "the key is no RSA key"


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda octets: b"k=rsa; p=" + base64.b64encode(octets)))
def test_any_record_is_a_key_or_unusable(record: bytes) -> None:
    with suppress(Unusable):
        parse_key(record)


def test_keys_are_parsed_once_and_kept_within_limits() -> None:
    keys = Keys(min_bits=1024, max_bits=4096)
    record = JOE.record.encode()
    first = keys.parse(record)
    assert keys.parse(record) is first
    for number in range(MAX_KEPT):
        keys.parse(record + b"; n=%d" % number)
    assert keys.parse(record) is not first


async def test_only_a_few_records_of_one_name_are_looked_at() -> None:
    records = ["v=DKIM1; p=", "p=A", "p=A", "v=spf1", JOE.record]
    async with house(resolver=Zone({JOE.name: {"TXT": records}})) as server:
        await (await server.connect()).send(JOE.sign())
    assert Witness.seen[0].signatures[0].reason == "the key was revoked"


class Crowd(Zone):
    """Notes in which order it is asked, and how many questions are on their way at the same time."""

    def __init__(self) -> None:
        super().__init__({}, cached=False)
        self.asked: list[str] = []
        self.on_their_way = self.most = 0

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        self.asked.append(name)
        self.on_their_way += 1
        self.most = max(self.most, self.on_their_way)
        for _ in range(len(self.asked) % 3):  # some answer sooner than others
            await asyncio.sleep(0)
        self.on_their_way -= 1
        return await super().resolve(name, kind, timeout)


NAMES = [f"s{number:02}._domainkey.a.test" for number in range(100)]


async def test_of_many_keys_a_few_are_looked_up_at_a_time_and_each_once() -> None:
    crowd = Crowd()
    found = await Keys(min_bits=1024, max_bits=4096).find(crowd, NAMES, 60.0)
    assert crowd.most == AT_ONCE
    assert crowd.asked == NAMES
    assert {problem.reason for problem in found.values() if isinstance(problem, Unusable)} == {"there is no key"}
    assert sorted(found) == NAMES


async def test_the_limit_of_a_message_lets_the_first_keys_through() -> None:
    crowd = Crowd()
    found = await Keys(min_bits=1024, max_bits=4096).find(LimitedResolver(crowd, 60), NAMES)
    assert crowd.asked == NAMES[:60]
    results = [one.result for one in (found[name] for name in NAMES) if isinstance(one, Unusable)]
    assert results == ["permerror"] * 60 + ["temperror"] * 40


async def test_time_for_keys_is_one_for_all_of_them() -> None:
    class Late(Slow):
        asked = 0

        async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
            self.asked += 1
            return await super().resolve(name, kind, timeout)

    late = Late({})
    found = await Keys(min_bits=1024, max_bits=4096).find(late, NAMES, 0.01)
    assert late.asked == AT_ONCE
    assert {one.reason for one in found.values() if isinstance(one, Unusable)} == {
        "the key cannot be looked up now (timeout)"
    }
    assert len(found) == len(NAMES)
