"""A nameserver in this process, on a free port of 127.0.0.1, UDP and TCP. `running_nameserver` starts one.

server.add("example.org. 60 IN MX 10 mx.example.org.")
server.fail("broken.example", "SERVFAIL")
server.hold("slow.example")             # no answer before server.release()
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import dnslib
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer

from smtpd.dns import DnsOptions

UDP_OCTETS = 512
PATIENCE = 30.0  # seconds
SOA = "ns.example. host.example. 1 3600 600 86400 7"


class NoAnswerError(Exception):
    """Raised to send no answer at all."""


class Handler(DNSHandler):  # type: ignore[misc]
    def handle(self) -> None:
        with suppress(NoAnswerError, OSError):
            super().handle()

    def get_reply(self, data: bytes) -> bytes:
        reply: bytes = super().get_reply(data)
        if self.protocol == "udp" and len(reply) > UDP_OCTETS:
            cut = dnslib.DNSRecord.parse(data).reply()
            cut.header.tc = 1
            reply = cut.pack()
        return reply


class Nameserver(BaseResolver):  # type: ignore[misc]
    """Authoritative for everything it was told, and NXDOMAIN for the rest; `asked` counts (name, type).

    `labels` are the names as they were asked for; with `checks_dnssec` it sets AD for those who want to know.
    """

    def __init__(self) -> None:
        self.port = 0
        self.asked: Counter[tuple[str, str]] = Counter()
        self.over_tcp: set[str] = set()
        self.labels: list[tuple[bytes, ...]] = []
        self.checks_dnssec = False
        self._records: list[dnslib.RR] = []
        self._failures: dict[str, str] = {}
        self._held: dict[str, threading.Event] = {}
        self._arrived: dict[str, threading.Event] = {}
        self._dropped: dict[str, float] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def options(self, **more: object) -> DnsOptions:
        """The table of a resolver that asks this server."""
        return DnsOptions.model_validate({"nameservers": [self.address], **more})

    def add(self, text: str) -> None:
        """Records as in a zone file."""
        self._records += dnslib.RR.fromZone(text)

    def add_text(self, name: str, *strings: bytes) -> None:
        """One TXT record of these strings."""
        self._records.append(dnslib.RR(name, dnslib.QTYPE.TXT, ttl=60, rdata=dnslib.TXT(list(strings))))

    def add_record(self, name: str, kind: str, data: dnslib.RD) -> None:
        """One record of a name in which blanks and escapes are plain characters."""
        label = dnslib.DNSLabel([part.encode() for part in name.removesuffix(".").split(".")])
        self._records.append(dnslib.RR(label, getattr(dnslib.QTYPE, kind), ttl=60, rdata=data))

    def clear(self) -> None:
        """Forget every record and every failure."""
        self._records.clear()
        self._failures.clear()

    def fail(self, name: str, code: str) -> None:
        """Answer all questions about a name with this response code; "" for properly again."""
        self._failures[name] = code

    def hold(self, name: str) -> None:
        """Answer about this name only after `release`."""
        self._held[name] = threading.Event()
        self._arrived[name] = threading.Event()

    async def arrived(self, name: str) -> None:
        """Wait for a question about a name that is held."""
        assert await asyncio.to_thread(self._arrived[name].wait, PATIENCE)

    def drop(self, name: str, times: float = float("inf")) -> None:
        """Do not answer about this name, or not that many times."""
        self._dropped[name] = times

    def release(self) -> None:
        """Answer what is held."""
        for event in self._held.values():
            event.set()

    def resolve(self, request: dnslib.DNSRecord, handler: DNSHandler) -> dnslib.DNSRecord:
        name = str(request.q.qname).lower().rstrip(".")
        kind = dnslib.QTYPE[request.q.qtype]
        self.asked[name, kind] += 1
        self.labels.append(tuple(request.q.qname.label))
        if handler.protocol == "tcp":
            self.over_tcp.add(name)
        if name in self._held:
            self._arrived[name].set()
            self._held[name].wait(PATIENCE)
        if self._dropped.get(name, 0) > 0:
            self._dropped[name] -= 1
            raise NoAnswerError
        reply = request.reply()
        reply.header.ad = int(self.checks_dnssec and request.header.ad)
        if code := self._failures.get(name):
            reply.header.rcode = getattr(dnslib.RCODE, code)
            return reply
        self._fill(reply, name, kind)
        return reply

    def _fill(self, reply: dnslib.DNSRecord, name: str, kind: str) -> None:
        seen: set[str] = set()
        while name not in seen:
            seen.add(name)
            here = [record for record in self._records if str(record.rname).lower().rstrip(".") == name]
            wanted = [record for record in here if dnslib.QTYPE[record.rtype] == kind]
            aliases = [record for record in here if dnslib.QTYPE[record.rtype] == "CNAME"]
            for record in wanted or aliases:
                reply.add_answer(record)
            if wanted or not aliases:
                break
            name = str(aliases[0].rdata.label).lower().rstrip(".")
        if not wanted and not aliases:
            reply.header.rcode = dnslib.RCODE.NOERROR if here else dnslib.RCODE.NXDOMAIN
            reply.add_auth(*dnslib.RR.fromZone(f"example. 30 IN SOA {SOA}"))


def open_servers(nameserver: Nameserver) -> list[DNSServer]:
    """For UDP and TCP on one port: the kernel's choice for the first, tried for the second."""
    logger = DNSLogger(logf=lambda _: None)
    while True:
        udp = DNSServer(nameserver, "127.0.0.1", 0, logger=logger, handler=Handler)
        nameserver.port = udp.server.server_address[1]
        try:
            tcp = DNSServer(nameserver, "127.0.0.1", nameserver.port, tcp=True, logger=logger, handler=Handler)
        except OSError:
            udp.server.server_close()
            continue
        return [udp, tcp]


@contextmanager
def running_nameserver() -> Iterator[Nameserver]:
    """A nameserver until the end of the block."""
    nameserver = Nameserver()
    servers = [opened.server for opened in open_servers(nameserver)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield nameserver
    finally:
        nameserver.release()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
