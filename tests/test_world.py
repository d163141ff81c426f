"""Which of the processes of a command this one is, and what they share."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pogdiff_cli.engine.world import Place, RankLostError, World, first_host, place_from
from pogdiff_cli.errors import Exit, PogdiffError


class Store:
    """What torch's store does, for threads of one process."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._lock = threading.Lock()

    def set(self, key: str, value: str) -> None:
        with self._lock:
            self._values[key] = value

    def get(self, key: str) -> str:
        with self._lock:
            return str(self._values[key])

    def check(self, keys: list[str]) -> bool:
        with self._lock:
            return all(key in self._values for key in keys)

    def add(self, key: str, number: int) -> int:
        with self._lock:
            self._values[key] = self._values.get(key, 0) + number
            return int(self._values[key])


class Gone(Store):
    """The store of a process that has ended."""

    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("Connection reset by peer")


def world(rank: int, size: int, store: Any = None, timeout: float = 5.0) -> World:
    return World(Place(rank=rank, size=size, local_rank=rank), store=store, timeout=timeout)


@given(st.integers(1, 9), st.lists(st.integers()))
def test_shares_hold_every_item_once_and_differ_by_one_at_most(size: int, items: list[int]) -> None:
    shares = [list(world(rank, size).share(items)) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_there_is_nobody_to_share_or_to_agree_with() -> None:
    one = world(1, 4)
    with one.alone():
        with one.alone():
            assert one.size == 1
        assert one.share([1, 2, 3]) == [1, 2, 3]
        assert one.agreed(lambda: "mine") == "mine"
        one.together()
        one.say("to nobody")
    assert one.size == 4
    assert one.share([1, 2, 3]) == [2]
    assert (one.rank, one.main) == (1, False)


def test_only_the_main_process_works_and_all_return_what_it_returned() -> None:
    store, worked, answers = Store(), [], {}

    def ask(rank: int) -> None:
        one = world(rank, 3, store)
        answers[rank] = [one.agreed(lambda: worked.append(rank) or {"rank": rank, "turn": len(worked)}) for _ in "ab"]
        one.together()

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert worked == [0, 0]
    assert answers[0] == answers[1] == answers[2] == [{"rank": 0, "turn": 1}, {"rank": 0, "turn": 2}]


def test_a_process_that_shows_no_sign_of_life_is_given_up_by_its_number() -> None:
    with pytest.raises(RankLostError, match=r"Process 0 of 2 has shown no sign of life for 0\.4 s"):
        world(1, 2, Store(), timeout=0.4).hear()


def test_a_process_that_lives_is_waited_for_beyond_the_time_limit() -> None:
    store = Store()
    world(0, 2, store, timeout=0.4)  # shows that it lives
    other = world(1, 2, store, timeout=0.4)
    said = threading.Timer(1.5, lambda: store.set("said/1", '"at last"'))
    said.start()
    assert other.hear() == "at last"


def test_a_store_that_is_gone_is_said_as_such() -> None:
    with pytest.raises(RankLostError, match="leads this command is gone"):
        world(1, 2, Gone()).hear()


def test_no_place_is_given_where_nothing_has_started_several_processes() -> None:
    assert place_from({}) is None
    assert place_from({"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert place_from({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_torchrun_gives_the_place() -> None:
    given_by = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert place_from(given_by) == Place(rank=5, size=8, local_rank=1)


def test_the_launcher_gives_a_place_to_a_single_worker_too() -> None:
    given_by = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "POGDIFF_LAUNCH_FOLDER": "/nowhere"}
    assert place_from(given_by) == Place(rank=0, size=1, local_rank=0)


def test_a_slurm_step_is_translated_into_torchruns_variables() -> None:
    step = {
        "SLURM_JOB_ID": "123456",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[07-09,12],cpu1",
    }
    assert place_from(step) == Place(rank=5, size=8, local_rank=1)
    assert step["MASTER_ADDR"] == "gpu07"
    assert step["MASTER_PORT"] == str(20_000 + 123456 % 20_000)
    assert (step["RANK"], step["WORLD_SIZE"], step["LOCAL_RANK"]) == ("5", "8", "1")


def test_an_address_that_the_user_has_chosen_is_kept() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1234"}
    assert place_from(step) == Place(rank=1, size=2, local_rank=0)
    assert (step["MASTER_ADDR"], step["MASTER_PORT"]) == ("here", "1234")


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "first"}])
def test_half_a_place_is_refused(variables: dict[str, str]) -> None:
    with pytest.raises(PogdiffError, match="WORLD_SIZE") as refusal:
        place_from(variables)
    assert refusal.value.exit_code == Exit.USAGE


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("gpu[3,5-9]", "gpu3"),
        ("rack1-gpu[010-020]-ib", "rack1-gpu010-ib"),
        ("rack1-gpu[010-020]-ib,other", "rack1-gpu010-ib"),
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("login,gpu[1-2]", "login"),
        ("localhost", "localhost"),
        ("", "localhost"),
    ],
)
def test_the_first_machine_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
