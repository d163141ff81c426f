"""AdamW and its 8-bit kind: what is asked for, what is kept, and that a resumed run ends in the same bits."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import TinyProject
from test_engine import adapter, caches, same, trainer, weights

from pogdiff_cli.engine import checkpoint
from pogdiff_cli.engine.checkpoint import flatten_optimizer
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.config import TrainConfig

__all__ = ["adapter", "caches"]  # fixtures
_PACKED = "packed"


class EightBit(torch.optim.Optimizer):
    """Momentum kept as bytes, shown and taken back as bitsandbytes does: a plain count, tensors packed in a folder."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)
        self.table = torch.linspace(-1, 1, 255)  # one for all

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "state1": torch.zeros_like(parameter, dtype=torch.uint8)}
                    state |= {"absmax1": torch.ones(1), "qmap1": self.table}
                state["step"] += 1
                assert isinstance(state["step"], int)
                assert state["state1"].dtype == torch.uint8
                before = state["qmap1"][state["state1"].long()] * state["absmax1"]
                moment = 0.9 * before + 0.1 * parameter.grad
                state["absmax1"] = moment.abs().max().clamp(min=1e-12).reshape(1)
                state["state1"].copy_(((moment / state["absmax1"] + 1.0) * 127.0).round())
                parameter.sub_(group["lr"] * moment / (1 + 1 / state["step"]))

    def state_dict(self) -> dict[str, Any]:
        whole = super().state_dict()
        tensors = ("state1", "absmax1", "qmap1")
        whole["state"] = {
            number: {"step": entry["step"], _PACKED: {name: entry[name] for name in tensors}}
            for number, entry in whole["state"].items()
        }
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, entry in state_dict["state"].items():
            self.state[parameters[number]] = {**entry, **entry.pop(_PACKED, {})}


@pytest.fixture(params=["stand-in", *(["bitsandbytes"] if importlib.util.find_spec("bitsandbytes") else [])])
def eight_bit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """bitsandbytes, where it is installed; and something that behaves like it."""
    if request.param == "stand-in":
        module = ModuleType("bitsandbytes.optim")
        module.AdamW8bit = EightBit  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
        monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    return str(request.param)


EIGHT: dict[str, Any] = {"optimizer": "adamw8bit", "learning_rate": 1e-3}


def test_without_bitsandbytes_the_run_is_refused_with_the_command_that_mends_it(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    done = project("train", "--gpus", "none", "--set", "train.optimizer=adamw8bit")
    assert done.status == 2
    assert "pip install bitsandbytes" in done.err


def test_bitsandbytes_is_asked_for_what_the_configuration_says(
    adapter: Any,
    caches: Any,
    tmp_path: Path,
    eight_bit: str,
) -> None:
    one = trainer(
        adapter, caches, tmp_path, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, adam_weight_decay=0.1, **EIGHT
    )
    (group,) = one.optimizer.param_groups
    assert group["betas"] == (0.8, 0.95)
    assert (group["lr"], group["eps"], group["weight_decay"]) == (1e-3, 1e-6, 0.1)


@pytest.mark.parametrize("channels_last", [True, False])
def test_an_8_bit_run_that_is_resumed_ends_in_the_same_bits(
    adapter: Any,
    caches: Any,
    tmp_path: Path,
    eight_bit: str,
    channels_last: bool,
) -> None:
    keys = {**EIGHT, "channels_last": channels_last, "checkpointing_steps": 2}
    whole = trainer(adapter, caches, tmp_path / "whole", **keys)
    start = weights(whole)
    whole.run()
    assert not same(weights(whole), start)

    first = trainer(adapter, caches, tmp_path / "parts", **keys)
    with pytest.raises(InterruptedError):
        first.run(at_step=[interrupted_at(3)])
    second = trainer(adapter, caches, tmp_path / "parts", **keys)
    assert second.resume() == 2
    second.run()
    assert same(weights(second), weights(whole))


def interrupted_at(last: int) -> Any:
    def interrupt(step: int, denoiser: object) -> dict[str, float]:
        del denoiser
        if step == last:
            raise InterruptedError
        return {}

    return interrupt


def test_the_state_of_an_8_bit_run_takes_a_quarter_in_memory_and_on_disk(
    adapter: Any,
    caches: Any,
    tmp_path: Path,
    eight_bit: str,
) -> None:
    sizes = {}
    for name in ("adamw", "adamw8bit"):
        one = trainer(adapter, caches, tmp_path / name, optimizer=name)
        one.run()
        state = flatten_optimizer(one.optimizer, list(one.trainable))
        moments = [t for key, t in state.items() if key.split("/")[0] in ("exp_avg", "state1")]
        sizes[name] = sum(t.numel() * t.element_size() for t in moments)
        saved = checkpoint.load(tmp_path / name / "checkpoints" / "checkpoint-000006").optimizer
        assert {key: t.dtype for key, t in saved.items()} == {key: t.dtype for key, t in state.items()}
    # bitsandbytes keeps tensors of less than 4,096 numbers whole
    assert sizes["adamw8bit"] < (0.26 if eight_bit == "stand-in" else 0.6) * sizes["adamw"]


def test_8_bit_states_cannot_be_split_over_processes() -> None:
    from pogdiff_cli.engine.optimizer import make_optimizer

    train = TrainConfig(optimizer="adamw8bit", parallel="fsdp")
    with pytest.raises(PogdiffError, match="fsdp") as refusal:
        make_optimizer([torch.nn.Parameter(torch.zeros(2))], train, sharded="sharded")
    assert refusal.value.exit_code == Exit.USAGE
