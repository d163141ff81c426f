"""Two commands of a project do not take the same GPU. The GPUs are stand-ins: what is locked is their name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TinyProject

from pogdiff_cli.engine import devices as engine_devices
from pogdiff_cli.engine.devices import Devices, select
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.config import Config
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.leases import free, leased
from pogdiff_cli.project.manifest import Device
from pogdiff_cli.stages.context import Context, device_leases


def gpu(index: int) -> Device:
    return Device(kind="cuda", index=index, name="Stand-in", uuid=f"GPU-{index:04d}", memory_bytes=2**34)


GPUS = (gpu(0), gpu(1), gpu(2))
CPU = Device(kind="cpu", name="CPU", memory_bytes=2**34)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """``holder(gpu(0), ...)``: another process that holds GPUs until it is killed; its number."""
    children: list[int] = []

    def hold(*devices: Device) -> int:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            with leased(tmp_path, devices, "pogdiff train --name other"):
                os.write(writer, b"held")
                signal.pause()
            os._exit(0)
        children.append(child)
        assert os.read(reader, 4) == b"held"
        return child

    yield hold
    for child in children:
        end(child)


def end(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def test_a_gpu_that_is_taken_is_refused_by_the_name_of_its_holder(tmp_path: Path, holder: Callable[..., int]) -> None:
    child = holder(gpu(1))
    with pytest.raises(PogdiffError) as refusal, leased(tmp_path, [gpu(0), gpu(1)], "pogdiff sample"):
        pytest.fail("it was taken")
    assert refusal.value.exit_code == Exit.LOCKED
    assert "GPU 1 (Stand-in)" in refusal.value.message
    assert str(child) in refusal.value.message
    assert "--share-gpus" in str(refusal.value.hint)
    with leased(tmp_path, [gpu(0)], "pogdiff sample"):  # let go when the second was refused
        assert free(tmp_path, GPUS) == [gpu(2)]


def test_a_gpu_is_free_when_its_holder_has_been_killed(tmp_path: Path, holder: Callable[..., int]) -> None:
    child = holder(gpu(0))
    assert free(tmp_path, GPUS) == [gpu(1), gpu(2)]
    end(child)
    assert free(tmp_path, GPUS) == list(GPUS)
    with leased(tmp_path, [gpu(0)], "pogdiff train"):
        pass


def test_the_cpu_is_nobodys(tmp_path: Path, holder: Callable[..., int]) -> None:
    holder(CPU)
    with leased(tmp_path, [CPU], "pogdiff train"):
        assert not list(tmp_path.glob("device-*"))


def test_shared_gpus_are_taken_all_the_same(tmp_path: Path, holder: Callable[..., int]) -> None:
    project = Project(root=tmp_path, config=Config(), scratch=tmp_path / "artifacts")
    holder_folder = project.cache / "locks"
    holder_folder.mkdir(parents=True)
    context = Context(project=project, devices=Devices(used=(gpu(0),)), command="pogdiff train")
    with leased(holder_folder, [gpu(0)], "pogdiff sample"):
        with pytest.raises(PogdiffError) as refusal, device_leases(context):
            pytest.fail("it was taken")
        assert refusal.value.exit_code == Exit.LOCKED
        shared = Context(project=project, devices=context.devices, command="pogdiff train", sharing="shared")
        with device_leases(shared):
            pass
        second = Context(project=project, devices=Devices(used=(gpu(0),), local_rank=1), command="pogdiff train")
        with device_leases(second):  # one process of a machine asks for all of them
            pass


def test_the_default_is_a_gpu_that_is_free(
    tmp_path: Path, holder: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pogdiff_cli.cli.processes import _first_free

    monkeypatch.setattr(engine_devices, "available", lambda: GPUS)
    assert select(None).used == (gpu(0),)
    holder(gpu(0), gpu(1))
    assert _first_free(select(None), tmp_path).used == (gpu(2),)
    holder(gpu(2))
    assert _first_free(select(None), tmp_path).used == (gpu(0),)  # the stage then says who holds it


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gpus", "4"), "there are 3"),
        (("--gpus", "0,3"), "there are 3"),
        (("--gpus", "1,1"), "twice"),
        (("--gpus", "many"), "neither a count"),
        (("--gpus", "2", "--processes", "2"), "--processes is for the CPU"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused_before_anything_is_started(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(engine_devices, "available", lambda: GPUS)
    done = project("train", *options)
    assert done.status == 2
    assert said in done.err
    assert not (project.root / "runs").exists()


def test_machines_that_do_not_know_where_to_meet_are_refused(project: TinyProject) -> None:
    done = project("train", "--gpus", "none", "--nnodes", "2")
    assert done.status == 2
    assert "--rdzv-endpoint" in done.err


def test_gpus_of_a_machine_without_any_are_refused_with_the_way_to_the_cpu(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_devices, "available", lambda: ())
    done = project("train", "--gpus", "4")
    assert done.status == 2
    assert "Type --gpus none" in done.err
