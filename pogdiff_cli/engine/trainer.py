"""The training loop: draw, predict, step, log, save. It can stop at any step and go on exactly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pogdiff_cli.engine import checkpoint
from pogdiff_cli.engine.batches import Batches, HostBatch
from pogdiff_cli.engine.interruption import Request, listening
from pogdiff_cli.engine.memory import memory_explained
from pogdiff_cli.engine.metrics_log import MetricsLog
from pogdiff_cli.engine.objectives import Batch, Objective
from pogdiff_cli.engine.tuning import prepare
from pogdiff_cli.engine.window import Window
from pogdiff_cli.errors import Exit, PogdiffError, Stopped
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.config import TrainConfig

MAX_NON_FINITE = 5
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run took."""

    steps: int
    resumed_at: int
    seconds: float
    seconds_per_step: float
    skipped_steps: int


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a run writes."""

    checkpoints: Path
    metrics: Path
    tensorboard: Path | None


class Trainer:
    """One run on one device. ``fingerprint`` names the settings: checkpoints of others are not resumed."""

    def __init__(
        self,
        *,
        adapter: Adapter,
        objective: Objective,
        batches: Batches,
        train: TrainConfig,
        places: Places,
        fingerprint: str,
    ) -> None:
        self.adapter, self.objective, self.batches = adapter, objective, batches
        self.train, self.places, self.fingerprint = train, places, fingerprint
        self.device = adapter.device
        if train.mixed_precision == "fp16" and self.device.type != "cuda":
            raise PogdiffError(
                "train.mixed_precision fp16 needs a GPU.", hint="Use bf16 or no on the CPU.", exit_code=Exit.USAGE
            )
        self.denoiser: Any = adapter.load_denoiser().train()
        self.trainable = prepare(self.denoiser, train)
        if train.channels_last:
            self.denoiser.to(memory_format=torch.channels_last)
        parameters = list(self.trainable.values())
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            weight_decay=train.adam_weight_decay,
            fused=True,
        )
        self.schedule = get_scheduler(
            train.lr_scheduler,
            optimizer=self.optimizer,
            num_warmup_steps=train.lr_warmup_steps,
            num_training_steps=train.max_train_steps,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train.mixed_precision == "fp16")
        self.ema = EMAModel(parameters, decay=train.ema_decay, use_ema_warmup=False) if train.use_ema else None
        self.forward: Any = torch.compile(self.denoiser) if train.compile else self.denoiser
        self.step = 0
        self.skipped = 0
        self._skipped_in_a_row = 0

    def resume(self) -> int:
        """Load what ``train.resume_from_checkpoint`` names; returns the step reached (0: a fresh start)."""
        wanted = self.train.resume_from_checkpoint
        if wanted == "none":
            return 0
        path = checkpoint.latest_whole(self.places.checkpoints) if wanted == "latest" else Path(wanted)
        if path is None:
            return 0
        if wanted != "latest" and not path.is_absolute():
            path = self.places.checkpoints / path
        snapshot = checkpoint.load(path)
        if snapshot.state.get("fingerprint") != self.fingerprint:
            if wanted == "latest":
                return 0
            raise PogdiffError(
                f"{path.name} was made with other settings than this run has.",
                hint="Give the run another name with --name.",
                exit_code=Exit.MISSING,
            )
        self._restore(snapshot)
        return self.step

    def run(
        self,
        *,
        track: Track = untracked,
        label: str = "Training",
        at_step: Callable[[int, nn.Module], None] | None = None,
    ) -> Outcome:
        """Train up to ``max_train_steps``; ``at_step(step, denoiser)`` is called after each step."""
        resumed_at = self.step
        log = MetricsLog(self.places.metrics, resumed_at=resumed_at, tensorboard=self.places.tensorboard)
        window = Window()
        started = time.monotonic()
        with listening() as request, contextlib.closing(log), memory_explained(self.train):
            steps = track(self._host_batches(), label, self.train.max_train_steps - self.step)
            for micro_batches in steps:
                window.add(self._optimise(micro_batches), micro_batches)
                self.step += 1
                if self.step % self.train.logging_steps == 0 or self.step == self.train.max_train_steps:
                    log.write(self.step, window.means() | {"lr": self.schedule.get_last_lr()[0]})
                    window = Window()
                if at_step is not None:
                    at_step(self.step, self.denoiser)
                self._save_where_due(request)
        seconds = time.monotonic() - started
        done = self.train.max_train_steps - resumed_at
        return Outcome(
            steps=self.step,
            resumed_at=resumed_at,
            seconds=round(seconds, 3),
            seconds_per_step=round(seconds / max(done, 1), 5),
            skipped_steps=self.skipped,
        )

    def final_denoiser(self) -> nn.Module:
        """The network to keep: the moving average where there is one."""
        if self.ema is not None:
            self.ema.copy_to(self.trainable.values())
        return self.denoiser.eval()  # type: ignore[no-any-return]

    def _host_batches(self) -> Iterator[list[HostBatch]]:
        micro = self.train.gradient_accumulation_steps
        workers = self.train.dataloader_num_workers
        loader: DataLoader[HostBatch] = DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(self.step * micro, self.train.max_train_steps * micro),
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if workers else None,
        )
        group: list[HostBatch] = []
        for batch in loader:
            group.append(batch)
            if len(group) == micro:
                yield group
                group = []

    def _optimise(self, micro_batches: list[HostBatch]) -> dict[str, Tensor]:
        rows = sum(len(batch.rows) for batch in micro_batches)
        parts: dict[str, Tensor] = {}
        for host in micro_batches:
            with self._autocast():
                loss = self.objective(self._predict, self._on_device(host), denominator=rows)
            if not torch.isfinite(loss.value):
                return self._skip("loss")
            self.scaler.scale(loss.value).backward()
            for name, value in loss.parts.items():  # they add up over micro-batches, as the loss does
                parts[name] = parts.get(name, torch.zeros_like(value)) + value
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(list(self.trainable.values()), self.train.max_grad_norm)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            return self._skip("gradient")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self.trainable.values())
        self._skipped_in_a_row = 0
        return parts | {"grad_norm": norm.detach()}

    def _skip(self, what: str) -> dict[str, Tensor]:
        """Leave the step out before it can spoil the weights; give up after a few in a row."""
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_NON_FINITE:
            raise PogdiffError(
                f"The {what} was not finite {MAX_NON_FINITE} times in a row, up to step {self.step + 1}.",
                hint="Lower train.learning_rate, or set train.mixed_precision to bf16 or no.",
                exit_code=Exit.NON_FINITE,
            )
        return {}

    def _on_device(self, host: HostBatch) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        x0, noise, t = move(host.x0), move(host.noise), move(host.t)
        if self.train.channels_last:
            x0, noise = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x0, noise))
        return Batch(
            x0=x0,
            x_t=self.adapter.add_noise(x0, noise, t),
            noise=noise,
            target=self.adapter.target(x0, noise, t),
            t=t,
            condition={name: move(tensor) for name, tensor in host.condition.items()},
            weight=self.adapter.snr_weight(t, self.train.snr_gamma) * move(host.loss_weight),
            neighbour=None if host.neighbour is None else {n: move(tensor) for n, tensor in host.neighbour.items()},
            neighbour_rows=move(host.neighbour_rows),
            neighbour_psi=move(host.neighbour_psi),
            alphas_cumprod_t=self.adapter.alphas_cumprod(t) if host.log_density is not None else None,
            log_density=None if host.log_density is None else move(host.log_density),
            transfer_draws=None if host.transfer_draws is None else move(host.transfer_draws),
        )

    def _predict(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        return self.adapter.predict(self.forward, x_t, t, condition).float()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(self.train.mixed_precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _save_where_due(self, request: Request) -> None:
        due = self.step % self.train.checkpointing_steps == 0 or self.step == self.train.max_train_steps
        if due or request.save or request.stop is not None:
            self.save()
            request.save = False
        if request.stop is not None and self.step < self.train.max_train_steps:
            raise Stopped(request.stop, self.step)

    def save(self) -> Path:
        """Write a checkpoint of this step."""
        ema: dict[str, Tensor] = {}
        state: dict[str, Any] = {"step": self.step, "fingerprint": self.fingerprint, "skipped": self.skipped}
        state |= {"scheduler": self.schedule.state_dict(), "scaler": self.scaler.state_dict()}
        if self.ema is not None:
            whole = self.ema.state_dict()
            ema = dict(zip(self.trainable, whole.pop("shadow_params"), strict=True))
            state["ema"] = {key: value for key, value in whole.items() if isinstance(value, (int, float, bool))}
        snapshot = checkpoint.Snapshot(
            weights={name: p.detach() for name, p in self.trainable.items()},
            optimizer=checkpoint.flatten_optimizer(self.optimizer, list(self.trainable)),
            ema=ema,
            state=state,
        )
        return checkpoint.save(self.places.checkpoints, snapshot, keep=self.train.checkpoints_total_limit)

    def _restore(self, snapshot: checkpoint.Snapshot) -> None:
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(snapshot.weights[name])
        checkpoint.restore_optimizer(self.optimizer, list(self.trainable), snapshot.optimizer)
        self.schedule.load_state_dict(snapshot.state["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate  # the schedule sets it at its next step only
        self.scaler.load_state_dict(snapshot.state["scaler"])
        if self.ema is not None:
            shadow = [snapshot.ema[name].to(self.device) for name in self.trainable]
            self.ema.load_state_dict(self.ema.state_dict() | snapshot.state["ema"] | {"shadow_params": shadow})
        self.step = snapshot.step
        self.skipped = int(snapshot.state["skipped"])
