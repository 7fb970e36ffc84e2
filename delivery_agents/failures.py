"""What can go wrong with a mail server behind us; the texts are for the log and for health, never for clients.

Exception
  Failure
    Unreachable   no connection: refused, not there, a bad greeting, or too many failures lately
      Crowded     it puts this connection off, which says nothing about those that are open
    Lost          the connection ended
    TimedOut      no answer in time, or it did not read
    Nonsense      it says something that cannot be; nothing on this connection can be trusted any more
"""


class Failure(Exception):  # noqa: N818 - the server's, not ours
    """The server behind us did not do its part."""


class Unreachable(Failure):
    """No connection can be had."""


class Crowded(Unreachable):
    """The server takes no further connection now."""


class Lost(Failure):
    """The connection ended."""


class TimedOut(Failure):
    """The server was too slow."""


class Nonsense(Failure):
    """The server says something that cannot be."""
