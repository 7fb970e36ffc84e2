"""A private Rspamd with nothing but its checks of senders: `check` asks it what it thinks of a message (HTTP)."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.request import Request, urlopen

from tests.conftest import PATIENCE
from tests.interop.dovecot import free_port
from tests.interop.programs import Daemon

PLUGINS = Path("/usr/share/rspamd/plugins")
# The list of top-level domains that it comes with takes it 18 seconds to read.
SETTINGS = """\
options {{
  pidfile = false;
  tempdir = "{home}/run";
  control_socket = "{home}/run/control";
  url_tld = "{home}/tld";
  filters = "dkim";
  local_addrs = [];
  dns {{ nameserver = ["{nameserver}:10"]; timeout = 5s; retransmits = 1; }}
}}
logging {{ type = "console"; level = "info"; }}
worker "normal" {{ bind_socket = "127.0.0.1:{port}"; count = 1; }}
actions {{ reject = 15; }}
modules {{ path = "{home}/plugins/"; }}
dkim {{ check_local = true; check_authed = true; }}
spf {{ enabled = true; }}
dmarc {{ enabled = true; }}
arc {{ enabled = true; check_local = true; }}
"""
SYMBOLS = {
    "R_DKIM_ALLOW": ("dkim", "pass"),
    "R_DKIM_REJECT": ("dkim", "fail"),
    "R_DKIM_NA": ("dkim", "none"),
    "R_DKIM_PERMFAIL": ("dkim", "permerror"),
    "R_DKIM_TEMPFAIL": ("dkim", "temperror"),
    "R_SPF_ALLOW": ("spf", "pass"),
    "R_SPF_FAIL": ("spf", "fail"),
    "R_SPF_SOFTFAIL": ("spf", "softfail"),
    "R_SPF_NEUTRAL": ("spf", "neutral"),
    "R_SPF_NA": ("spf", "none"),
    "R_SPF_PERMFAIL": ("spf", "permerror"),
    "R_SPF_DNSFAIL": ("spf", "temperror"),
    "DMARC_POLICY_ALLOW": ("dmarc", "pass"),
    "DMARC_POLICY_REJECT": ("dmarc", "fail"),
    "DMARC_POLICY_QUARANTINE": ("dmarc", "fail"),
    "DMARC_POLICY_SOFTFAIL": ("dmarc", "fail"),
    "DMARC_NA": ("dmarc", "none"),
    "ARC_ALLOW": ("arc", "pass"),
    "ARC_REJECT": ("arc", "fail"),
    "ARC_INVALID": ("arc", "fail"),
    "ARC_NA": ("arc", "none"),
}
"""Its names for what RFC 8601 calls the results of methods."""


class Rspamd:
    """A running one; it asks the nameserver "IP:PORT"."""

    def __init__(self, program: str, home: Path, nameserver: str) -> None:
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        for name in ("run", "plugins"):
            (home / name).mkdir(parents=True)
        shutil.chown(home / "run", "_rspamd", "_rspamd")
        for name in ("spf", "dmarc", "arc"):
            (home / "plugins" / f"{name}.lua").symlink_to(PLUGINS / f"{name}.lua")
        (home / "tld").write_text("test\n", encoding="ascii")
        settings = SETTINGS.format(home=home, nameserver=nameserver, port=port)
        (home / "rspamd.conf").write_text(settings, encoding="ascii")
        places = [f"--var={name}={home}/run" for name in ("DBDIR", "RUNDIR", "LOGDIR")]
        user = ("-u", "_rspamd", "-g", "_rspamd")
        self.daemon = Daemon(program, "-f", *user, "-c", home / "rspamd.conf", *places)

    def wait_until_listening(self) -> None:
        """Wait until questions are answered, if only a little later."""
        self.daemon.wait_for(r"starting normal process .* listen on")

    def check(self, message: bytes, envelope: Mapping[str, str]) -> dict[str, str]:
        """The result of each method: {"dkim": "pass", "spf": "none"}; `envelope` has From, IP and Helo."""
        request = Request(f"{self._url}/checkv2", data=message, headers=dict(envelope))
        with urlopen(request, timeout=PATIENCE) as answer:
            symbols = json.load(answer)["symbols"]
        return dict(found for name, found in SYMBOLS.items() if name in symbols)
