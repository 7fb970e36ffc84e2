"""The names that `smtpd` itself offers."""

import subprocess
import sys

import pytest

import smtpd

LOADED = "import smtpd, sys; print(*(name for name in sys.modules if name.startswith(('smtpd.', 'pydantic'))))"


@pytest.mark.parametrize("name", smtpd.__all__)
def test_offered_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(smtpd, name).__doc__
    assert name in dir(smtpd)


def test_nothing_is_loaded_before_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sever'"):
        smtpd.Sever  # type: ignore[attr-defined]  # noqa: B018
