import os
from pathlib import Path

import pytest

from smtpd import files


def test_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        files.read(tmp_path / "pipe", max_bytes=10)
