"""What an external reporter needs to write aggregate reports (RFC 9990): one line of JSON for each message and author.

    {"begin": 1798761600, "policy_published": {"domain": "example.org", "discovery_method": "treewalk", "p": "reject",
     "sp": null, "np": null, "adkim": "r", "aspf": "r", "fo": "0", "testing": "n"}, "rua": ["mailto:d@example.org"],
     "source_ip": "192.0.2.1", "count": 1, "disposition": "none", "dkim": "fail", "spf": "fail",
     "reason": [{"type": "trusted_forwarder", "comment": "university"}], "header_from": "example.org",
     "envelope_from": "example.org", "auth_results": {"dkim": [{"domain": "list.example", "selector": "s",
     "result": "pass"}], "spf": {"domain": "example.org", "scope": "mfrom", "result": "softfail"}}}

Names are those of the elements of RFC 9990; `begin` is when the message came, seconds since 1970. `envelope_to` is
there with `report_recipients`. A line that cannot be read was cut by a full disk.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence

from filters.dmarc_assessment import Assessment
from filters.dmarc_discovery import Published
from smtpd.findings import DkimResults, DkimSignature, Override, Policy, SpfResults
from smtpd.log import Log
from smtpd.model import Transaction
from smtpd.replies import clean

MAX_SIGNATURES = 100  # RFC 9990, "DKIM Signatures in Aggregate Reports"
COMPLAIN_SECONDS = 60.0
LOOK_SECONDS = 1.0

Reason = tuple[Override, str]
"""Why something else became of a message than its author's domain asks for: a type, and a comment."""


def make_row(
    mail: Transaction,
    assessment: Assessment,
    disposition: Policy,
    reasons: Sequence[Reason],
    *,
    method: str,
    begin: int,
    recipient_domains: Sequence[str] | None = None,
) -> dict[str, object] | None:
    """The row of one author; None when its domain wants no reports (RFC 9989 §4.7)."""
    published = assessment.published
    if published is None or not published.record.reports_to:
        return None
    dkim, spf = mail.facts.get(DkimResults), mail.facts.get(SpfResults)
    row: dict[str, object] = {
        "begin": begin,
        "policy_published": _policy(published, method),
        "rua": list(published.record.reports_to),
        "source_ip": mail.session.ip_text,
        "count": 1,
        "disposition": disposition,
        "dkim": "pass" if "dkim" in assessment.aligned else "fail",
        "spf": "pass" if "spf" in assessment.aligned else "fail",
        "reason": [{"type": kind, "comment": clean(comment)} for kind, comment in reasons],
        "header_from": assessment.author,
        "envelope_from": mail.sender.domain,
        "auth_results": {"dkim": _signatures(dkim, assessment.author), "spf": _spf(spf)},
    }
    if recipient_domains is not None:
        row["envelope_to"] = list(recipient_domains)
    return row


def _policy(published: Published, method: str) -> dict[str, object]:
    record = published.record
    return {
        "domain": published.domain,
        "discovery_method": method,
        "p": record.p,
        "sp": record.sp,
        "np": record.np,
        "adkim": "s" if record.strict_dkim else "r",
        "aspf": "s" if record.strict_spf else "r",
        "fo": record.failure_options,
        "testing": "y" if record.testing else "n",
    }


def _signatures(dkim: DkimResults | None, author: str) -> list[dict[str, str]]:
    """Those of the author first, then others that pass (RFC 9990, "DKIM Signatures in Aggregate Reports")."""

    def place(one: DkimSignature) -> tuple[bool, bool, bool]:
        domain = one.domain.lower()
        is_related = domain.endswith(f".{author}") or author.endswith(f".{domain}")
        return one.result != "pass", domain != author, not is_related

    signatures = sorted(dkim.signatures if dkim is not None else (), key=place)
    return [_without_blanks(
        domain=one.domain, selector=one.selector, result=one.result, human_result=one.reason
    ) for one in signatures[:MAX_SIGNATURES]]  # fmt: skip


def _spf(spf: SpfResults | None) -> dict[str, str] | None:
    if spf is None:
        return None
    check = spf.mailfrom
    return _without_blanks(domain=check.domain, scope="mfrom", result=check.result, human_result=check.reason)


def _without_blanks(**values: str) -> dict[str, str]:
    return {name: clean(value) for name, value in values.items() if value}


class RowFile:
    """Appends rows to a file; what cannot be written is lost, and the log says so once a minute at most.

    Several processes may append to one file. A file that was moved or deleted is made anew within a second; one that
    has reached `max_bytes` is not written until then. `clock` gives steady seconds.
    """

    def __init__(
        self, path: str, max_bytes: int, log: Log, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._log = log
        self._clock = clock
        self._descriptor = -1
        self._next_look = -math.inf
        self._next_complaint = -math.inf
        self._is_torn = False
        self._lost = 0

    def write(self, row: dict[str, object]) -> None:
        """Append a row. Never raises."""
        line = json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            self._follow()
            if os.fstat(self._descriptor).st_size + len(line) > self._max_bytes:
                self._lose(f"it has {self._max_bytes} octets already")
                return
            line = b"\n" + line if self._is_torn else line
            self._is_torn = os.write(self._descriptor, line) < len(line)
        except OSError as error:
            self._lose(error.strerror or type(error).__name__)
            return
        if self._is_torn:
            self._lose("no space")

    def close(self) -> None:
        """Give the file back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _follow(self) -> None:
        """Open the name again when it leads somewhere else, looking once a second at most."""
        if self._descriptor >= 0 and self._clock() < self._next_look:
            return
        self._next_look = self._clock() + LOOK_SECONDS
        try:
            if self._descriptor >= 0 and os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                return
        except FileNotFoundError:
            self._is_torn = False
        # O_NONBLOCK: opening a named pipe nobody reads must fail, not wait.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o640)
        self.close()
        self._descriptor = descriptor
        self._is_torn = False

    def _lose(self, why: str) -> None:
        self._lost += 1
        if self._clock() >= self._next_complaint:
            self._next_complaint = self._clock() + COMPLAIN_SECONDS
            self._log.warning("dmarc-rows-lost", path=self._path, lost=self._lost, problem=why)
            self._lost = 0
