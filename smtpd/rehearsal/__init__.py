"""One mail, or one dialog, played against a configuration without a socket: what `smtpd explain` and `smtpd test` do.

The conversation, the filters and the rules are the real ones. What is not: nothing is delivered, stored or
remembered, agents and logins are stood in for, and the DNS may come from a file.

`script.py` is what the client says, `rehearsal.py` plays it, `watching.py` looks over the filters' shoulders and
`questions.py` over the resolver's, `stand_ins.py` are agents that keep nothing, `nameserver.py` makes a DNS of a zone,
`telling.py` and `page.py` say what happened to machines and to eyes, `cases.py` and `comparison.py` are policy tests.
"""

from smtpd.rehearsal.nameserver import resolver_of
from smtpd.rehearsal.rehearsal import Performance, RehearsalError, rehearse
from smtpd.rehearsal.script import Client, Envelope, Line, ScriptError, read_dialog, read_message
from smtpd.rehearsal.telling import tell

__all__ = [
    "Client", "Envelope", "Line", "Performance", "RehearsalError", "ScriptError", "read_dialog", "read_message",
    "rehearse", "resolver_of", "tell",
]  # fmt: skip
