"""What the operator hears when no file can be opened any more."""

import errno
import os

import pytest
from log_lines import Lines
from manual_clock import ManualClock

from smtpd.config import LogOptions
from smtpd.descriptor_watch import COMPLAINT_SECONDS, DescriptorWatch
from smtpd.log import Log


def test_it_is_told_at_most_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, clock = Lines(), ManualClock()
    watch = DescriptorWatch(Log(LogOptions(), sink=lines), clock)
    watch.look()
    assert lines.entries == []
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files")))
        for _ in range(3):
            watch.look()
        assert [(line["event"], line["problem"]) for line in lines.entries] == [
            ("no-descriptors", "Too many open files")
        ]
        clock.now += COMPLAINT_SECONDS
        watch.look()
    assert len(lines.entries) == 2
