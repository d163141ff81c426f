"""One writer at a time, by name; and a lock that no kill leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.locks import locked

HOLDER = """
import sys, time
from pathlib import Path
from pogdiff_cli.project.locks import locked
with locked(Path(sys.argv[1]), "The run", "pogdiff train --name slow"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "train.lock"
    with (
        locked(lock, "The run 'a'", "pogdiff train"),
        pytest.raises(PogdiffError, match=r"The run 'a' is in use by process \d+ on .*pogdiff train") as caught,
        locked(lock, "The run 'a'", "pogdiff sample"),
    ):
        pytest.fail("two writers held one lock")
    assert caught.value.exit_code == Exit.LOCKED == 75
    assert caught.value.hint


def test_a_lock_is_free_after_its_holder_has_ended_well_or_badly(tmp_path: Path) -> None:
    lock = tmp_path / "train.lock"
    with pytest.raises(ValueError, match="mine"), locked(lock, "The run", "one"):
        raise ValueError("mine")
    with locked(lock, "The run", "two"):
        assert json.loads((tmp_path / "train.holder.json").read_text())["command"] == "two"
    assert not (tmp_path / "train.holder.json").exists()


def test_another_process_is_kept_out_until_kill_minus_nine_frees_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "train.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        who = f"process {holder.pid} .*pogdiff train --name slow"
        with pytest.raises(PogdiffError, match=who), locked(lock, "The run", "pogdiff sample"):
            pytest.fail("two processes held one lock")
        holder.send_signal(signal.SIGKILL)
    with locked(lock, "The run", "after"):
        assert json.loads((tmp_path / "train.holder.json").read_text())["command"] == "after"


def test_a_holder_that_left_no_name_is_another_process(tmp_path: Path) -> None:
    lock = tmp_path / "train.lock"
    with locked(lock, "The run", "one"):
        (tmp_path / "train.holder.json").write_text("{torn")
        with pytest.raises(PogdiffError, match="in use by another process"), locked(lock, "The run", "two"):
            pytest.fail("two writers held one lock")
