"""The digest: the same message gives the same, whatever path it took; another one never does."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from smtpd.content import MAX_HEAD, Content
from smtpd.limits import ContentBudget
from smtpd.message_key import HINT, message_hint, message_key

TRACE = ("Received", "Return-Path", "Delivered-To", "X-Spam-Score", "Authentication-Results", "DKIM-Signature")


@dataclass(frozen=True)
class Letter:
    """What makes a message itself."""

    sender: str = "joe@client.test"
    identifier: bytes = b" <1@client.test>"
    dates: tuple[bytes, ...] = (b" Sat, 21 Nov 2026 10:00:00 +0000",)
    authors: tuple[bytes, ...] = (b" joe@client.test",)
    body: bytes = b"Hi\r\n"
    others: tuple[bytes, ...] = field(default=(), compare=False)

    def octets(self) -> bytes:
        named = [(b"Message-ID", self.identifier)]
        named += [(b"Date", value) for value in self.dates] + [(b"From", value) for value in self.authors]
        return b"".join([*self.others, *(b"%b:%b\r\n" % pair for pair in named), b"\r\n", self.body])

    def key(self) -> str | None:
        return message_key(self.sender, content(self.octets()))


def content(octets: bytes, *cuts: int, in_memory: int = 1 << 30) -> Content:
    made = Content(ContentBudget(0), in_memory=in_memory)
    for start, end in zip((0, *cuts), (*cuts, len(octets)), strict=True):
        made.write(octets[start:end])
    return made


def key_of(octets: bytes) -> str | None:
    return message_key("joe@client.test", content(octets))


# Few letters, so that parts often differ only by where one ends and the next begins.
values = some.text("ab:\t", max_size=3).map(str.encode)
letters = some.builds(
    Letter,
    sender=some.text("ab", max_size=2),
    identifier=values.map(lambda value: b"<I" + value),
    dates=some.lists(values, max_size=2).map(tuple),
    authors=some.lists(values, max_size=2).map(tuple),
    body=some.text("ab\r\n", max_size=4).map(str.encode),
)


@given(letters, letters)
def test_two_messages_have_the_same_key_only_if_everything_that_counts_is_the_same(one: Letter, two: Letter) -> None:
    assert one.key() is not None
    assert (one.key() == two.key()) == (one == two)


@pytest.mark.parametrize(
    "change",
    [
        {"sender": "jim@client.test"},
        {"sender": ""},
        {"identifier": b" <2@client.test>"},
        {"dates": (b" Sat, 21 Nov 2026 10:00:01 +0000",)},
        {"dates": ()},
        {"authors": (b" jim@client.test",)},
        {"authors": (b" joe@client.test", b" joe@client.test")},
        {"body": b"Hi!\r\n"},
        {"body": b"Hi\r\n\r\n"},
        {"body": b""},
    ],
)
def test_every_part_counts(change: dict[str, object]) -> None:
    assert replace(Letter(), **change).key() != Letter().key()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (Letter(dates=(b"x",), authors=()), Letter(dates=(), authors=(b"x",))),
        (Letter(dates=(b"ab", b"")), Letter(dates=(b"a", b"b"))),
        (Letter(dates=(b"a",), authors=(b"b", b"c")), Letter(dates=(b"a", b"b"), authors=(b"c",))),
        (Letter(sender="joe", identifier=b"x<1>"), Letter(sender="joex", identifier=b"<1>")),
        (Letter(authors=(b"ab",), body=b"c"), Letter(authors=(b"a",), body=b"bc")),
    ],
)
def test_octets_that_move_from_one_part_to_the_next_count(one: Letter, two: Letter) -> None:
    assert one.key() != two.key()


headers = some.lists(
    some.tuples(
        some.sampled_from(TRACE), some.text("abc <>;=", max_size=20), some.sampled_from(["", "\r\n\tmore"])
    ).map(lambda parts: f"{parts[0]}: {parts[1]}{parts[2]}\r\n".encode()),
    max_size=4,
).map(tuple)


@given(headers)
def test_the_path_does_not_matter(others: tuple[bytes, ...]) -> None:
    assert replace(Letter(), others=others).key() == Letter().key()


@given(some.data())
def test_how_the_octets_are_cut_and_where_they_are_kept_does_not_matter(data: some.DataObject) -> None:
    octets = Letter(body=b"a" * 300 + b"\r\n").octets()
    cuts = sorted(data.draw(some.lists(some.integers(0, len(octets)), max_size=6)))
    source = content(octets, *cuts, in_memory=data.draw(some.sampled_from([0, 100, 1 << 20])))
    assert message_key("joe@client.test", source) == Letter(body=b"a" * 300 + b"\r\n").key()
    source.close()


def test_long_pieces_are_read_from_where_the_body_begins() -> None:
    body = bytes(range(256)) * 4096
    letter = Letter(body=body)
    pieces = content(letter.octets(), 10, 6000, 20_000, in_memory=0)
    assert message_key(letter.sender, pieces) == letter.key()
    pieces.close()
    assert replace(letter, body=body[:-1] + b"!").key() != letter.key()


def test_a_header_section_in_many_pieces_is_no_part_of_the_body() -> None:
    long = replace(Letter(), others=(b"X: " + b"x" * 30_000 + b"\r\n",))
    pieces = content(long.octets(), 5_000, 10_000, 20_000, 30_020)
    assert len(list(pieces.chunks())) > 3
    assert message_key(long.sender, pieces) == Letter().key()


@pytest.mark.parametrize("cuts", [(), (MAX_HEAD,), (MAX_HEAD + 10,), (5_000,)])
def test_a_header_section_beyond_the_limit_gives_no_key_however_it_is_cut(cuts: tuple[int, ...]) -> None:
    long = replace(Letter(), others=(b"X: " + b"x" * MAX_HEAD + b"\r\n",))
    early = b"Message-ID: <1@a.test>\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\nHi"
    assert message_key(long.sender, content(long.octets(), *cuts)) is None
    assert message_key(long.sender, content(early, *cuts)) is None


def test_folding_and_the_case_of_names_do_not_matter() -> None:
    plain = b"Message-ID: <1@a.test>\r\nFrom: a@a.test, b@a.test\r\n\r\nHi"
    assert key_of(b"message-id :\r\n <1@a.test>\r\nFROM: a@a.test,\r\n b@a.test\r\n\r\nHi") == key_of(plain)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\r\nHi",
        b"From: a@a.test\r\n\r\nHi",
        b"Message-ID:\r\n\r\nHi",
        b"Message-ID: \r\n \t\r\n\r\nHi",
        b"Message-ID: <>\r\n\r\nHi",
        b"Message-ID: <1@a.test>\r\nMessage-ID: <1@a.test>\r\n\r\nHi",
        b"Message-ID: <1@a.test>\r\nmessage-id: <2@a.test>\r\n\r\nHi",
        b"From: a@a.test\r\n\r\nMessage-ID: <1@a.test>\r\n\r\nHi",
        b"Message-ID: <1@a.test>\r\nX: " + b"x" * MAX_HEAD + b"\r\nMessage-ID: <2@a.test>\r\n\r\nHi",
    ],
)
def test_without_exactly_one_identifier_there_is_no_key(octets: bytes) -> None:
    assert key_of(octets) is None


def test_a_message_without_body_has_a_key() -> None:
    assert key_of(b"Message-ID: <1@a.test>") is not None
    assert key_of(b"Message-ID: <1@a.test>\r\n\r\n") is not None


@pytest.mark.parametrize(
    ("octets", "hint", "digest"),
    [
        (
            b"Message-ID: <1@a>\r\nDate: Mon\r\nfrom : a\r\n b\r\n\r\nbody\r\n",
            "244c7fa8526d1b8c",
            "2e9a8760739abac601aeabaa023552c5fc71622b00a555d5c87035e604a6f10d",
        ),
        (
            b"MESSAGE-id:<1@a>\r\n" + b"From:\r\n" * 3 + b"From: x\r\nDate:\r\n" * 2 + b"no field\r\n\r\n",
            "f787d99ef40f31cc",
            "aac2704017e91fc5719e46fafbed43a815499a7cd3f00b05fc90fb98241762a3",
        ),
    ],
)
def test_keys_stay_what_they_were(octets: bytes, hint: str, digest: str) -> None:
    assert key_of(octets) == hint + digest  # or a message from before an update could be delivered twice


@given(letters, letters, headers, headers)
def test_messages_with_the_same_key_have_the_same_hint(
    one: Letter, two: Letter, before: tuple[bytes, ...], behind: tuple[bytes, ...]
) -> None:
    """Or a message could be thought to be new that somebody has already."""
    head = b"".join([*before, b"MESSAGE-ID : \r\n ", one.identifier, b"\r\n", *behind, b"\r\n"])
    assert message_hint(one.sender, head) == message_hint(one.sender, head.replace(b"\r\n <", b" <"))
    key = replace(one, others=before).key()
    assert key is not None
    assert key[:HINT] == message_hint(one.sender, content(replace(one, others=behind).octets()).head())
    same_hint = (one.sender, one.identifier) == (two.sender, two.identifier)
    assert (two.key() or "").startswith(key[:HINT]) is same_hint


lines = some.lists(
    some.sampled_from(
        [
            b"Message-ID: <1@a.test>", b"message-id:<2@a.test>", b"Message-ID :", b" <1@a.test>", b"\t\r",
            b"Message-ID", b"From: a@a.test", b"Message-ID-Hash: x", b"", b"Hi",
        ]
    ),
    max_size=6,
).map(b"\r\n".join)  # fmt: skip


@given(lines, some.integers(0, 100))
def test_every_key_begins_with_the_hint_however_odd_the_header_section(octets: bytes, cut: int) -> None:
    key = message_key("joe@client.test", content(octets, min(cut, len(octets))))
    hint = message_hint("joe@client.test", content(octets).head())
    assert key is None or (len(key), key[:HINT]) == (80, hint)
