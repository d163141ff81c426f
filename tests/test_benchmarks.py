"""The benchmarks run on a tiny model, and their arithmetic is that of a stopwatch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import TinyProject
from PIL import Image

from benchmarks import architectures, draws, results, step
from benchmarks.flops import published_peak, step_flops
from benchmarks.models import ARCHITECTURES, build
from benchmarks.plain_loop import Example, ImageFolder
from benchmarks.ratios import Figure, Target, ratio
from benchmarks.side_process import Pace, naive_objective, peak_host
from benchmarks.sides import Block, Running, Side, SideFailed, running
from pogdiff_cli.engine.objectives import PogDiff
from pogdiff_cli.engine.terms import Batch


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


def test_a_block_counts_its_own_steps_and_separates_waiting_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("benchmarks.side_process.time.perf_counter", lambda: clock[0])
    answers: list[dict[str, Any]] = []
    seen = []

    def loader() -> Iterator[int]:
        for number in range(100):
            clock[0] += 2.0
            yield number

    def requests() -> Iterator[str]:
        yield "2\n"
        clock[0] += 1000.0  # another side's turn: counted nowhere
        yield "3\n"

    def loop() -> None:
        for number in Pace(requests(), answers.append)(loader(), "Training x"):
            seen.append(number)
            clock[0] += 5.0

    with pytest.raises(SystemExit):
        loop()
    assert seen == [0, 1, 2, 3, 4]
    assert answers[0] == {"ready": True}
    timed = [(answer["steps"], answer["seconds"], answer["waited"]) for answer in answers[1:]]
    assert timed == [(2, 14.0, 4.0), (3, 21.0, 6.0)]


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
    fresh = {name: sides[name].blocks for name in step.MEMORY}
    found = {figure.name: figure for figure in step.figures(sides, fresh)}
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
    small = ["--rounds", "5", "--memory-rounds", "5", "--steps", "1", "--warm-up", "1"]
    step.main(["--project", str(project.root), *settings, *small, "--results", str(tmp_path / "results")])
    content = json.loads((tmp_path / "results" / "step-cpu.json").read_text())
    assert set(content["details"]["sides"]) == {"plain", "vanilla", "pogdiff", "both", "naive"}
    assert all(min(figure["pairs"]) > 0 for figure in content["figures"])
    assert {len(figure["pairs"]) for figure in content["figures"]} == {5}


def test_a_plain_picture_is_cut_from_the_middle_and_scaled_to_one(tmp_path: Path, tiny_sd: Path) -> None:
    from transformers import CLIPTokenizer

    pixels = np.zeros((32, 96, 3), dtype=np.uint8)
    pixels[:, 32:64] = (255, 0, 51)  # the middle third; 51 / 255 = 0.2
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd, subfolder="tokenizer")
    examples = [Example(path=tmp_path / "wide.png", caption="a")]
    item = ImageFolder(examples, tokenizer, 32, flip_share=0.0)[0]
    assert item["pixels"].shape == (3, 32, 32)
    middle = item["pixels"][:, 4:-4, 4:-4]
    assert torch.allclose(middle, torch.tensor([1.0, -1.0, -0.6])[:, None, None].expand_as(middle), atol=1e-6)
    assert item["tokens"].shape == (77,)


def test_twice_the_images_are_twice_the_work_and_lora_spares_the_gradient_of_weights() -> None:
    def work(batch: int, tuning: Literal["full", "lora"]) -> int:
        return step_flops(ARCHITECTURES["flux"], "tiny", batch=batch, latent=4, tuning=tuning)

    assert work(2, "full") > 1.9 * work(1, "full")  # what depends on the timestep alone is per image too
    assert 0.6 * work(1, "full") < work(1, "lora") < work(1, "full")


@pytest.mark.parametrize(("name", "billions"), [("sd15", 0.860), ("sdxl", 2.567), ("flux", 11.90)])
@pytest.mark.slow
def test_architectures_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    with torch.device("meta"):
        denoiser = build(ARCHITECTURES[name], "published")
    assert sum(p.numel() for p in denoiser.parameters()) / 1e9 == pytest.approx(billions, rel=1e-3)


def test_the_longest_name_of_a_card_counts() -> None:
    assert published_peak("NVIDIA H100 PCIe") == 756e12
    assert published_peak("NVIDIA H200") == 989e12
    assert published_peak("NVIDIA L40S") == 362e12
    assert published_peak("Some Card") is None


def test_published_sizes_without_a_gpu_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert architectures.main([]) == 2
    assert "needs a GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_an_architecture_is_measured_at_tiny_size_on_the_cpu(tmp_path: Path) -> None:
    given = ["sd15", "--tiny", "--rounds", "5", "--steps", "1", "--warm-up", "1", "--results", str(tmp_path)]
    assert architectures.main(given) == 0
    content = json.loads((tmp_path / "architectures.json").read_text())
    assert {figure["name"] for figure in content["figures"]} >= {"sd15 speed", "sd15 pogdiff", "sd15 peak measured"}
    assert all(figure["target"] is None for figure in content["figures"])
    assert content["details"]["sd15"]["tflop_a_step"] > 0


def test_steps_on_few_and_many_records_are_paired_and_filed(tmp_path: Path) -> None:
    words = ["--few", "40", "--many", "300", "--rounds", "1", "--steps", "1", "--scratch", str(tmp_path)]
    draws.main([*words, "--results", str(tmp_path)])
    figures = {figure["name"]: figure for figure in json.loads((tmp_path / "draws.json").read_text())["figures"]}
    assert set(figures) == {"draws_time", "step_time"}
    assert figures["step_time"]["target"] == "at most 1.05"
    assert all(len(figure["pairs"]) == 1 and figure["median"] > 0 for figure in figures.values())
