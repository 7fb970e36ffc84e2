"""Postfix as the sending server: a real queue that retries, and tells the sender when it gives up."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Server
from tests.interop.conftest import (
    LETTER,
    ONLY_BOB_AND_CAROL,
    Daemon,
    Peer,
    Serve,
    metrics,
    read,
    run,
    the_only_mail,
)

SETTINGS = """\
compatibility_level = 3.6
queue_directory = {directory}/spool
data_directory = {directory}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
meta_directory = /etc/postfix
shlib_directory = /usr/lib/postfix
mail_owner = postfix
setgid_group = postdrop
maillog_file = /dev/stdout
myhostname = sender.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_transport = error:no local
relayhost = [127.0.0.1]:{port}
smtp_host_lookup = native
smtp_tls_security_level = may
smtp_tls_loglevel = 1
smtp_tls_connection_reuse = no
minimal_backoff_time = 1s
maximal_backoff_time = 1s
queue_run_delay = 1s
"""
SERVICES = [  # name, type and privacy, wake-up time, process limit, command
    ("pickup", "unix n", "60", "1", "pickup"),
    ("cleanup", "unix n", "-", "0", "cleanup"),
    ("qmgr", "unix n", "1", "1", "qmgr"),
    ("tlsmgr", "unix -", "1000?", "1", "tlsmgr"),
    ("rewrite", "unix -", "-", "-", "trivial-rewrite"),
    ("bounce", "unix -", "-", "0", "bounce"),
    ("defer", "unix -", "-", "0", "bounce"),
    ("trace", "unix -", "-", "0", "bounce"),
    ("verify", "unix -", "-", "1", "verify"),
    ("flush", "unix n", "1000?", "0", "flush"),
    ("proxymap", "unix -", "-", "-", "proxymap"),
    ("smtp", "unix -", "-", "-", "smtp"),
    ("error", "unix -", "-", "-", "error"),
    ("retry", "unix -", "-", "-", "error"),
    ("discard", "unix -", "-", "-", "discard"),
    ("anvil", "unix -", "-", "1", "anvil"),
    ("scache", "unix -", "-", "1", "scache"),
    ("postlog", "unix-dgram n", "-", "1", "postlogd"),
]


class Postfix:
    """A sending mail server with a queue of its own; all mail goes to one port on this machine."""

    def __init__(self, directory: Path, daemon: Daemon, sendmail: str, queue: str) -> None:
        self.log = daemon
        self._config = directory / "conf"
        self._sendmail = sendmail
        self._queue = queue

    def send(self, *recipients: str, letter: bytes = LETTER, sender: str = "eve@sender.test") -> None:
        """Put a message into the queue."""
        words = (self._sendmail, "-C", self._config, "-i", "-f", sender, *recipients)
        run(*words, letter=letter.replace(b"\r\n", b"\n"))

    def wait_until_empty(self) -> None:
        """Wait until nothing is queued any more."""
        end = time.monotonic() + PATIENCE
        while "Mail queue is empty" not in (waiting := run(self._queue, "-c", self._config, "-p").output):
            assert time.monotonic() < end, waiting + "".join(self.log.lines)


@pytest.fixture
def postfix(peer: Peer, directory: Path, daemon: Callable[..., Daemon]) -> Callable[..., Postfix]:
    """Start Postfix with a server of ours as its only way out; further settings are lines of main.cf."""
    program, sendmail, queue = peer("postfix"), peer("sendmail"), peer("postqueue")
    if os.geteuid() != 0:
        pytest.skip("only root can start Postfix")

    def start(server: Server, listener: str = "smtp", *settings: str) -> Postfix:
        home = directory / "postfix"
        for name in ("conf", "spool", "data"):
            (home / name).mkdir(parents=True, mode=0o755)
        run("chown", "postfix", home / "data")
        main = SETTINGS.format(directory=home, port=server.port(listener)) + "\n".join(settings) + "\n"
        (home / "conf" / "main.cf").write_text(main, encoding="ascii")
        lines = [f"{name} {kind} - n {wake} {limit} {command}\n" for name, kind, wake, limit, command in SERVICES]
        (home / "conf" / "master.cf").write_text("".join(lines), encoding="ascii")
        run(program, "-c", home / "conf", "check")
        running = daemon("/usr/lib/postfix/sbin/master", "-c", home / "conf", "-s")
        running.wait_for("daemon started")
        return Postfix(home, running, sendmail, queue)

    return start


Start = Callable[..., Postfix]


def without_hop(content: bytes) -> bytes:
    """The message as Postfix was given it: without the Received fields of its own."""
    return re.sub(rb"\A(?:Received: [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)+", b"", content)


def test_mail_arrives_byte_for_byte_and_encrypted_by_starttls(serve: Serve, postfix: Start) -> None:
    server = serve()
    sender = postfix(server)
    sender.send("bob@example.test")
    sender.wait_until_empty()
    mail = the_only_mail(server)
    assert without_hop(mail.content) == LETTER
    assert (mail.protocol, mail.return_path) == ("ESMTPS", "<eve@sender.test>")
    assert mail.received.startswith("from sender.test ([127.0.0.1]) by mx.test (smtpd) with ESMTPS (TLSv1.3 TLS_")
    line = server.wait_for("message")
    assert (line["helo"], line["sender"]) == ("sender.test", "eve@sender.test")
    # What the sender's postmaster reads leads to our line.
    assert sender.log.wait_for(r"status=sent \(250 2\.0\.0 Ok, delivered \[" + line["trace"])


def test_hundred_recipients_in_one_burst(serve: Serve, postfix: Start) -> None:
    server = serve()
    sender = postfix(server, "alt", "smtp_tls_security_level = none", "smtp_destination_recipient_limit = 100")
    sender.send(*(f"user{number}@example.test" for number in range(100)))
    sender.wait_until_empty()
    for number in range(100):
        mail = the_only_mail(server, f"user{number}")
        assert without_hop(mail.content) == LETTER
        assert mail.delivered_to is None
    server.wait_for("message")
    assert len(server.events("message")) == 1


def test_more_recipients_than_we_take_at_once_come_in_a_second_transaction(serve: Serve, postfix: Start) -> None:
    server = serve({"smtpd": {"max_recipients": 3}})
    sender = postfix(server)
    users = [f"user{number}" for number in range(8)]
    sender.send(*(f"{user}@example.test" for user in users))
    sender.wait_until_empty()
    for user in users:
        assert the_only_mail(server, user)


def test_big_message_that_spills_to_disk(serve: Serve, postfix: Start) -> None:
    server = serve()
    sender = postfix(server)
    lines = b"".join(b".%d " % number + b"abcdefghij" * 7 + b"\r\n" for number in range(5 * 1024 * 1024 // 80))
    letter = LETTER + lines
    sender.send("bob@example.test", letter=letter)
    sender.wait_until_empty()
    assert without_hop(the_only_mail(server).content) == letter
    assert metrics(server)['smtpd_messages_size_bytes_bucket{le="4194304.0",listener="smtp"}'] == 0


def test_address_beyond_ascii(serve: Serve, postfix: Start) -> None:
    server = serve()
    sender = postfix(server, "smtp", "smtputf8_enable = yes")
    sender.send("jürgen@example.test", sender="ève@sender.test")
    sender.wait_until_empty()
    mail = the_only_mail(server, "j%C3%BCrgen")
    assert (mail.protocol, mail.return_path) == ("UTF8SMTPS", "<ève@sender.test>")


def test_temporary_failure_is_tried_again_and_delivered_once(serve: Serve, postfix: Start, directory: Path) -> None:
    server = serve()
    sender = postfix(server)
    in_the_way = directory / "mail" / "example.test"
    in_the_way.write_text("a file where the mailboxes should be")
    sender.send("bob@example.test")
    sender.log.wait_for(r"status=deferred \(host 127\.0\.0\.1\[127\.0\.0\.1\] said: 451 4\.3\.0 The message could not")
    in_the_way.unlink()
    sender.wait_until_empty()
    assert without_hop(the_only_mail(server).content) == LETTER
    samples = metrics(server)
    refused = 'smtpd_messages_rejected_total{listener="smtp",reason="store-failed",recipient_domain="example.test"}'
    assert samples[refused] >= 1
    assert samples['smtpd_messages_received_total{listener="smtp",recipient_domain="example.test"}'] == 1


def test_server_that_restarts_loses_nothing(serve: Serve, postfix: Start) -> None:
    server = serve()
    port = server.port("smtp")
    sender = postfix(server)
    server.stop()
    sender.send("bob@example.test")
    sender.log.wait_for(r"status=deferred \(connect to 127\.0\.0\.1")
    server = serve({"smtpd": {"listeners": {"smtp": {"address": f"127.0.0.1:{port}"}}}})
    sender.wait_until_empty()
    assert without_hop(the_only_mail(server).content) == LETTER


def test_permanent_refusal_of_one_of_two_comes_back_to_the_sender(serve: Serve, postfix: Start) -> None:
    server = serve(ONLY_BOB_AND_CAROL)
    sender = postfix(server)
    # The sender's own address is served here, too, so its bounce arrives.
    sender.send("bob@example.test", "nobody@example.test", sender="carol@example.test")
    sender.wait_until_empty()
    assert without_hop(the_only_mail(server, "bob").content) == LETTER
    bounce = read(server.mailbox("carol")[0])
    assert bounce.return_path == "<>"
    trace = server.wait_for("refused")["trace"]
    assert b"No mailbox here by the name" in bounce.content
    assert trace.encode() in bounce.content
    assert b"Status: 5.1.1" in bounce.content
