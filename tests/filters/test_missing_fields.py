"""Mail of users gets the fields it lacks, and no other mail does."""

from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parsedate_to_datetime

import pytest

from filters.headers import Headers
from filters.missing_fields import MissingFields
from smtpd.header_fields import all_values_of
from smtpd.memory import Delivered, MemoryServer, Table

FROM = "From: joe@example.test\n"
DATE = "Date: Fri, 01 Jan 2027 00:00:00 +0000\n"
IDENTIFIER = "Message-ID: <1@client.test>\n"
BODY = "\nDate: no field\nMessage-ID: none either\n"
COUNTER = "smtpd_missing_fields_added_total"


async def deliver(content: str | bytes, *, login: str | None = "joe", **options: object) -> tuple[MemoryServer, bytes]:
    table: Table = options
    async with MemoryServer(filters={"missing_fields": (MissingFields, table)}) as server:
        talk = await server.connect(login=login)
        assert (await talk.send(content))[-1].startswith("250 2.0.0")
    return server, server.delivered[0].content


def parsed(content: bytes) -> EmailMessage:
    return message_from_bytes(content, policy=policy.SMTP, _class=EmailMessage)


async def test_message_that_lacks_both_gets_both_once_and_its_own_octets_stay() -> None:
    server, content = await deliver(FROM + BODY)
    message = parsed(content)
    assert len(message.get_all("Date", [])) == len(message.get_all("Message-ID", [])) == 1
    assert not message.defects
    assert content.endswith((FROM + BODY).replace("\n", "\r\n").encode())
    assert server.count(COUNTER, filter="missing_fields", field="date") == 1
    assert server.count(COUNTER, filter="missing_fields", field="message-id") == 1


async def test_date_is_when_it_came_and_the_identifier_leads_to_the_log() -> None:
    server, content = await deliver(FROM + BODY)
    message = parsed(content)
    received = str(message["Received"])
    assert parsedate_to_datetime(message["Date"]) == parsedate_to_datetime(received.rpartition(";")[2].strip())
    (line,) = [line for line in server.log if line["event"] == "message"]
    assert message["Message-ID"] == f"<{line['trace']}@mx.example.test>"


@pytest.mark.parametrize(
    ("fields", "added"),
    [
        (DATE + IDENTIFIER, set()),
        (DATE, {"message-id"}),
        (IDENTIFIER, {"date"}),
        ("DATE : long ago\nmessage-id:\n", set()),
        ("Date:\n Fri, 01 Jan 2027\n 00:00:00 +0000\nMessage-ID:\n <1@client.test>\n", set()),
        ("Resent-Date: x\nX-Message-ID: y\nOrig-Date: z\n", {"date", "message-id"}),
        ("Subject: x\n Date: folded\n Message-ID: folded\n", {"date", "message-id"}),
    ],
)
async def test_field_that_is_there_stays_as_it_is_whatever_it_says(fields: str, added: set[str]) -> None:
    server, content = await deliver(FROM + fields + BODY)
    assert content.endswith((FROM + fields + BODY).replace("\n", "\r\n").encode())
    for field in ("date", "message-id"):
        assert server.count(COUNTER, filter="missing_fields", field=field) == (field in added)
        assert len(all_values_of(content[: content.index(b"\r\n\r\n")], field)) == 1


async def test_mail_of_whoever_did_not_log_in_is_left_alone() -> None:
    _, content = await deliver(FROM + BODY, login=None)
    assert parsed(content)["Date"] is parsed(content)["Message-ID"] is None


@pytest.mark.parametrize(("option", "field"), [("date", "Date"), ("message_id", "Message-ID")])
async def test_each_field_can_be_left_out(option: str, field: str) -> None:
    _, content = await deliver(FROM + BODY, **{option: False})
    message = parsed(content)
    assert message[field] is None
    assert {"Date", "Message-ID"} - set(message) == {field}


@pytest.mark.parametrize("content", [b"", b"\r\n", b"\r\nHi\r\n", b"This is no header\r\n", b" a blank first\r\n"])
async def test_content_without_a_header_section_keeps_all_its_octets(content: bytes) -> None:
    _, delivered = await deliver(content)
    assert delivered.endswith(content)
    assert parsed(delivered)["Date"] is not None


async def test_other_filters_see_the_message_as_it_came() -> None:
    filters = {"missing_fields": MissingFields, "headers": (Headers, {"required": ["Date"]})}
    async with MemoryServer(filters=filters) as server:
        talk = await server.connect(login="joe")
        assert (await talk.send(FROM + BODY))[-1].startswith("550 5.6.0 The Date field is missing")


async def test_observing_adds_nothing() -> None:
    _, content = await deliver(FROM + BODY, mode="observe")
    assert parsed(content)["Date"] is None


async def test_every_message_of_a_connection_gets_an_identifier_of_its_own() -> None:
    async with MemoryServer(filters={"missing_fields": MissingFields}) as server:
        talk = await server.connect(login="joe")
        for _ in range(2):
            await talk.send(FROM + BODY)
    assert len(set(map(identifier, server.delivered))) == 2


def identifier(delivered: Delivered) -> str:
    return str(parsed(delivered.content)["Message-ID"])
