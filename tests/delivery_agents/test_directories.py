import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Thread

import pytest

from delivery_agents.directories import MAX_OPEN, OWNER, Box, Folders


def test_folder_stays_open_while_fewer_others_than_may_be_open_are_asked_for(tmp_path: Path) -> None:
    boxes = [Box(str(tmp_path / str(number)), "", root=str(tmp_path)) for number in range(MAX_OPEN + 1)]
    folders = Folders(OWNER)
    for box in boxes[:MAX_OPEN]:
        folders.open(box)
    first = folders.open(boxes[0])
    folders.open(boxes[-1])
    assert folders.open(boxes[0]) is first
    assert os.path.samestat(os.fstat(first.new), os.stat(tmp_path / "0/new"))
    folders.close()


def test_folders_used_longest_ago_are_closed_when_there_are_too_many(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    folders = Folders(OWNER)
    for number in range(MAX_OPEN + 20):
        folders.open(Box(str(tmp_path / str(number)), "", root=str(tmp_path)))
    assert len(os.listdir("/dev/fd")) == before + 2 * MAX_OPEN
    folders.close()
    assert len(os.listdir("/dev/fd")) == before


def test_several_may_make_the_same_mailbox_at_the_same_time(tmp_path: Path) -> None:
    together = Barrier(4, timeout=30)

    def make(number: int) -> None:
        folders = Folders(OWNER)
        box = Box(str(tmp_path / f"domain{number}" / "user"), ".Junk", root=str(tmp_path))
        together.wait()
        folders.open(box)
        folders.close()

    with ThreadPoolExecutor(4) as pool:
        for number in range(100):
            for made in [pool.submit(make, number) for _ in range(4)]:
                made.result()


def test_named_pipe_in_place_of_a_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / ".Junk").mkdir()
    os.mkfifo(tmp_path / ".Junk/maildirfolder")

    def enter() -> None:
        with pytest.raises(OSError, match="maildirfolder"):
            Folders(OWNER).open(Box(str(tmp_path), ".Junk", root=""))
        refused.append(True)

    refused: list[bool] = []
    entering = Thread(target=enter, daemon=True)
    entering.start()
    entering.join(30)
    assert refused
