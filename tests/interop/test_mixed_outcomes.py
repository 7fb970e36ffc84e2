"""Real queues send to three who fare differently, until nothing waits: nobody gets a second copy, no sender is misled.

alice takes mail. bob's mailbox is full, for good or for now. carol's cannot be written until somebody mends it. Behind
us is Dovecot; in front Exim, which hears an answer for each recipient (PRDR), or Postfix, which hears one for all.
Bounces come back through us to a Maildir of their sender.
"""

import email
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Server
from tests.interop.conftest import LETTER, MakeExim, Serve, StartPostfix, read
from tests.interop.dovecot import DOMAIN, Dovecot, Kind, free_port
from tests.interop.exim import PLAIN, Exim
from tests.interop.postfix import Postfix

type Sender = Exim | Postfix
type Make = Callable[[Server], Sender]

BIG = LETTER + b"more than bob has room for\r\n" * 150
FILL = b"Subject: there before\n\n" + b"x" * 4000
WHEN_ASKED = ("minimal_backoff_time = 300s", "maximal_backoff_time = 300s", "queue_run_delay = 300s")


@pytest.fixture
def start(serve: Serve, store: Dovecot, directory: Path) -> Callable[[], Server]:
    """Start a server of ours, or the next one in its place: same port, same memory."""
    table = {
        "listeners": {"smtp": {"address": f"127.0.0.1:{free_port()}"}},
        "domains": {"sender.test": "inboxes"},
        "agents": {
            "mailstore": {"type": "lmtp", "address": store.addresses["unix"], "path": None, "recipients": None},
            "inboxes": {"type": "maildir", "path": str(directory / "mail"), "recipients": "any"},
        },
        "state": {"url": f"sqlite:{directory}/state.db"},
    }
    return lambda: serve({"smtpd": table})


@pytest.fixture
def prdr(exim: MakeExim) -> Make:
    return exim


@pytest.fixture
def no_prdr(exim: MakeExim) -> Make:
    return lambda server: exim(server, transport=f"{PLAIN}\n  hosts_try_prdr =")


@pytest.fixture
def patient(postfix: StartPostfix) -> Make:
    return lambda server: postfix(server, "smtp", *WHEN_ASKED)


@pytest.fixture(params=["prdr", "patient"], ids=["Exim with PRDR", "Postfix"])
def make(request: pytest.FixtureRequest) -> Make:
    """What sends from a queue."""
    found: Make = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["no_prdr", "patient"], ids=["Exim without PRDR", "Postfix"])
def make_forgetful(request: pytest.FixtureRequest) -> Make:
    """What sends from a queue, and has to rely on our memory."""
    found: Make = request.getfixturevalue(request.param)
    return found


class Mailbox:
    """One recipient."""

    def __init__(self, store: Dovecot, kind: Kind) -> None:
        self.user = store.user(kind)
        self.address = f"{self.user}@{DOMAIN}"
        self._store = store

    @property
    def bodies(self) -> list[bytes]:
        """What stands below the header sections of its messages, in the order of arrival."""
        return [mail.partition(b"\r\n\r\n")[2] for mail in self._store.mails(self.user)]


def body(letter: bytes) -> bytes:
    return letter.partition(b"\r\n\r\n")[2]


@dataclass
class Three:
    """The recipients."""

    store: Dovecot
    alice: Mailbox
    bob: Mailbox
    carol: Mailbox

    @property
    def addresses(self) -> list[str]:
        return [mailbox.address for mailbox in (self.alice, self.bob, self.carol)]

    def mend(self) -> None:
        """Let carol's mailbox be written again."""
        self._carols.chmod(0o700)

    def break_(self) -> None:
        """Nothing can be written into carol's mailbox."""
        self.store.plant(self.carol.user, b"")
        (self.store.mailbox(self.carol.user) / "new" / "1.planted.test").unlink()
        self._carols.chmod(0o500)

    @property
    def _carols(self) -> Path:
        return self.store.mailbox(self.carol.user) / "tmp"


@pytest.fixture
def three(store: Dovecot) -> Callable[[Kind], Three]:
    """Make the recipients; bob's mailbox is of this kind."""

    def make(kind: Kind = "small") -> Three:
        made = Three(store, *(Mailbox(store, each) for each in ("user", kind, "user")))
        made.break_()
        return made

    return make


def go_on(sender: Sender, until: Callable[[], bool]) -> None:
    """Let it try until something is so; several attempts may be made after it was."""
    end = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < end, sender.log if isinstance(sender, Exim) else "".join(sender.log.lines)
        sender.try_again()


def bounces(directory: Path) -> list[Message]:
    """What has come back to the sender, in the order of arrival."""
    paths = (directory / "mail" / "sender.test" / "eve" / "new").glob("*")
    mails = [read(path.read_bytes()) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]
    assert all(mail.return_path == "<>" for mail in mails)
    return [email.message_from_bytes(mail.content) for mail in mails]


def the_bounce_is_about(directory: Path, three: Three, recipient: Mailbox) -> None:
    (bounce,) = bounces(directory)
    assert bounce.get_content_type() == "multipart/report"
    text, status, *_ = bounce.get_payload()
    failed = [block for block in status.get_payload() if "Final-Recipient" in block]
    assert [block["Action"] for block in failed] == ["failed"]
    named = [address for address in three.addresses if address in f"{text}{status}"]
    assert named == [recipient.address]
    assert "552 5.2.2" in f"{text}"


@pytest.fixture(params=["after the dot", "at RCPT"])
def full(request: pytest.FixtureRequest, three: Callable[..., Three]) -> Three:
    """bob has no room for this message, or for none at all."""
    people = three("small")
    if request.param == "at RCPT":
        people.store.plant(people.bob.user, FILL)
    return people


def test_one_is_full_and_another_broken_for_a_while(
    make: Make, start: Callable[[], Server], full: Three, directory: Path
) -> None:
    had = full.bob.bodies
    server = start()
    sender = make(server)
    sender.send(*full.addresses, letter=BIG)
    go_on(sender, lambda: bool(bounces(directory)))
    go_on(sender, lambda: len(server.events("message")) >= 4)  # the bounce among them, and one attempt in vain
    assert full.alice.bodies == [body(BIG)]
    assert (full.carol.bodies, sender.is_empty) == ([], False)
    full.mend()
    go_on(sender, lambda: sender.is_empty)
    assert full.alice.bodies == full.carol.bodies == [body(BIG)]
    assert full.bob.bodies == had
    the_bounce_is_about(directory, full, full.bob)


def test_one_is_full_and_all_others_are_fine(
    make: Make, start: Callable[[], Server], three: Callable[..., Three], directory: Path
) -> None:
    people = three("small")
    people.mend()
    sender = make(start())
    sender.send(*people.addresses, letter=BIG)
    go_on(sender, lambda: sender.is_empty)
    assert people.alice.bodies == people.carol.bodies == [body(BIG)]
    assert people.bob.bodies == []
    the_bounce_is_about(directory, people, people.bob)


def test_one_is_full_for_now_and_another_broken_for_a_while(
    make: Make, start: Callable[[], Server], three: Callable[..., Three], directory: Path
) -> None:
    people = three("patient")
    people.store.plant(people.bob.user, FILL[:2500])
    server = start()
    sender = make(server)
    sender.send(*people.addresses)
    go_on(sender, lambda: len(server.events("message")) >= 2)
    people.mend()
    go_on(sender, lambda: bool(people.carol.bodies))
    assert (len(people.bob.bodies), sender.is_empty) == (1, False)
    people.store.empty(people.bob.user)
    go_on(sender, lambda: sender.is_empty)
    assert people.alice.bodies == people.bob.bodies == people.carol.bodies == [body(LETTER)]
    assert not bounces(directory)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_server_that_restarts_in_between_remembers(
    make_forgetful: Make, start: Callable[[], Server], three: Callable[..., Three], directory: Path, end: signal.Signals
) -> None:
    people = three("small")
    server = start()
    sender = make_forgetful(server)
    sender.send(*people.addresses, letter=BIG)
    server.wait_for("message")
    server.stop(end)
    assert people.alice.bodies == [body(BIG)]
    assert not bounces(directory)
    people.mend()
    start()
    go_on(sender, lambda: sender.is_empty)
    assert people.alice.bodies == people.carol.bodies == [body(BIG)]
    assert people.bob.bodies == []
    the_bounce_is_about(directory, people, people.bob)


def test_exim_hears_each_answer_at_once(
    prdr: MakeExim, start: Callable[[], Server], three: Callable[..., Three], directory: Path
) -> None:
    people, server = three("small"), start()
    sender = prdr(server)
    sender.send(*people.addresses, letter=BIG)
    line = server.wait_for("message")
    assert [outcome[:9] for outcome in line["outcomes"]] == ["250 2.0.0", "552 5.2.2", "451 4.2.0"]
    assert line["reply"].startswith("250 2.0.0 ")
    signs = {people.alice: "=>", people.bob: r"\*\*", people.carol: "=="}
    assert all(re.search(f" {sign} {mailbox.address} .*PRDR", sender.log) for mailbox, sign in signs.items()), (
        sender.log
    )


def test_postfix_hears_one_answer_for_all(
    patient: StartPostfix, start: Callable[[], Server], three: Callable[..., Three]
) -> None:
    people, server = three("small"), start()
    sender = patient(server)
    sender.send(*people.addresses, letter=BIG)
    line = server.wait_for("message")
    outcomes = dict(zip(line["recipients"], line["outcomes"], strict=True))
    assert [outcomes[address][:3] for address in people.addresses] == ["250", "552", "451"]
    assert line["reply"].startswith("451 4.3.0 Not delivered to everybody")
    sender.log.wait_for(f"status=deferred .*{line['trace']}", 3)
