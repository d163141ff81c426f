"""The whole road on a tiny Stable Diffusion in the real format, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from conftest import TinyProject, write_pictures
from diffusers import StableDiffusionPipeline
from PIL import Image

from pogdiff_cli.project.digests import digest_bytes
from pogdiff_cli.project.manifest import read_manifest, write_manifest


def record_the_log(project: TinyProject, log: Path) -> None:
    """As if training had written it."""
    manifest = read_manifest(project.root / "manifest.yaml")
    manifest.runs[log.parent.name]["train"].logs[log.relative_to(project.root).as_posix()] = digest_bytes(log)
    write_manifest(project.root / "manifest.yaml", manifest)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


def test_a_stage_run_twice_says_that_it_is_up_to_date(project: TinyProject) -> None:
    first = project("caption", "--json")
    again = project("caption", "--json")
    assert (first.status, again.status) == (0, 0)
    assert json.loads(first.out)["stages"][0]["state"] == "done"
    assert json.loads(again.out)["stages"][0]["state"] == "up to date"


def test_train_and_evaluate_as_typed_bring_up_to_date_what_comes_first(project: TinyProject) -> None:
    trained = project("train", "--json")
    assert trained.status == 0, trained.err
    keys = [stage["key"] for stage in json.loads(trained.out)["stages"]]
    assert keys == ["caption", "index", "fit-density", "runs/pogdiff/train"]

    scored = project("evaluate", "--metrics", "fid,dino,recall", "--json")
    assert scored.status == 0, scored.err
    stages = json.loads(scored.out)["stages"]
    assert [stage["key"] for stage in stages] == ["runs/pogdiff/sample", "runs/pogdiff/evaluate"]
    groups = stages[-1]["facts"]
    assert set(groups) == {"all", "many", "medium", "few"}
    assert {"fid", "similarity", "recall"} <= set(groups["few"])
    assert "identity" not in groups["few"]

    root = Path(project.root)
    final = StableDiffusionPipeline.from_pretrained(root / "runs/pogdiff/final", safety_checker=None)
    assert type(final.unet).__name__ == "UNet2DConditionModel"
    images = sorted((root / "runs/pogdiff/samples").glob("*/*.png"))
    assert len(images) == 8
    with Image.open(images[0]) as image:
        assert image.size == (32, 32)
    manifest = yaml.safe_load((root / "manifest.yaml").read_text())
    record = manifest["runs"]["pogdiff"]["train"]
    assert record["state"] == "done"
    assert record["versions"]["torch"]
    assert record["devices"]
    assert set(record["inputs"]) == {"data", "model", "captions", "index", "density"}

    # images that are there are kept; a lost one is made again from the same noise
    before = pixels(images[0])
    images[0].unlink()
    again = project("sample", "--json")
    facts = json.loads(again.out)["stages"][0]["facts"]
    assert (facts["generated"], facts["kept"]) == (1, 7)
    after = pixels(images[0])
    assert bool((after == before).all())  # the same noise, in the same batch


def test_two_runs_are_compared_and_reported(project: TinyProject) -> None:
    for method in ("vanilla", "pogdiff"):
        assert project("train", "--method", method).status == 0
    verdict = project("evaluate", "--baseline", "vanilla", "--candidate", "pogdiff", "--json")
    assert verdict.status == 0, verdict.err
    groups = {group["group"]: group for group in json.loads(verdict.out)["comparison"]["groups"]}
    assert groups["few"]["verdict"] == "inconclusive"  # two identities prove nothing

    log = Path(project.root) / "runs/pogdiff/metrics.jsonl"
    with log.open("a") as file:
        file.write(json.dumps({"step": 6, "validation_loss_few": 0.5, "validation_loss_many": 0.25}) + "\n")
    record_the_log(project, log)
    page = project("report", "--paper")
    assert page.status == 0, page.err
    html = (Path(project.root) / "report.html").read_text()
    assert html.count("Embedding map: ") == 4  # two of the few, one of each other group
    assert "Loss: validation, few" in html
    assert "Loss: validation, medium" not in html
    assert "AgeDB-IT2I-L" in html
    shown = project.command("compare", "-C", project.root, "--groups", "few", "--json")
    assert {value["run"] for value in json.loads(shown.out)["values"]} == {"vanilla", "pogdiff"}
    assert "vanilla" in html
    assert "data:image/" in html
    assert "http://" not in html.replace("http://www.w3.org", "")

    gate = project("evaluate", "--run", "pogdiff", "--set", "evaluate.gates={all.identity: '>= 1.01'}")
    assert gate.status == 7
    assert "failed" in gate.out


def test_asking_for_gpus_that_are_not_there_says_what_to_type(project: TinyProject) -> None:
    import torch

    there = torch.cuda.device_count()
    outcome = project("train", "--gpus", str(there + 4))
    assert outcome.status == 2
    assert f"--gpus {there + 4}" in outcome.err
    assert ("none" if there == 0 else str(there)) in outcome.err


def test_without_prerequisites_a_missing_one_is_named(project: TinyProject) -> None:
    outcome = project("train", "--no-prerequisites")
    assert outcome.status == 4
    assert "pogdiff caption" in outcome.err


def test_a_dry_run_makes_nothing(project: TinyProject) -> None:
    outcome = project("caption", "--dry-run", "--json")
    assert json.loads(outcome.out)["stages"][0]["state"] == "planned"
    assert not (Path(project.root) / "artifacts" / "captions.jsonl").exists()


def test_status_names_what_changed(project: TinyProject) -> None:
    project("fit-density")
    changed = project("status", "--set", "density.latent_dim=8", "--json")
    states = {stage["key"]: stage for stage in json.loads(changed.out)["stages"]}
    assert states["caption"]["fresh"]
    assert states["fit-density"]["reasons"] == ["density.latent_dim: 16 -> 8"]


def test_missing_weights_are_named_with_the_command_that_fetches_them(project: TinyProject) -> None:
    absent = ("--set", "pretrained_model_name_or_path=nobody/no-such-model")
    outcome = project("caption", *absent)
    assert outcome.status == 4
    assert "hf download nobody/no-such-model" in outcome.err


def test_lora_runs_from_the_command_line_and_is_sampled(project: TinyProject) -> None:
    options = ("--set", "train.tuning=lora", "--set", "train.rank=2")
    assert project("train", "--name", "small", *options).status == 0
    sampled = project("sample", "--run", "small", *options)
    assert sampled.status == 0, sampled.err
    assert (Path(project.root) / "runs/small/final/pytorch_lora_weights.safetensors").is_file()


def test_images_of_several_aspects_train_in_their_buckets_and_inspect_counts_them(project: TinyProject) -> None:
    images = write_pictures(project.root / "mixed", {"Ada": 5, "Grace": 2})  # seven images: four do not divide them
    wide = sorted(images.rglob("*.png"))[::3]
    for path in wide:
        with Image.open(path) as image:
            stretched = image.resize((60, 36))
        stretched.save(path)
    bucketed = project.configure("data.images=mixed", "data.resize=bucket")
    seen = bucketed("inspect", "--json")
    assert seen.status == 0, seen.err
    facts = json.loads((project.root / "inspect.json").read_text())
    assert facts["buckets"] == {"32x32": 4, "40x24": 3}
    trained = bucketed("train")
    assert trained.status == 0, trained.err
    exposure = json.loads((project.root / "runs/pogdiff/exposure.json").read_text())
    assert sum(exposure.values()) == 6 * 4


def test_the_tail_may_be_sampled_and_scored_on_more_images_than_the_rest(project: TinyProject) -> None:
    paper = project.configure("sample.few_images_per_identity=3", "evaluate.few_images_per_identity=3")
    for command in (("train", "--method", "vanilla"), ("evaluate", "--metrics", "recall,identity")):
        ended = paper(*command)
        assert ended.status == 0, ended.err
    root = Path(paper.root)
    drawn = sorted(
        len(list(folder.glob("*.png"))) for folder in (root / "runs/vanilla/samples").iterdir() if folder.is_dir()
    )
    assert drawn == [2, 2, 3, 3]
    scores = json.loads((root / "runs/vanilla/evaluation/scores.json").read_text())
    images = {group: (found["fewest_images"], found["most_images"]) for group, found in scores["groups"].items()}
    assert images == {"all": (2, 2), "many": (2, 2), "medium": (2, 2), "few": (3, 3)}
    assert {entry["generated"] for entry in scores["few_per_identity"]} == {3}
    assert [point[0] for point in scores["curves"]["recall"]["few"]] == [1, 2, 3]
