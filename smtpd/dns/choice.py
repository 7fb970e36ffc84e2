"""Which library asks nameservers: chosen once, and imported only then."""

from __future__ import annotations

from importlib import import_module

from smtpd.dns.backend import Backend, BackendError
from smtpd.dns.options import DnsOptions
from smtpd.log import Log


def load_libraries() -> None:
    """Import what `make_backend` needs: it takes a tenth of a second, which a loop at work does not have."""
    import_module("smtpd.dns.aiodns_backend")


def make_backend(options: DnsOptions, log: Log) -> Backend:
    """The backend that the options ask for. To be called in the running loop; BackendError when it cannot work."""
    from smtpd.dns.aiodns_backend import AiodnsBackend
    from smtpd.dns.dnspython_backend import DnspythonBackend

    if options.backend == "aiodns" or (options.backend == "auto" and options.shares_port):
        try:
            return AiodnsBackend(options)
        except BackendError as error:
            if options.backend == "aiodns":
                raise
            log.warning("dns-fallback", problem=str(error))
    return DnspythonBackend(options)
