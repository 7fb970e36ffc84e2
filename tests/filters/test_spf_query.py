import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import spf

from filters import spf_query

TOP = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def library() -> Iterator[None]:
    """The way pyspf asks, put back afterwards."""
    kept = spf.DNSLookup
    yield
    spf.DNSLookup = kept


def test_library_is_imported_where_warnings_are_errors(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-X", f"pycache_prefix={tmp_path}", "-c", "import filters.spf_query"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.usefixtures("library")
def test_others_in_this_process_use_pyspf_as_before() -> None:
    asked = []

    def own(name: str, kind: str, strict: bool = True, timeout: float = 20) -> list[object]:
        asked.append((name, kind, strict, timeout))
        return [((name, kind), (b"v=spf1 +all",))]

    spf.DNSLookup = own
    spf_query.use(lambda name, kind, seconds: [] if name == "ours.example" else None)
    assert spf.check2("192.0.2.1", "joe@other.example", "host.example")[0] == "pass"
    assert spf.check2("192.0.2.1", "joe@ours.example", "host.example")[0] == "none"
    assert asked == [("other.example", "TXT", True, 20)]


def test_query_outside_of_a_check_asks_the_library() -> None:
    program = (
        "import spf; spf.DNSLookup = lambda *rest: [((rest[0], rest[1]), (b'v=spf1 -all',))]; "
        "import filters.spf; print(spf.check2('192.0.2.1', 'joe@a.example', 'host.example')[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "fail\n", done.stderr
