"""Out of memory and halving: the same model from smaller pieces, and facts that say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyProject
from test_engine import adapter, caches, trainer, weights

from pogdiff_cli.engine.memory import forget_peak, in_pieces, peak
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.manifest import read_manifest

__all__ = ["adapter", "caches"]  # fixtures


class Cramped:
    """An objective for which more than ``rows`` rows do not fit."""

    def __init__(self, objective: Any, rows: int) -> None:
        self.objective, self.rows, self.seen = objective, rows, []

    def __call__(self, predict: Any, batch: Any, *, denominator: int) -> Any:
        self.seen.append(len(batch.x0))
        if len(batch.x0) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.objective(predict, batch, denominator=denominator)


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """|first - second| / |second| over all weights."""
    one, other = (torch.cat([t.flatten().double() for t in each.values()]) for each in (first, second))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("method", ["pogdiff", "cbdm", "t2h"])
@pytest.mark.parametrize(("fit", "pieces"), [(4, 2), (3, 4), (1, 8)])
def test_halved_micro_batches_train_the_same_model(
    adapter: Any,
    caches: Any,
    tmp_path: Path,
    method: str,
    fit: int,
    pieces: int,
) -> None:
    keys: dict[str, Any] = {"method": method, "train_batch_size": 8, "learning_rate": 1e-3}
    whole = trainer(adapter, caches, tmp_path / "whole", **keys)
    start = weights(whole)
    assert whole.run().pieces == 1
    halved = trainer(adapter, caches, tmp_path / "halved", on_out_of_memory="halve", **keys)
    cramped = Cramped(halved.objective, fit)
    halved.objective = cramped  # type: ignore[assignment]
    assert halved.run().pieces == pieces
    assert distance(weights(halved), weights(whole)) < 1e-5
    assert distance(start, weights(whole)) > 1e-3
    too_large = [rows for rows in cramped.seen if rows > fit]
    assert len(too_large) == pieces.bit_length() - 1  # what has been learnt is kept: no step asks for too much again


@pytest.mark.parametrize(("keys", "fit"), [({"on_out_of_memory": "halve"}, 0), ({"on_out_of_memory": "stop"}, 2)])
def test_where_halving_does_not_help_or_is_not_wanted_the_run_ends_with_advice(
    adapter: Any,
    caches: Any,
    tmp_path: Path,
    keys: dict[str, Any],
    fit: int,
) -> None:
    one = trainer(adapter, caches, tmp_path, **keys)
    one.objective = Cramped(one.objective, fit)  # type: ignore[assignment]
    with pytest.raises(PogdiffError, match="Out of memory") as failure:
        one.run()
    assert failure.value.exit_code == Exit.MEMORY


def test_other_failures_are_not_taken_for_a_lack_of_memory(
    adapter: Any,
    caches: Any,
    tmp_path: Path,
) -> None:
    one = trainer(adapter, caches, tmp_path, on_out_of_memory="halve")

    def broken(*arguments: object, **keys: object) -> None:
        raise RuntimeError("shapes do not match")

    one.objective = broken  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        one.run()
    assert one.pieces == 1


def test_pieces_hold_every_row_once_with_its_own_neighbour(adapter: Any, caches: Any, tmp_path: Path) -> None:
    (batch,) = trainer(adapter, caches, tmp_path, train_batch_size=8, caption_dropout=0.5).batches[0]
    assert 0 < len(batch.neighbour_rows) < 8
    pieces = in_pieces(batch, 4)
    assert [len(piece.rows) for piece in pieces] == [2, 2, 2, 2]
    assert torch.equal(torch.cat([piece.x0 for piece in pieces]), batch.x0)
    found = [
        (2 * number + int(row), float(psi), piece.neighbour["hidden"][i])
        for number, piece in enumerate(pieces)
        for i, (row, psi) in enumerate(zip(piece.neighbour_rows, piece.neighbour_psi, strict=True))
        if piece.neighbour is not None
    ]
    assert [row for row, _, _ in found] == batch.neighbour_rows.tolist()
    assert [psi for _, psi, _ in found] == batch.neighbour_psi.tolist()
    assert batch.neighbour is not None
    assert torch.equal(torch.stack([hidden for _, _, hidden in found]), batch.neighbour["hidden"])


def test_the_manifest_and_the_screen_say_into_how_many_pieces(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pogdiff_cli.stages import train

    made = train.objective
    monkeypatch.setattr(train, "objective", lambda *arguments: Cramped(made(*arguments), 1))
    done = project("train", "--gpus", "none", "--json", "--set", "train.on_out_of_memory=halve")
    assert done.status == 0, done.err
    assert "cut into 4 each" in done.err
    facts = next(stage for stage in json.loads(done.out)["stages"] if stage["key"] == "runs/pogdiff/train")["facts"]
    record = read_manifest(project.root / "manifest.yaml").record("runs/pogdiff/train")
    assert record is not None
    assert facts["micro_batches_cut_into"] == record.facts["micro_batches_cut_into"] == 4


def test_the_peak_is_that_of_what_came_since_it_was_forgotten() -> None:
    cpu, size = torch.device("cpu"), 200 * 2**20
    gone = torch.ones(size // 4)
    assert peak(cpu) > size
    del gone
    forget_peak(cpu)
    before = peak(cpu)
    kept = torch.ones(size // 4)
    assert size * 0.95 < peak(cpu) - before < size * 1.2
    assert kept[0] == 1
