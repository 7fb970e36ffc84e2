"""Postfix as the sending server: a real queue that retries, and tells the sender when it gives up."""

from pathlib import Path

from tests.interop.conftest import (
    LETTER,
    ONLY_BOB_AND_CAROL,
    Serve,
    StartPostfix,
    metrics,
    read,
    the_only_mail,
)
from tests.interop.letter import without_hops


def test_mail_arrives_byte_for_byte_and_encrypted_by_starttls(serve: Serve, postfix: StartPostfix) -> None:
    server = serve()
    sender = postfix(server)
    sender.send("bob@example.test")
    sender.wait_until_empty()
    mail = the_only_mail(server)
    assert without_hops(mail.content) == LETTER
    assert (mail.protocol, mail.return_path) == ("ESMTPS", "<eve@sender.test>")
    assert mail.received.startswith("from sender.test ([127.0.0.1]) by mx.test (smtpd) with ESMTPS (TLSv1.3 TLS_")
    line = server.wait_for("message")
    assert (line["helo"], line["sender"]) == ("sender.test", "eve@sender.test")
    # What the sender's postmaster reads leads to our line.
    assert sender.log.wait_for(r"status=sent \(250 2\.0\.0 Ok, delivered \[" + line["trace"])


def test_hundred_recipients_in_one_burst(serve: Serve, postfix: StartPostfix) -> None:
    server = serve()
    sender = postfix(server, "alt", "smtp_tls_security_level = none", "smtp_destination_recipient_limit = 100")
    sender.send(*(f"user{number}@example.test" for number in range(100)))
    sender.wait_until_empty()
    for number in range(100):
        mail = the_only_mail(server, f"user{number}")
        assert without_hops(mail.content) == LETTER
        assert mail.delivered_to is None
    server.wait_for("message")
    assert len(server.events("message")) == 1


def test_more_recipients_than_we_take_at_once_come_in_a_second_transaction(serve: Serve, postfix: StartPostfix) -> None:
    server = serve({"smtpd": {"max_recipients": 3}})
    sender = postfix(server)
    users = [f"user{number}" for number in range(8)]
    sender.send(*(f"{user}@example.test" for user in users))
    sender.wait_until_empty()
    for user in users:
        assert the_only_mail(server, user)


def test_big_message_that_spills_to_disk(serve: Serve, postfix: StartPostfix) -> None:
    server = serve()
    sender = postfix(server)
    lines = b"".join(b".%d " % number + b"abcdefghij" * 7 + b"\r\n" for number in range(5 * 1024 * 1024 // 80))
    letter = LETTER + lines
    sender.send("bob@example.test", letter=letter)
    sender.wait_until_empty()
    assert without_hops(the_only_mail(server).content) == letter
    assert metrics(server)['smtpd_messages_size_bytes_bucket{le="4194304.0",listener="smtp"}'] == 0


def test_address_beyond_ascii(serve: Serve, postfix: StartPostfix) -> None:
    server = serve()
    sender = postfix(server, "smtp", "smtputf8_enable = yes")
    sender.send("jürgen@example.test", sender="ève@sender.test")
    sender.wait_until_empty()
    mail = the_only_mail(server, "j%C3%BCrgen")
    assert (mail.protocol, mail.return_path) == ("UTF8SMTPS", "<ève@sender.test>")


def test_temporary_failure_is_tried_again_and_delivered_once(
    serve: Serve, postfix: StartPostfix, directory: Path
) -> None:
    server = serve()
    sender = postfix(server)
    in_the_way = directory / "mail" / "example.test"
    in_the_way.write_text("a file where the mailboxes should be")
    sender.send("bob@example.test")
    sender.log.wait_for(r"status=deferred \(host 127\.0\.0\.1\[127\.0\.0\.1\] said: 451 4\.3\.0 The message could not")
    in_the_way.unlink()
    sender.wait_until_empty()
    assert without_hops(the_only_mail(server).content) == LETTER
    samples = metrics(server)
    refused = 'smtpd_messages_rejected_total{listener="smtp",reason="store-failed",recipient_domain="example.test"}'
    assert samples[refused] >= 1
    assert samples['smtpd_messages_received_total{listener="smtp",recipient_domain="example.test"}'] == 1


def test_server_that_restarts_loses_nothing(serve: Serve, postfix: StartPostfix) -> None:
    server = serve()
    port = server.port("smtp")
    sender = postfix(server)
    server.stop()
    sender.send("bob@example.test")
    sender.log.wait_for(r"status=deferred \(connect to 127\.0\.0\.1")
    server = serve({"smtpd": {"listeners": {"smtp": {"address": f"127.0.0.1:{port}"}}}})
    sender.wait_until_empty()
    assert without_hops(the_only_mail(server).content) == LETTER


def test_permanent_refusal_of_one_of_two_comes_back_to_the_sender(serve: Serve, postfix: StartPostfix) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    sender = postfix(server)
    # The sender's own address is served here, too, so its bounce arrives.
    sender.send("bob@example.test", "nobody@example.test", sender="carol@example.test")
    sender.wait_until_empty()
    assert without_hops(the_only_mail(server, "bob").content) == LETTER
    bounce = read(server.mailbox("carol")[0])
    assert bounce.return_path == "<>"
    trace = server.wait_for("refused")["trace"]
    assert b"No mailbox here by the name" in bounce.content
    assert trace.encode() in bounce.content
    assert b"Status: 5.1.1" in bounce.content
