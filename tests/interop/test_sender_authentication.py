"""Real mail through SPF, DKIM, ARC and DMARC: OpenDKIM signs, Postfix sends, Dovecot stores.

On its way each message passes an OpenDKIM that verifies, as the border of another site would; Rspamd is asked about
what Dovecot gives back by IMAP. HAProxy tells us an address of the client that SPF can know.
"""

import base64
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import authres  # type: ignore[import-untyped]
import dkim
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from dns_server import Nameserver, running_nameserver
from signer import Signer, ed25519_key, rsa_key

from tests.conftest import Certificates, Server, servers
from tests.interop import opendkim
from tests.interop.conftest import Peer
from tests.interop.dovecot import DOMAIN, Dovecot, Kind, free_port, private_dovecot
from tests.interop.postfix import Postfix, prepare
from tests.interop.programs import Daemon
from tests.interop.rspamd import Rspamd

CLIENT = "192.0.2.10"
BORDER = "border.test"  # the authserv-id of OpenDKIM
OURS = "mx.test"
SIGNED = ("strict.test", "lenient.test", "alien.test")  # by OpenDKIM, with one key
EDWARDS = Signer("edwards.test", "ed", bits=0)
LIST, STRANGER = Signer("list.test", "seal"), Signer("stranger.test", "seal")
ZONE = """
strict.test. 60 IN TXT "v=spf1 -all"
_dmarc.strict.test. 60 IN TXT "v=DMARC1; p=reject"
lenient.test. 60 IN TXT "v=spf1 ~all"
_dmarc.lenient.test. 60 IN TXT "v=DMARC1; p=none"
_dmarc.edwards.test. 60 IN TXT "v=DMARC1; p=reject"
host.test. 60 IN TXT "v=spf1 include:_spf.host.test -all"
_spf.host.test. 60 IN TXT "v=spf1 ip4:192.0.2.0/28 ?all"
_dmarc.host.test. 60 IN TXT "v=DMARC1; p=reject"
wary.test. 60 IN TXT "v=spf1 -all"
_dmarc.wary.test. 60 IN TXT "v=DMARC1; p=quarantine"
revoked._domainkey.edwards.test. 60 IN TXT "v=DKIM1; p="
"""
PROXY = """\
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend smtp
  bind 127.0.0.1:{port}
  tcp-request connection set-src str({client})
  default_backend smtp
backend smtp
  server mx 127.0.0.1:{server} send-proxy-v2
"""
UNSIGNED: Kind = "user"
"""Mail to such users is not signed by OpenDKIM on its way: it has been signed before, or is to stay unsigned.

The others have small mailboxes, in which a letter that was signed once fits."""
Opinion = dict[str, str]
"""The result of each method."""


def letter(domain: str, name: str) -> bytes:
    """A letter by joe at a domain; everything in it that signers care for."""
    return (
        b"From: Joe <joe@%(domain)b>\r\nTo: Ann <ann@example.test>\r\nSubject: about\r\n\t%(name)b\r\n"
        b"Date: Sat, 21 Nov 2026 02:00:00 +0000\r\nMessage-ID: <%(name)b@%(domain)b>\r\n\r\n"
        b"Hello,  Ann.\r\n.. and trailing blanks \t\r\n\r\nJoe\r\n"
    ) % {b"domain": domain.encode(), b"name": name.encode()}


def read(mail: bytes, authserv_id: str) -> Opinion:
    """What the only Authentication-Results field of a server says."""
    fields = [" ".join(value.split()) for value in message_from_bytes(mail).get_all("Authentication-Results", [])]
    parsed = [authres.AuthenticationResultsHeader.parse(f"Authentication-Results: {value}") for value in fields]
    (ours,) = [each for each in parsed if each.authserv_id == authserv_id]
    return {each.method: each.result for each in reversed(ours.results)}  # of several of a method the first


@dataclass(frozen=True)
class Chain:
    """Everybody, running."""

    store: Dovecot
    server: Server
    postfix: Postfix
    rspamd: Rspamd
    nameserver: Nameserver

    def send(self, mail: bytes, sender: str, *, signs: bool = False) -> str:
        """Have Postfix send a message to somebody whose mailbox is empty; that user. OpenDKIM may sign it first."""
        user = self.store.user("patient" if signs else UNSIGNED)
        self.postfix.send(address := f"{user}@{DOMAIN}", letter=mail, sender=sender)
        self.server.wait_for("message", recipients=[address])
        return user

    def deliver(self, mail: bytes, sender: str, *, folder: str = "INBOX", signs: bool = False) -> bytes:
        """The only message in a folder of the mailbox it was sent to."""
        mails = self.store.mails(self.send(mail, sender, signs=signs), folder)
        assert len(mails) == 1, "".join(self.postfix.log.lines) + "".join(self.server.output)
        return mails[0]

    def signed(self, domain: str, name: str) -> bytes:
        """A letter as it leaves OpenDKIM: out of a mailbox, without what was put on top on its way there."""
        mail = self.deliver(letter(domain, name), f"joe@{domain}", signs=True)
        start = mail.index(b"DKIM-Signature:")
        assert mail.count(b"DKIM-Signature:") == 1
        return mail[start:]

    def second_opinion(self, mail: bytes, sender: str) -> Opinion:
        """What Rspamd thinks of a message in a mailbox."""
        return self.rspamd.check(mail, {"From": sender, "IP": CLIENT, "Helo": "sender.test"})


def publish(nameserver: Nameserver, key: str) -> None:
    """All records; `key` is that of OpenDKIM."""
    nameserver.add(ZONE)
    texts = {f"{opendkim.SELECTOR}._domainkey.{domain}": key for domain in SIGNED}
    texts |= {signer.name: signer.record for signer in (EDWARDS, LIST, STRANGER)}
    for name, text in texts.items():
        nameserver.add_text(name, *(text[at : at + 255].encode() for at in range(0, len(text), 255)))


def tables(nameserver: Nameserver, store: Dovecot) -> dict[str, object]:
    """Our configuration: all four filters on port 25, and what is quarantined goes into another folder."""
    agent = {"type": "lmtp", "address": store.addresses["unix"], "path": None, "recipients": None}
    return {
        "smtpd": {
            "listeners": {"smtp": {"proxy_protocol": ["127.0.0.1/32"]}, "smtps": None, "submission": None, "alt": None},
            "dns": {"nameservers": [nameserver.address]},
            "filters": {"spf": {}, "dkim": {}, "arc": {"trusted_sealers": [LIST.domain]}, "dmarc": {}},
            "agents": {"mailstore": {**agent, "details": {"quarantine": "Junk"}}},
        }
    }


@pytest.fixture(scope="module")
def chain(peer: Peer, certificates: Certificates) -> Iterator[Chain]:
    """Postfix with two OpenDKIMs, HAProxy, our server and Dovecot; Rspamd stands beside."""
    programs = {name: peer(name) for name in ("opendkim", "opendkim-genkey", "rspamd", "haproxy", "postfix")}
    with ExitStack() as stack:
        store = stack.enter_context(private_dovecot(peer))
        home = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
        home.chmod(0o755)
        stack.callback(shutil.rmtree, home)
        nameserver = stack.enter_context(running_nameserver())

        def keep(daemon: Daemon) -> Daemon:
            stack.callback(daemon.stop)
            return daemon

        rspamd = Rspamd(programs["rspamd"], home / "rspamd", nameserver.address)
        keep(rspamd.daemon)
        key = opendkim.make_key(programs["opendkim-genkey"], home)
        publish(nameserver, public_text(key.with_suffix(".txt")))
        signing = opendkim.signer(programs["opendkim"], home / "signer", key, SIGNED, unsigned=f"{UNSIGNED}*")
        stack.callback(signing.kill)
        verifying = opendkim.verifier(programs["opendkim"], home / "verifier", nameserver.address, BORDER)
        stack.callback(verifying.kill)
        store.start()
        server = stack.enter_context(servers(home, certificates))(tables(nameserver, store))
        text = PROXY.format(port=(port := free_port()), client=CLIENT, server=server.port("smtp"))
        (home / "haproxy.cfg").write_text(text, encoding="ascii")
        keep(Daemon(programs["haproxy"], "-db", "-f", home / "haproxy.cfg"))
        milters = f"non_smtpd_milters = {signing.address}, {verifying.address}"
        prepare(home / "postfix", programs["postfix"], port, milters)
        postfix = keep(Daemon("/usr/lib/postfix/sbin/master", "-c", home / "postfix" / "conf", "-s"))
        postfix.wait_for("daemon started")
        rspamd.wait_until_listening()
        sender = Postfix(home / "postfix", postfix, peer("sendmail"), peer("postqueue"))
        yield Chain(store, server, sender, rspamd, nameserver)


def public_text(record: Path) -> str:
    """The text of the TXT record that `opendkim-genkey` has written."""
    return "".join(re.findall(r'"([^"]*)"', record.read_text("ascii")))


def by_dkimpy(mail: bytes, *, selector: str = EDWARDS.selector) -> bytes:
    """Signed with the Ed25519 key of edwards.test."""
    seed = base64.b64encode(ed25519_key().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
    how = {"signature_algorithm": b"ed25519-sha256", "canonicalize": (b"relaxed", b"simple")}
    signature: bytes = dkim.sign(mail, selector.encode(), EDWARDS.domain.encode(), seed, **how)
    return signature + mail


def by_a_list(sealer: Signer, mail: bytes) -> bytes:
    """Changed and sealed by a list, which says that it came from strict.test."""
    domain = sealer.domain.encode()
    found = b"Authentication-Results: %b; dkim=pass header.d=strict.test; dmarc=pass header.from=strict.test\r\n"
    mail = found % domain + changed(mail)
    key = rsa_key(sealer.bits).private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return b"".join(dkim.arc_sign(mail, sealer.selector.encode(), domain, key, domain)) + mail


def changed(mail: bytes) -> bytes:
    """Something in the body that the signer never wrote."""
    assert b"Hello," in mail
    return mail.replace(b"Hello,", b"Please pay,")


@dataclass(frozen=True)
class Case:
    """A message from the domain of a sender, what everybody must find out about it, and where it is delivered."""

    name: str
    make: Callable[[Chain], bytes]
    sender: str
    results: str
    """Of "dkim spf dmarc arc"."""
    folder: str = "INBOX"
    signs: bool = False
    """Whether OpenDKIM signs it on its way."""
    border: str = ""
    """What OpenDKIM calls its result when that is not what others call it."""


CASES = (
    Case(
        "signed by OpenDKIM",
        lambda _: letter("strict.test", "signed"), "strict.test", "pass fail pass none", signs=True,
    ),
    Case(
        "signed by OpenDKIM, without a policy",
        lambda _: letter("alien.test", "alien"), "alien.test", "pass none none none", signs=True,
    ),
    Case(
        "signed with Ed25519",
        lambda _: by_dkimpy(letter("edwards.test", "ed25519")), "edwards.test", "pass none pass none",
    ),
    Case(
        "unsigned, from where it may come",
        lambda _: letter("host.test", "unsigned"), "host.test", "none pass pass none",
    ),
    Case(
        "unsigned, from a subdomain",
        lambda _: letter("news.host.test", "subdomain"), "host.test", "none pass pass none",
    ),
    Case(
        "changed after signing",
        lambda chain: changed(chain.signed("lenient.test", "changed")), "lenient.test", "fail softfail fail none",
    ),
    Case(
        "signed by somebody else",
        lambda _: by_dkimpy(letter("lenient.test", "else")), "lenient.test", "pass softfail fail none",
    ),
    Case(
        "signed with a key that is not there",
        lambda _: by_dkimpy(letter("lenient.test", "gone"), selector="gone"), "lenient.test",
        "permerror softfail fail none", border="fail",
    ),
    Case(
        "signed with a revoked key",
        lambda _: by_dkimpy(letter("lenient.test", "revoked"), selector="revoked"), "lenient.test",
        "permerror softfail fail none", border="fail",
    ),
    Case(
        "unsigned, to be quarantined",
        lambda _: letter("wary.test", "wary"), "wary.test", "none fail fail none", folder="Junk",
    ),
    Case(
        "changed by a list that we trust",
        lambda chain: by_a_list(LIST, chain.signed("strict.test", "listed")), "list.test", "fail none fail pass",
    ),
)  # fmt: skip
REFUSED: dict[str, Callable[[Chain], bytes]] = {
    "unsigned": lambda _: letter("strict.test", "forged"),
    "changed after signing": lambda chain: changed(chain.signed("strict.test", "changed")),
    "signed by somebody else": lambda _: by_dkimpy(letter("strict.test", "else")),
    "changed by a list that nobody trusts": lambda chain: by_a_list(STRANGER, chain.signed("strict.test", "strange")),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_opendkim_and_rspamd_think_the_same_as_we_do(chain: Chain, case: Case) -> None:
    sender = f"joe@{case.sender}"
    mail = chain.deliver(case.make(chain), sender, folder=case.folder, signs=case.signs)
    expected = dict(zip(("dkim", "spf", "dmarc", "arc"), case.results.split(), strict=True))
    assert read(mail, OURS) == expected
    assert chain.second_opinion(mail, sender) == expected
    assert read(mail, BORDER)["dkim"] == (case.border or expected["dkim"])


@pytest.mark.parametrize("make", REFUSED.values(), ids=[name.replace(" ", "-") for name in REFUSED])
def test_mail_that_fails_is_refused_and_the_sender_reads_why(chain: Chain, make: Callable[[Chain], bytes]) -> None:
    sender = f"{(user := chain.store.user())}@{DOMAIN}"
    mail = make(chain)
    assert chain.store.mails(chain.send(mail, sender)) == []
    line = chain.server.wait_for("message", sender=sender)
    assert line["reason"] == "dmarc-reject"
    chain.server.wait_for("message", sender="", recipients=[sender])
    (bounce,) = chain.store.mails(user)
    told = " ".join(bounce.decode().split())
    assert " Diagnostic-Code: smtp; 550 5.7.1 Rejected by the DMARC policy of strict.test (p=reject)" in told
    assert f"neither SPF nor DKIM shows that strict.test sent it [dmarc {line['trace']}]" in told
    assert chain.second_opinion(mail, sender)["dmarc"] == "fail"


def test_key_that_cannot_be_looked_up_refuses_nothing(chain: Chain) -> None:
    chain.nameserver.fail("down._domainkey.edwards.test", "SERVFAIL")
    sender = "joe@edwards.test"
    mail = chain.deliver(by_dkimpy(letter("edwards.test", "down"), selector="down"), sender)
    assert read(mail, OURS) == {"dkim": "temperror", "spf": "none", "dmarc": "temperror", "arc": "none"}
    assert chain.second_opinion(mail, sender)["dkim"] == "temperror"


def test_results_that_a_sender_makes_up_in_our_name_are_not_delivered(chain: Chain) -> None:
    forged = (
        b"Authentication-Results: mx.test; dmarc=pass header.from=bank.test\r\n"
        b"authentication-RESULTS : (a) MX.Test 1;\r\n\tdkim=pass header.d=bank.test\r\n"
        b"Authentication-Results: elsewhere.test; spf=pass smtp.mailfrom=joe@lenient.test\r\n"
    )
    mail = chain.deliver(forged + letter("lenient.test", "liar"), "joe@lenient.test")
    assert b"bank.test" not in mail
    assert read(mail, OURS) == {"dkim": "none", "spf": "softfail", "dmarc": "fail", "arc": "none"}
    assert read(mail, "elsewhere.test") == {"spf": "pass"}
