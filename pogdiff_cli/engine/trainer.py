"""The training loop: draw, predict, step, log, save. It can stop at any step and go on exactly."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from pogdiff_cli.engine.batches import Batches, HostBatch
from pogdiff_cli.engine.feed import host_batches, on_device
from pogdiff_cli.engine.interruption import Agreement, Request, listening
from pogdiff_cli.engine.memory import OUT_OF_MEMORY, in_pieces, is_out_of_memory, keep_freed_memory, memory_explained
from pogdiff_cli.engine.metrics_log import MetricsLog
from pogdiff_cli.engine.network import Network
from pogdiff_cli.engine.objectives import Objective
from pogdiff_cli.engine.optimizer import GuardedStep, make_optimizer
from pogdiff_cli.engine.parallel import lost_processes_explained, unsynchronised
from pogdiff_cli.engine.prior import PriorLoss
from pogdiff_cli.engine.resuming import Resuming
from pogdiff_cli.engine.state import State
from pogdiff_cli.engine.terms import Outcome, Taken
from pogdiff_cli.engine.window import Window
from pogdiff_cli.engine.world import World
from pogdiff_cli.errors import Stopped
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a run writes."""

    checkpoints: Path
    metrics: Path
    tensorboard: Path | None


#: Called with the step and the network after each step, in every process; what it returns is logged.
AtStep = Callable[[int, nn.Module], Mapping[str, float]]


class Trainer:
    """One run. ``fingerprint`` names its settings: checkpoints of others are not resumed."""

    def __init__(
        self,
        *,
        adapter: Adapter,
        objective: Objective,
        batches: Batches,
        train: TrainConfig,
        places: Places,
        fingerprint: str,
        world: World | None = None,
    ) -> None:
        self.adapter, self.objective, self.batches = adapter, objective, batches
        self.train, self.places, self.fingerprint = train, places, fingerprint
        self.world = world or World()
        self.device = adapter.device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.network = Network(adapter, train, self.world, seed=batches.settings.seed)
        self.denoiser, self.layout = self.network.denoiser, self.network.layout
        self.trainable = self.network.trainable
        self.predict, self.autocast = self.network.predict, self.network.autocast
        split = train.parallel == "fsdp" and self.world.size > 1
        self.optimizer = make_optimizer(self.network.groups, train, sharded="sharded" if split else "whole")
        self.schedule = get_scheduler(
            train.lr_scheduler,
            optimizer=self.optimizer,
            num_warmup_steps=train.lr_warmup_steps,
            num_training_steps=train.max_train_steps,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train.mixed_precision == "fp16")
        self.guard = GuardedStep(self.optimizer, self.scaler, max_norm=train.max_grad_norm, device=self.device)
        parameters = list(self.trainable.values())
        self.ema = EMAModel(parameters, decay=train.ema_decay, use_ema_warmup=False) if train.use_ema else None
        self.step = 0
        self.pieces = 1
        self.notes: list[str] = []  # what whoever resumes should know
        self._skipped_before = 0
        self._log_as_saved: Mapping[str, Any] | None = None

    @property
    def _resuming(self) -> Resuming:
        return Resuming(
            folder=self.places.checkpoints,
            fingerprint=self.fingerprint,
            global_batch=self.batches.settings.global_batch,
            keep=self.train.checkpoints_total_limit,
            world=self.world,
            metrics=self.places.metrics,
        )

    @property
    def _state(self) -> State:
        return State(
            trainable=self.trainable,
            optimizer=self.optimizer,
            schedule=self.schedule,
            scaler=self.scaler,
            ema=self.ema,
        )

    def resume(self) -> int:
        """Load what ``train.resume_from_checkpoint`` names; returns the step reached (0: a fresh start)."""
        snapshot = self._resuming.find(self.train.resume_from_checkpoint)
        if snapshot is None:
            return 0
        self._state.restore(snapshot)
        self.step = snapshot.step
        self._log_as_saved = snapshot.state.get("log")
        self._skipped_before = int(snapshot.state["skipped"])
        return self.step

    def run(
        self,
        *,
        track: Track = untracked,
        label: str = "Training",
        at_step: Sequence[AtStep] = (),
    ) -> Outcome:
        """Train up to ``max_train_steps``; what each of ``at_step`` returns after a step is logged."""
        resumed_at = self.step
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            request = stack.enter_context(listening())
            stack.enter_context(memory_explained(self.train))
            stack.enter_context(lost_processes_explained(self.world))
            log = self._open_log(stack, resumed_at)
            agreement = stack.enter_context(contextlib.closing(Agreement(self.world)))
            window = Window()
            steps = host_batches(self.batches, self.train, first_step=self.step, device=self.device)
            for group in track(steps, label, self.train.max_train_steps - self.step):
                taken = self.optimise(group)
                window.add(taken.parts, group, finite=taken.finite)
                self.step += 1
                window = self._log_where_due(log, window)
                measured = {key: value for hook in at_step for key, value in hook(self.step, self.denoiser).items()}
                if measured and log is not None:
                    log.write(self.step, measured)
                self._save_where_due(agreement.after_step(request))
        if self.pieces > 1:
            self.notes.append(f"Memory did not suffice for whole micro-batches: they were cut into {self.pieces} each.")
        seconds = time.monotonic() - started
        done = self.train.max_train_steps - resumed_at
        return Outcome(
            steps=self.step,
            resumed_at=resumed_at,
            seconds=round(seconds, 3),
            seconds_per_step=round(seconds / max(done, 1), 5),
            skipped_steps=self.skipped,
            pieces=self.pieces,
        )

    @property
    def skipped(self) -> int:
        """Steps left out so far, those before a resume included; waits for the device."""
        return self._skipped_before + int(self.guard.skipped)

    def final_denoiser(self) -> nn.Module | None:
        """The network to keep: the moving average where there is one. None but in the main process."""
        kept = dict(zip(self.trainable, self.ema.shadow_params, strict=True)) if self.ema else self.trainable
        return self.network.final(kept)

    def optimise(self, group: list[HostBatch]) -> Taken:
        """One optimizer step. Where the memory does not suffice and halving is allowed: in smaller pieces."""
        while True:
            pieces = [piece for batch in group for piece in in_pieces(batch, self.pieces)]
            rows = Counter[str](batch.kind for batch in group for _ in batch.rows)
            try:
                return self._attempt(pieces, rows=rows)
            except OUT_OF_MEMORY as problem:
                cannot = self.train.on_out_of_memory == "stop" or self.world.size > 1
                if cannot or not is_out_of_memory(problem) or len(pieces) >= sum(len(b.rows) for b in group):
                    raise
            self.optimizer.zero_grad(set_to_none=True)
            self.pieces *= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _attempt(self, pieces: list[HostBatch], *, rows: Mapping[str, int]) -> Taken:
        parts: dict[str, Tensor] = {}
        for number, host in enumerate(pieces, start=1):
            with unsynchronised(self.network.forward, "last" if number == len(pieces) else "not last"):
                with self.autocast():
                    batch = on_device(host, self.adapter, snr_gamma=self.train.snr_gamma, layout=self.layout)
                    prior = PriorLoss(weight=self.train.prior_loss_weight)
                    objective = prior if host.kind == "prior" else self.objective
                    loss = objective(self.predict, batch, denominator=rows[host.kind])
                self.scaler.scale(loss.value).backward()
            for name, value in loss.parts.items():  # they add up over micro-batches, as the loss does
                parts[name] = parts.get(name, torch.zeros_like(value)) + value
        norm, finite = self.guard(list(self.trainable.values()))
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.trainable.values())
        parts["grad_norm"] = norm
        return Taken(
            parts={name: torch.where(finite, v, torch.zeros_like(v)) for name, v in parts.items()}, finite=finite
        )

    def _open_log(self, stack: contextlib.ExitStack, resumed_at: int) -> MetricsLog | None:
        if not self.world.main:
            return None
        places = self.places
        log = MetricsLog(
            places.metrics, resumed_at=resumed_at, tensorboard=places.tensorboard, as_saved=self._log_as_saved
        )
        if not log.intact:
            self.notes.append(
                f"{places.metrics} is not as this run wrote it: up to step {resumed_at} it may lack lines. "
                "The weights do not depend on it."
            )
        return stack.enter_context(contextlib.closing(log))

    def _log_where_due(self, log: MetricsLog | None, window: Window) -> Window:
        """Write a line at log intervals, the only times at which the host waits for the device."""
        due = self.step % self.train.logging_steps == 0 or self.step == self.train.max_train_steps
        if due or self.device.type == "cpu":  # there it costs nothing
            self.guard.refuse_many_in_a_row(self.step)
        if not due:
            return window
        values = window.means(self.world) | {"lr": self.schedule.get_last_lr()[0]}
        if log is not None:
            log.write(self.step, values)
        return Window()

    def _save_where_due(self, asked: Request) -> None:
        due = self.step % self.train.checkpointing_steps == 0 or self.step == self.train.max_train_steps
        if due or asked.save or asked.stop is not None:
            self.save()
        if asked.stop is not None and self.step < self.train.max_train_steps:
            raise Stopped(asked.stop, self.step)

    def save(self) -> None:
        """Write a checkpoint of this step: the main process writes, and all go on when it is whole."""
        self.guard.refuse_many_in_a_row(self.step)
        self._resuming.save(self._state, step=self.step, skipped=self.skipped)
