"""The command line: quick to start, forgiving to type, and strict about what goes where."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import COUNTS, Command, TinyProject

from pogdiff_cli import __version__
from pogdiff_cli.cli.app import cli
from pogdiff_cli.errors import Exit
from pogdiff_cli.project.locks import locked

HEAVY = ("torch", "diffusers", "transformers", "faiss", "scipy", "sklearn", "matplotlib", "accelerate", "peft")
COMMANDS = sorted(cli.commands)
REQUIRED = {
    "init",
    "inspect",
    "caption",
    "index",
    "fit-density",
    "train",
    "sample",
    "evaluate",
    "report",
    "run",
    "status",
}

HELP_OF_EVERYTHING = f"""
import sys
from pogdiff_cli.cli.app import _status, cli
statuses = [_status(["--help"]), _status(["--version"]), *(_status([name, "--help"]) for name in cli.commands)]
statuses += [_status(["completion", "fish"]), _status(["train", "-C", "/"]) - 2]
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print("STATUSES", set(statuses), "LOADED", loaded)
"""


def test_help_completion_and_a_mistyped_folder_load_no_heavy_library() -> None:
    said = subprocess.run([sys.executable, "-c", HELP_OF_EVERYTHING], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "STATUSES {0} LOADED []"
    assert said.stderr.startswith("Error: / is no pogdiff project")


def test_the_commands_of_the_road_are_there() -> None:
    assert set(COMMANDS) >= REQUIRED | {"doctor", "completion"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_says_what_it_does_and_describes_every_option(pogdiff: Command, name: str) -> None:
    said = pogdiff(name, "--help")
    assert said.status == 0
    assert said.out.startswith(f"Usage: pogdiff {name} ")
    command = cli.commands[name]
    assert command.help
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []
    assert all(option in said.out for parameter in command.params for option in parameter.opts if "-" in option)


def test_the_version_is_the_packages(pogdiff: Command) -> None:
    said = pogdiff("--version")
    assert (said.status, said.out.split()[-1]) == (0, __version__)


@pytest.mark.parametrize(
    ("typed", "meant"), [("trian", "train"), ("evalute", "evaluate"), ("fitdensity", "fit-density")]
)
def test_a_misspelt_command_is_answered_with_the_nearest(pogdiff: Command, typed: str, meant: str) -> None:
    said = pogdiff(typed)
    assert said.status == Exit.USAGE
    assert f"Did you mean '{meant}'?" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    "arguments", [["qqqq"], ["train", "--qqqq"], ["init"], ["completion", "csh"], ["train", "extra"]]
)
def test_a_wrong_command_line_exits_with_two_and_says_so_on_stderr(pogdiff: Command, arguments: list[str]) -> None:
    said = pogdiff(*arguments)
    assert said.status == Exit.USAGE == 2
    assert "Error: " in said.err
    assert said.out == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_pogdiff(pogdiff: Command, shell: str) -> None:
    said = pogdiff("completion", shell)
    assert said.status == 0
    assert f"_POGDIFF_COMPLETE={shell}_complete" in said.out
    assert said.err == ""


def test_the_shell_is_given_the_commands_that_fit() -> None:
    environment = {"_POGDIFF_COMPLETE": "bash_complete", "COMP_WORDS": "pogdiff in", "COMP_CWORD": "1"}
    said = subprocess.run(
        [sys.executable, "-m", "pogdiff_cli"], env=environment, capture_output=True, text=True, check=False
    )
    assert sorted(said.stdout.split()) == ["plain,index", "plain,init", "plain,inspect"]
    assert (said.returncode, said.stderr) == (0, "")


STAGES = ["inspect", "caption", "index", "fit-density", "train", "sample", "evaluate", "report", "run", "status"]


@pytest.mark.parametrize("name", STAGES)
def test_outside_a_project_every_command_says_how_to_make_one(pogdiff: Command, tmp_path: Path, name: str) -> None:
    said = pogdiff(name, "-C", tmp_path)
    assert said.status == Exit.USAGE
    assert f"Error: {tmp_path} is no pogdiff project" in said.err
    assert "pogdiff init myproj" in said.err
    assert len(said.err.splitlines()) == 2
    assert said.out == ""


def test_a_folder_that_does_not_exist_is_named(pogdiff: Command, tmp_path: Path) -> None:
    said = pogdiff("status", "-C", tmp_path / "nowhere")
    assert said.status == Exit.USAGE
    assert f"There is no folder {tmp_path / 'nowhere'}" in said.err


def test_a_project_is_found_from_a_folder_inside_it(project: TinyProject) -> None:
    inside = project.root / "data" / "images"
    said = project.command("status", "-C", inside, *project.flags, "--json")
    assert said.status == 0
    assert {state["key"] for state in json.loads(said.out)["stages"]} >= {"caption", "index", "fit-density"}


@pytest.mark.parametrize("name", ["inspect", "status", "caption"])
def test_json_alone_is_on_stdout(project: TinyProject, name: str) -> None:
    said = project(name, "--json")
    assert said.status == 0, said.err
    assert isinstance(json.loads(said.out), dict)


def test_a_failure_with_json_leaves_stdout_empty(project: TinyProject) -> None:
    said = project("sample", "--json")
    assert said.status == Exit.MISSING
    assert said.out == ""
    assert said.err.startswith("Error: ")


def test_quiet_says_nothing_but_errors(project: TinyProject) -> None:
    said = project("caption", "-q")
    assert (said.status, said.out, said.err) == (0, "", "")
    said = project("sample", "-q")
    assert said.status == Exit.MISSING
    assert "Error: " in said.err


def test_an_unchanged_stage_says_so_and_does_nothing_until_it_is_forced(project: TinyProject) -> None:
    assert "done" in project("caption").out
    written = (project.root / "artifacts" / "captions.jsonl").stat().st_mtime_ns
    assert "up to date" in project("caption").out
    assert (project.root / "artifacts" / "captions.jsonl").stat().st_mtime_ns == written
    assert "done" in project("caption", "--force").out
    assert (project.root / "artifacts" / "captions.jsonl").stat().st_mtime_ns > written


def test_a_dry_run_says_what_would_be_done_and_writes_no_artifact(project: TinyProject) -> None:
    said = project("caption", "--dry-run")
    assert said.status == 0
    assert "would run" in said.out
    assert not (project.root / "artifacts" / "captions.jsonl").exists()
    assert project("caption", "--dry-run", "--force").status == Exit.USAGE


def test_a_flag_that_names_no_device_is_refused(project: TinyProject) -> None:
    for gpus in ("some", "0,0", "64"):
        said = project("train", "--gpus", gpus)
        assert said.status == Exit.USAGE
        assert f"--gpus {gpus}" in said.err


def test_no_prerequisites_refuses_what_was_not_made_and_names_the_command(project: TinyProject) -> None:
    said = project("train", "--gpus", "none", "--no-prerequisites")
    assert said.status == Exit.MISSING
    assert "pogdiff caption" in said.err


def test_a_name_no_run_can_have_is_refused(project: TinyProject) -> None:
    for name in ("../evil", "a/b", "", "-x", "x" * 65):
        said = project("sample", f"--run={name}") if name else project("train", "--name= ")
        assert said.status == Exit.USAGE
        assert "cannot name a run" in said.err


def test_a_stage_that_another_command_works_on_is_left_alone(project: TinyProject) -> None:
    lock = project.root / "artifacts" / "cache" / "locks" / "caption.lock"
    with locked(lock, "The stage", "pogdiff run"):
        said = project("caption")
    assert said.status == Exit.LOCKED == 75
    assert f"in use by process {os.getpid()}" in said.err
    assert "'pogdiff run'" in said.err
    assert not (project.root / "artifacts" / "captions.jsonl").exists()
    assert project("caption").status == 0


def test_a_disk_that_fills_up_in_the_middle_is_said_and_the_next_attempt_succeeds(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 8:  # the manifest is on disk, the captions are being written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = project("caption")
    assert said.status == Exit.FAILURE
    assert "The disk is full" in said.err
    assert "Free some space" in said.err
    assert project("caption").status == 0
    assert len((project.root / "artifacts" / "captions.jsonl").read_text().splitlines()) == sum(COUNTS.values())


def test_a_mistake_of_ours_is_said_to_be_one_and_shown_with_v(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pogdiff_cli.stages import caption

    def broken(context: object) -> None:
        raise ZeroDivisionError("[red]oops[/]")

    monkeypatch.setattr(caption, "run", broken)
    said = project("caption")
    assert said.status == Exit.FAILURE
    assert "Internal error: ZeroDivisionError: [red]oops[/]" in said.err
    assert "Traceback" not in said.err
    assert "Traceback" in project("caption", "-v").err


def test_ctrl_c_exits_with_130_and_memory_with_5(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    from pogdiff_cli.stages import caption

    for problem, status in ((KeyboardInterrupt(), 130), (MemoryError(), 5)):

        def stopped(context: object, problem: BaseException = problem) -> None:
            raise problem

        monkeypatch.setattr(caption, "run", stopped)
        assert project("caption").status == status


def test_doctor_works_without_a_project_and_names_what_a_project_lacks(
    pogdiff: Command, tmp_path: Path, pictures: Path
) -> None:
    outside = pogdiff("doctor", "-C", tmp_path, "--json")
    assert outside.status == 0
    assert {"python", "packages"} <= {check["name"] for check in json.loads(outside.out)["checks"]}
    pogdiff("init", tmp_path / "p", "--template", "sd15", "--images", pictures)
    inside = pogdiff("doctor", "-C", tmp_path / "p", "--json")
    model = next(check for check in json.loads(inside.out)["checks"] if check["name"] == "model")
    assert inside.status == Exit.MISSING
    assert (model["state"], "hf download" in model["remedy"]) == ("missing", True)
