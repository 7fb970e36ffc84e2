"""Acting with another user's rights, and having one's own again whatever happens."""

import errno
import os

import pytest

from smtpd.identity import acting_as, find_identity

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")


@pytest.mark.parametrize("step", ["setgroups", "setegid", "seteuid"])
def test_root_has_its_rights_again_when_it_cannot_have_all_of_the_others(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def forbid(_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    before = os.geteuid(), os.getegid(), os.getgroups()
    monkeypatch.setattr(os, step, forbid)  # as in a container without CAP_SETUID or CAP_SETGID
    nobody = acting_as(find_identity("nobody", None))
    with pytest.raises(PermissionError, match="root may not become another user here"), nobody:
        pass
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


def test_root_has_its_rights_again_after_a_mistake() -> None:
    before = os.geteuid(), os.getegid(), os.getgroups()
    with pytest.raises(KeyError, match="not 0"), acting_as(find_identity("nobody", None)):
        raise KeyError(os.geteuid() and "not 0")
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before
