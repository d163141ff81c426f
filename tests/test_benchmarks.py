"""The benchmarks run on a tiny model, and their arithmetic is that of a stopwatch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyProject

from benchmarks import results, step
from benchmarks.ratios import Figure, Target, ratio
from benchmarks.side_process import Pace, naive_objective, peak_host
from benchmarks.sides import Block, Running, Side, SideFailed, running
from pogdiff_cli.engine.objectives import Batch, PogDiff


def test_a_ratio_is_taken_within_each_round_and_the_median_counts() -> None:
    # the machine is three times slower in the second round, for both: no ratio may notice
    found = ratio("r", "", [3.0, 9.0, 4.0], [2.0, 6.0, 2.0], Target(relation="at least", bound=1.5))
    assert found.values == (1.5, 1.5, 2.0)
    assert found.median == 1.5
    assert found.met is True
    assert found.as_json()["min"] == 1.5
    assert found.as_json()["max"] == 2.0


@pytest.mark.parametrize(
    ("relation", "value", "met"),
    [("at most", 1.0, True), ("at most", 1.01, False), ("below", 1.0, False), ("at least", 0.99, False)],
)
def test_a_target_is_met_on_its_own_side(relation: Any, value: float, met: bool) -> None:
    found = Figure(name="f", what="", values=(value,), target=Target(relation=relation, bound=1.0))
    assert found.met is met
    assert ("MISSED" in found.line()) is not met


def test_measurements_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="make no pairs"):
        ratio("r", "", [1.0, 2.0], [1.0])


def test_a_block_counts_its_own_steps_and_separates_waiting_from_working() -> None:
    def slow_loader() -> Iterator[int]:
        for number in range(100):
            time.sleep(0.02)
            yield number

    answers: list[dict[str, Any]] = []

    def requests() -> Iterator[str]:
        yield "2\n"
        time.sleep(0.2)  # another side's turn: counted nowhere
        yield "3\n"

    seen = []
    with pytest.raises(SystemExit):
        for number in Pace(requests(), answers.append)(slow_loader(), "Training x"):
            seen.append(number)
            time.sleep(0.01)
    assert seen == [0, 1, 2, 3, 4]
    ready, first, second = answers
    assert ready == {"ready": True}
    assert [first["steps"], second["steps"]] == [2, 3]
    assert 0.06 <= second["waited"] < second["seconds"] - 0.03 + 1e-9
    assert 0.09 <= second["seconds"] < 0.2


def test_only_the_training_loop_is_paced() -> None:
    assert list(Pace(iter(()), print)(range(3), "Encoding images", 3)) == [0, 1, 2]


def test_the_highest_memory_holds_what_is_in_use() -> None:
    ballast = torch.ones(2**23)  # 32 MiB, written
    assert peak_host() > ballast.numel() * 4


def planted(seconds: list[float], peak: int) -> Running:
    side = Side(name="", kind="plain", project=Path())
    one = Running(side=side, process=None, log=Path())  # type: ignore[arg-type]
    one.blocks = [
        Block(steps=2, seconds=2 * value, waited=0.02 * value, peak_host=peak, peak_gpu=0, threads=1)
        for value in seconds
    ]
    return one


def test_the_figures_of_a_step_follow_from_planted_seconds() -> None:
    sides = {
        "plain": planted([3.0, 6.0, 3.2], 100),
        "vanilla": planted([2.0, 4.0, 2.0], 90),
        "pogdiff": planted([2.6, 5.2, 3.0], 120),
        "both": planted([3.8, 4.0, 4.2], 100),
        "naive": planted([4.0, 4.0, 4.0], 100),
    }
    found = {figure.name: figure for figure in step.figures(sides)}
    assert found["speed"].median == pytest.approx(1.5)
    assert found["pogdiff"].median == pytest.approx(1.3)
    assert found["both"].median == pytest.approx(1.0)
    assert found["loading vanilla"].median == pytest.approx(0.01)
    assert found["memory vanilla"].median == pytest.approx(0.9)
    assert [found[name].met for name in ("speed", "pogdiff", "both", "memory pogdiff")] == [True, True, True, False]


def test_two_forwards_and_one_batched_forward_have_the_same_loss_and_gradient() -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(6, 4).double()

    def predict(x: torch.Tensor, t: torch.Tensor, condition: dict[str, torch.Tensor]) -> torch.Tensor:
        del t
        return network(torch.cat([x, condition["hidden"]], 1))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    batch = Batch(
        x0=draw(5, 4),
        x_t=draw(5, 4),
        noise=draw(5, 4),
        target=draw(5, 4),
        t=torch.arange(5),
        condition={"hidden": draw(5, 2)},
        weight=torch.rand(5, dtype=torch.float64),
        neighbour={"hidden": draw(3, 2)},
        neighbour_rows=torch.tensor([4, 0, 2]),
        neighbour_psi=torch.rand(3, dtype=torch.float64),
    )
    gradients = []
    for objective in (PogDiff(), lambda *given, **keys: naive_objective(None, *given, **keys)):
        network.zero_grad()
        loss = objective(predict, batch, denominator=10.0)
        loss.value.backward()
        gradients.append((loss.value.detach(), network.weight.grad.clone()))  # type: ignore[union-attr]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


def test_a_result_file_names_machine_and_command_and_its_table_spares_what_stands_around(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"# Mine\n\nbefore\n\n{results.BEGIN}\nold\n{results.END}\n\nafter\n")
    figure = ratio("speed", "images | a second", [3.0, 3.0], [2.0, 1.5], Target(relation="at least", bound=2.0))
    path = results.write("one", title="One", figures=[figure], details={"x": 1}, folder=tmp_path)
    content = json.loads(path.read_text())
    assert content["figures"][0]["pairs"] == [1.5, 2.0]
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["torch"] == torch.__version__
    assert content["command"]
    text = page.read_text()
    assert text.startswith("# Mine\n\nbefore\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "| 1.75 | 1.5 to 2 | 2 | at least 2: missed |" in text
    results.write_table(tmp_path)
    assert page.read_text() == text


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    side = Side(name="vanilla", kind="pogdiff", project=tmp_path / "p")
    with pytest.raises(SideFailed, match=r"vanilla ended with status [1-9](?s:.)*pogdiff\.yaml"), running([side]):
        pass


@pytest.mark.slow
def test_every_side_of_the_step_benchmark_trains_a_tiny_model(project: TinyProject, tmp_path: Path) -> None:
    assert project("caption").status == 0
    settings = [word for setting in project.settings for word in ("--set", setting)]
    small = ["--rounds", "5", "--steps", "1", "--warm-up", "1"]
    step.main(["--project", str(project.root), *settings, *small, "--results", str(tmp_path / "results")])
    content = json.loads((tmp_path / "results" / "step-cpu.json").read_text())
    assert set(content["details"]["sides"]) == {"plain", "vanilla", "pogdiff", "both", "naive"}
    assert all(min(figure["pairs"]) > 0 for figure in content["figures"])
    assert [len(figure["pairs"]) for figure in content["figures"][:3]] == [5, 5, 5]
