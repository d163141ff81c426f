"""Training as a process of its own: asked to save, interrupted twice, typed twice at once."""

from __future__ import annotations

import signal

from conftest import TinyProject
from processes import finish, last_checkpoint, said, settings, start, steps_done, wait_for_step, weights

LONG = settings(max_train_steps=400, checkpointing_steps=1000, logging_steps=1)
SHORT = settings(max_train_steps=40, checkpointing_steps=1000, logging_steps=1)


def test_a_second_run_of_the_same_name_is_refused_while_the_first_lasts(project: TinyProject) -> None:
    first = start(project, "one", *LONG)
    wait_for_step(project, "one", 1, first)
    second = project("train", "--name", "one", *LONG)
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    assert second.status == 75
    assert str(first.pid) in second.err


def test_sigusr1_saves_a_checkpoint_and_the_run_goes_on_to_the_same_bits(project: TinyProject) -> None:
    finish(project, "whole", *SHORT)
    run = start(project, "asked", *SHORT)
    wait_for_step(project, "asked", 3, run)
    run.send_signal(signal.SIGUSR1)
    wait_for_step(project, "asked", steps_done(project, "asked") + 3, run)
    assert 3 <= last_checkpoint(project, "asked") < 40
    assert run.wait(120) == 0, said(project, "asked")
    assert bool((weights(project, "asked") == weights(project, "whole")).all())


def test_sigint_saves_before_it_ends_the_run(project: TinyProject) -> None:
    run = start(project, "run", *LONG)
    wait_for_step(project, "run", 3, run)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert "type the same command again" in said(project, "run")
    assert last_checkpoint(project, "run") == steps_done(project, "run") >= 3


def test_validation_images_and_tensorboard_are_written_where_asked_for(project: TinyProject) -> None:
    options = ("--set", "train.validation_steps=3", "--set", "train.report_to=[tensorboard]")
    assert project("train", *options).status == 0
    run = project.root / "runs" / "pogdiff"
    assert len(list((run / "validation" / "step-000006").glob("*.png"))) == 4
    assert list((run / "tensorboard").glob("events.out.*"))
