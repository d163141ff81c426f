"""A changed setting makes stale the stages that depend on it, and no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyProject

from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.models.extractors.presence import files_of
from pogdiff_cli.project.config import Config, dotted
from pogdiff_cli.project.freshness import Freshness, freshness
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.lineage import StagePlan, plan_run
from pogdiff_cli.project.loading import load_config
from pogdiff_cli.project.manifest import StageRecord

ALL = {"caption", "index", "fit-density", "train", "sample", "evaluate"}
SAMPLE = {"sample", "evaluate"}
TRAIN = {"train"} | SAMPLE
DENSITY = {"fit-density"} | TRAIN
INDEX = {"index"} | TRAIN
CAPTION = {"caption"} | DENSITY
EVALUATE = {"evaluate"}
NOTHING: set[str] = set()

#: For every key: another value, and what it makes stale in a project whose run is PoGDiff, fully fine-tuned.
TABLE: dict[str, tuple[Any, set[str]]] = {
    # The weights (other ones lie elsewhere here) and the random numbers reach everything but the index, which is
    # computed from the images alone.
    "pretrained_model_name_or_path": ("elsewhere", CAPTION),
    "seed": (1, CAPTION),
    # Where images lie does not matter, only what they are: their digest is an input of its own.
    "data.images": ("pictures", NOTHING),
    "data.metadata": (None, NOTHING),
    "data.resolution": (256, TRAIN),
    "data.resize": ("pad", TRAIN),
    "data.few_at_most": (3, EVALUATE),
    "data.many_at_least": (30, EVALUATE),
    "data.max_unreadable": (0.5, NOTHING),
    "caption.captioner": ("files", CAPTION),
    "caption.prompts": (["{name}"], CAPTION),
    "caption.names": ("keep", CAPTION),
    # What a vision-language model is told, and where it is asked, does not reach templates.
    "caption.instruction": ("What is this?", NOTHING),
    "caption.options": ({"max_new_tokens": 9}, NOTHING),
    "caption.base_url": ("http://elsewhere/v1", NOTHING),
    "caption.api_key_env": ("OTHER_KEY", NOTHING),
    "caption.concurrency": (1, NOTHING),
    "caption.max_retries": (1, NOTHING),
    "caption.timeout": (1.0, NOTHING),
    "caption.allow_python": (True, NOTHING),
    "caption.batch_size": (1, NOTHING),
    "index.extractor": ("dlib", INDEX),
    "index.k": (3, INDEX),
    "index.search": ("exact", INDEX),
    "index.batch_size": (1, NOTHING),
    "density.text": ("prompt", DENSITY),
    "density.scale": ("literal", TRAIN),
    "density.temperature": (2.0, TRAIN),
    "density.mean": (5.0, TRAIN),
    "density.bound": ("iwae", DENSITY),
    "density.samples": (8, DENSITY),
    "density.latent_dim": (4, DENSITY),
    "density.hidden_dim": (32, DENSITY),
    "density.steps": (10, DENSITY),
    "density.learning_rate": (1e-2, DENSITY),
    "train.method": ("vanilla", TRAIN),
    "train.a1": (0.5, TRAIN),
    "train.a2": (0.5, TRAIN),
    "train.a3": (0.5, TRAIN),
    "train.psi_terms": (["img_sim"], TRAIN),
    "train.neighbour_grad": ("stop", TRAIN),
    "train.roulette": (0.1, TRAIN),
    "train.sampling": ("sqrt", TRAIN),
    "train.loss_weight": ("inverse_sqrt", TRAIN),
    # What only another method reads is not read here.
    "train.cbdm_tau": (0.5, NOTHING),
    "train.cbdm_gamma": (0.5, NOTHING),
    "train.cbdm_uniform": ("identity", NOTHING),
    "train.cbdm_drop": (0.5, NOTHING),
    "train.t2h_temperature": (0.5, NOTHING),
    "train.tuning": ("lora", TRAIN),
    "train.rank": (4, NOTHING),
    "train.lora_alpha": (4.0, NOTHING),
    "train.lora_targets": (["to_q"], NOTHING),
    "train.use_dora": (True, NOTHING),
    "train.train_text_encoder": (True, TRAIN),
    "train.text_encoder_rank": (4, NOTHING),
    "train.text_encoder_lr": (1e-3, NOTHING),
    "train.class_prompts": (["a face"], TRAIN),
    "train.class_images": ("faces", NOTHING),
    "train.num_class_images": (7, NOTHING),
    "train.prior_loss_weight": (0.5, NOTHING),
    "train.max_train_steps": (10, TRAIN),
    "train.train_batch_size": (2, TRAIN),
    "train.gradient_accumulation_steps": (2, TRAIN),
    "train.learning_rate": (1e-4, TRAIN),
    "train.lr_scheduler": ("cosine", TRAIN),
    "train.lr_warmup_steps": (5, TRAIN),
    "train.adam_beta1": (0.8, TRAIN),
    "train.adam_beta2": (0.99, TRAIN),
    "train.adam_epsilon": (1e-6, TRAIN),
    "train.adam_weight_decay": (0.0, TRAIN),
    "train.max_grad_norm": (2.0, TRAIN),
    "train.optimizer": ("adamw8bit", TRAIN),
    "train.mixed_precision": ("no", TRAIN),
    "train.gradient_checkpointing": (True, TRAIN),
    "train.channels_last": (False, TRAIN),
    "train.compile": (True, TRAIN),
    "train.snr_gamma": (5.0, TRAIN),
    "train.timestep_sampling": ("logit_normal", TRAIN),
    "train.logit_mean": (0.5, TRAIN),
    "train.logit_std": (0.5, TRAIN),
    "train.max_token_length": (150, TRAIN),
    "train.guidance_scale": (3.5, TRAIN),
    "train.noise_offset": (0.1, TRAIN),
    "train.caption_dropout": (0.2, TRAIN),
    "train.random_flip": (True, TRAIN),
    "train.use_ema": (True, TRAIN),
    "train.ema_decay": (0.9, NOTHING),
    "train.checkpointing_steps": (7, NOTHING),
    "train.checkpoints_total_limit": (1, NOTHING),
    "train.resume_from_checkpoint": ("none", NOTHING),
    "train.validation_loss_steps": (7, NOTHING),
    "train.validation_steps": (7, NOTHING),
    "train.validation_identities": (1, NOTHING),
    "train.logging_steps": (1, NOTHING),
    "train.report_to": (["tensorboard"], NOTHING),
    "train.dataloader_num_workers": (1, NOTHING),
    "train.parallel": ("fsdp", NOTHING),
    "train.on_out_of_memory": ("halve", NOTHING),
    "sample.prompt": ("{name}.", SAMPLE),
    "sample.images_per_identity": (3, SAMPLE),
    "sample.few_images_per_identity": (500, SAMPLE),
    "sample.num_inference_steps": (5, SAMPLE),
    "sample.guidance_scale": (2.0, SAMPLE),
    "sample.true_cfg_scale": (2.0, SAMPLE),
    "sample.negative_prompt": ("blurry", SAMPLE),
    "sample.eta": (1.0, SAMPLE),
    "sample.scheduler": ("native", SAMPLE),
    "sample.batch_size": (1, NOTHING),
    "evaluate.metrics": (["fid"], EVALUATE),
    "evaluate.face": ("hf:a/face#cls", EVALUATE),
    "evaluate.dino": ("dlib", EVALUATE),
    "evaluate.recall_threshold": (0.5, EVALUATE),
    "evaluate.copy_threshold": (0.5, EVALUATE),
    "evaluate.true_set": ("heldout", EVALUATE),
    "evaluate.images_per_identity": (2, EVALUATE),
    "evaluate.few_images_per_identity": (2, EVALUATE),
    "evaluate.bootstrap": (500, EVALUATE),
    # Gates judge scores that are there; they make none.
    "evaluate.gates": ({"few.recall": ">= 0.5"}, NOTHING),
    "evaluate.batch_size": (1, NOTHING),
    # Nobody is asked by default.
    "evaluate.judge.model": ("openai:x", NOTHING),
    "evaluate.judge.protocol": ("paper", NOTHING),
    "evaluate.judge.repeats": (3, NOTHING),
    "evaluate.judge.images_per_identity": (1, NOTHING),
    "evaluate.judge.options": ({"temperature": 0}, NOTHING),
    "evaluate.judge.base_url": ("http://127.0.0.1:8000/v1", NOTHING),
    "evaluate.judge.api_key_env": (None, NOTHING),
    "evaluate.judge.max_requests": (1, NOTHING),
    "evaluate.judge.max_retries": (0, NOTHING),
    "evaluate.judge.concurrency": (1, NOTHING),
    "evaluate.judge.timeout": (5.0, NOTHING),
    "evaluate.judge.allow_python": (True, NOTHING),
    # Raters judge images that are there; what they said is an input of the evaluation.
    "rate.protocol": ("similarity", NOTHING),
    "rate.subject": ("cat", NOTHING),
    "rate.groups": (["few"], NOTHING),
    "rate.identities_per_group": (1, NOTHING),
    "rate.images_per_identity": (1, NOTHING),
    "rate.references": (1, NOTHING),
    "rate.repeats": (0.5, NOTHING),
    "rate.attention_checks": (0, NOTHING),
    "rate.attention_pass": (0.5, NOTHING),
    "rate.failed_raters": ("exclude", NOTHING),
    "rate.image_side": (128, NOTHING),
    "rate.max_megabytes": (5, NOTHING),
    "extractors": ({"dlib": {"weights": "other.dat"}}, EVALUATE),  # evaluate.face is dlib
    "runs": ({"vanilla": {"train.method": "vanilla"}}, NOTHING),
}


class Road:
    """A finished project on disk whose artifacts are one-line files, and what is stale under other settings."""

    def __init__(self, root: Path, **base: Any) -> None:
        self.root, self.base = root, base
        (root / "pogdiff.yaml").write_text("")
        manifest = self.project({}).manifest()
        for plan in self.plans({}):
            for path in plan.outputs:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(path)
        project = self.project({})
        for plan in self.plans({}):
            record = StageRecord(
                command="",
                state="done",
                parameters=plan.parameters,
                inputs=self.inputs(project, plan),
                outputs={path: str(project.digests.of(root / path)) for path in plan.outputs},
            )
            manifest.put(plan.key, record)
        project.write_manifest(manifest)

    def project(self, changes: dict[str, Any]) -> Project:
        overrides = {**self.base, **changes}
        return Project(self.root, load_config(self.root / "pogdiff.yaml", overrides=overrides, environment={}))

    def plans(self, changes: dict[str, Any]) -> tuple[StagePlan, ...]:
        return plan_run(self.project(changes).config, "a")

    def inputs(self, project: Project, plan: StagePlan, data: str = "images") -> dict[str, str]:
        model = f"weights of {project.config.pretrained_model_name_or_path}"
        known = {"data": data, "model": model, "tokenizer": model}
        return {
            name: known[name] if path is None else project.digests.of(self.root / path) or "missing"
            for name, path in plan.inputs.items()
        }

    def states(self, changes: dict[str, Any], data: str = "images") -> dict[str, Freshness]:
        project = self.project(changes)
        states: dict[str, Freshness] = {}
        for plan in self.plans(changes):
            states[plan.key] = freshness(project, plan, self.inputs(project, plan, data), states)
        return {key.rsplit("/", 1)[-1]: state for key, state in states.items()}

    def stale(self, changes: dict[str, Any], data: str = "images") -> set[str]:
        return {stage for stage, state in self.states(changes, data).items() if not state.fresh}


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    return Road(tmp_path_factory.mktemp("road"))


def test_the_table_speaks_of_every_key_and_every_other_value_is_another() -> None:
    defaults = dotted(Config(), "", operational="with")
    assert set(TABLE) == set(defaults)
    assert [key for key, (value, _) in TABLE.items() if value == defaults[key]] == []


@pytest.mark.parametrize("key", TABLE)
def test_a_changed_setting_makes_stale_what_depends_on_it_and_nothing_else(road: Road, key: str) -> None:
    value, stale = TABLE[key]
    assert road.stale({key: value}) == stale


def test_with_nothing_changed_everything_is_up_to_date(road: Road) -> None:
    assert road.stale({}) == NOTHING


def test_other_images_make_everything_stale(road: Road) -> None:
    assert road.stale({}, data="other images") == ALL


@pytest.mark.parametrize(
    ("base", "changes", "stale"),
    [
        # A stage that a method does not use never makes its run stale.
        ({"train.method": "vanilla"}, {"index.k": 3}, {"index"}),
        ({"train.method": "vanilla"}, {"density.latent_dim": 4}, {"fit-density"}),
        ({"train.method": "vanilla"}, {"density.temperature": 2.0}, set()),
        ({"train.method": "vanilla"}, {"train.a1": 0.5}, NOTHING),
        ({"train.method": "cbdm"}, {"index.k": 3}, {"index"}),
        ({"train.method": "cbdm"}, {"density.latent_dim": 4}, {"fit-density"}),
        ({"train.method": "cbdm"}, {"train.cbdm_tau": 0.5}, TRAIN),
        ({"train.method": "t2h"}, {"index.k": 3}, {"index"}),
        ({"train.method": "t2h"}, {"density.latent_dim": 4}, DENSITY),
        ({"train.method": "t2h"}, {"train.t2h_temperature": 2.0}, TRAIN),
        ({"train.psi_terms": ["img_sim"]}, {"density.latent_dim": 4}, {"fit-density"}),
        ({"train.psi_terms": ["inv_density"]}, {"density.latent_dim": 4}, DENSITY),
        ({"density.text": "prompt"}, {"sample.prompt": "{name}."}, DENSITY),
        ({"sample.few_images_per_identity": 500}, {"data.few_at_most": 3}, SAMPLE),
        ({"train.tuning": "lora"}, {"train.rank": 4}, TRAIN),
        ({"train.class_prompts": ["a face"]}, {"train.num_class_images": 7}, TRAIN),
        ({"train.class_prompts": ["a face"]}, {"train.prior_loss_weight": 0.5}, TRAIN),
        ({"train.class_prompts": ["a face"]}, {"train.class_images": "faces"}, TRAIN),
        ({"train.train_text_encoder": True}, {"train.text_encoder_rank": 4}, TRAIN),
        ({"train.use_ema": True}, {"train.ema_decay": 0.9}, TRAIN),
        ({"evaluate.metrics": ["judge"]}, {"evaluate.judge.model": "openai:x"}, EVALUATE),
        ({"evaluate.metrics": ["judge"]}, {"evaluate.judge.protocol": "paper"}, EVALUATE),
        ({"evaluate.metrics": ["judge"]}, {"evaluate.judge.repeats": 3}, EVALUATE),
        ({"evaluate.metrics": ["judge"]}, {"evaluate.judge.images_per_identity": 1}, EVALUATE),
        ({"evaluate.metrics": ["judge"]}, {"evaluate.judge.options": {"temperature": 0}}, EVALUATE),
        ({"evaluate.metrics": ["judge"]}, {"evaluate.judge.base_url": "http://127.0.0.1:8000/v1"}, NOTHING),
        ({"evaluate.metrics": ["judge"]}, {"evaluate.judge.max_requests": 1}, NOTHING),
        (
            {"extractors": {"hf": {"revision": "a"}}, "evaluate.face": "dlib", "evaluate.dino": "dlib"},
            {"extractors": {"hf": {"revision": "b"}}},
            INDEX,
        ),
    ],
)
def test_what_a_run_does_not_read_does_not_make_it_stale(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], stale: set[str]
) -> None:
    assert Road(tmp_path, **base).stale(changes) == stale


def test_the_reason_names_the_key_with_both_values(road: Road) -> None:
    states = road.states({"train.learning_rate": 1e-4})
    assert states["train"].reasons == ("train.learning_rate: 1e-05 -> 0.0001",)
    assert states["sample"].reasons == ("runs/a/train is not up to date",)


@pytest.mark.parametrize(
    ("harm", "stage", "reason"),
    [
        ("remove", "index", "artifacts/index is missing"),
        ("change", "caption", "artifacts/captions.jsonl was changed by hand"),
        ("fail", "sample", "did not finish"),
        ("forget", "evaluate", "has not been run"),
    ],
)
def test_what_happened_to_an_artifact_is_said(tmp_path: Path, harm: str, stage: str, reason: str) -> None:
    road = Road(tmp_path)
    project = road.project({})
    manifest = project.manifest()
    if harm == "remove":
        (tmp_path / "artifacts/index").unlink()
    elif harm == "change":
        (tmp_path / "artifacts/captions.jsonl").write_text("mine")
    elif harm == "fail":
        manifest.runs["a"]["sample"].state = "failed"
    else:
        del manifest.runs["a"]["evaluate"]
    project.write_manifest(manifest)
    assert reason in road.states({})[stage].reasons


def test_an_edited_file_of_the_same_size_is_noticed_and_an_untouched_one_is_not_read_again(tmp_path: Path) -> None:
    road = Road(tmp_path)
    project = road.project({})
    file = tmp_path / "artifacts/captions.jsonl"
    before = project.digests.of(file)
    project.digests.save()
    file.write_text(file.read_text().upper())
    assert road.project({}).digests.of(file) != before


def test_a_folders_digest_speaks_of_names_and_contents(tmp_path: Path) -> None:
    road = Road(tmp_path)
    digests = road.project({}).digests
    seen = set()
    for name, text in (("a", "1"), ("b", "1"), ("a", "2")):
        folder = tmp_path / f"{name}{text}"
        folder.mkdir()
        (folder / name).write_text(text)
        seen.add(digests.of(folder))
    assert len(seen) == 3
    assert digests.of(tmp_path / "nothing") is None


def test_weights_that_were_moved_are_the_same_and_others_in_their_place_are_not(
    project: TinyProject, tmp_path: Path
) -> None:
    moved, other = (Path(shutil.copytree(setting_of(project), tmp_path / name)) for name in ("moved", "other"))
    for file in (other / "tokenizer").glob("*.json"):
        file.write_text(file.read_text() + "\n")
    assert project("fit-density").status == 0
    reasons = {}
    for name, folder in (("moved", moved), ("other", other)):
        stages = json.loads(project("status", "--json", *pointed(folder)).out)["stages"]
        reasons[name] = {stage["key"]: stage["reasons"] for stage in stages}
    assert (reasons["moved"]["caption"], reasons["moved"]["fit-density"]) == ([], [])
    assert reasons["other"]["caption"] == ["tokenizer changed"]
    assert reasons["other"]["fit-density"] == ["model changed", "caption is not up to date"]
    # captions that are made need no model
    gone = project("caption", "--json", *pointed("nobody/nothing"))
    assert json.loads(gone.out)["stages"][0]["state"] == "up to date", gone.err


def pointed(folder: Path | str) -> tuple[str, str]:
    return "--set", f"pretrained_model_name_or_path={folder}"


def setting_of(project: TinyProject) -> Path:
    return Path(next(s for s in project.settings if s.startswith("pretrained")).partition("=")[2])


def test_a_record_of_before_is_compared_by_what_it_says(tmp_path: Path) -> None:
    road = Road(tmp_path)
    manifest = road.project({}).manifest()
    for record in [*manifest.stages.values(), *manifest.runs["a"].values()]:
        record.parameters["pretrained_model_name_or_path"] = "where/it/lay"
        record.inputs.pop("tokenizer", None)
    road.project({}).write_manifest(manifest)
    assert road.stale({}) == NOTHING
    assert road.stale({"caption.names": "keep"}) == CAPTION


def test_a_setting_that_came_after_a_run_makes_it_stale_only_where_it_is_not_the_default(tmp_path: Path) -> None:
    road = Road(tmp_path)
    manifest = road.project({}).manifest()
    for record in manifest.runs["a"].values():
        record.parameters.pop("train.train_text_encoder", None)
        record.parameters.pop("sample.eta", None)
    road.project({}).write_manifest(manifest)
    assert road.stale({}) == NOTHING
    assert road.stale({"sample.eta": 0.5}) == SAMPLE
    assert road.states({"sample.eta": 0.5})["sample"].reasons == ("sample.eta: 0.0 -> 0.5",)


def test_other_weights_of_an_extractor_at_the_same_place_make_stale_what_it_looked_at(
    project: TinyProject, tiny_vit: Path, tmp_path: Path
) -> None:
    network = Path(shutil.copytree(tiny_vit, tmp_path / "network"))
    mine = project.configure(f"index.extractor=hf:{network}#cls")

    def reasons(key: str) -> list[str]:
        stages = json.loads(mine("status", "--json").out)["stages"]
        return next(stage["reasons"] for stage in stages if stage["key"] == key)

    assert mine("index").status == 0
    assert reasons("index") == []
    weights = network / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert reasons("index") == ["extractor changed"]
    assert mine("index").status == 0
    assert reasons("index") == []
    shutil.rmtree(network)  # neighbours that are there need it no more
    assert reasons("index") == []


def test_the_files_that_decide_what_a_network_says(tiny_vit: Path, tmp_path: Path) -> None:
    graph = tmp_path / "net.onnx"
    graph.write_bytes(b"graph")
    faces = {"weights": str(tmp_path / "dlib.dat"), "predictor": str(tmp_path / "points.dat")}
    for path in faces.values():
        Path(path).write_bytes(b"network")
    assert files_of(f"onnx:{graph}#features", {}) == (graph,)
    assert files_of("dlib", faces) == tuple(Path(path) for path in faces.values())
    assert tiny_vit / "model.safetensors" in files_of(f"hf:{tiny_vit}#cls", {})
    assert tiny_vit / "preprocessor_config.json" in files_of(f"hf:{tiny_vit}", {})
    assert [files_of(spec, {}) for spec in ("template", "files", "openai:gpt", "py:module:function")] == [()] * 4
    with pytest.raises(PogdiffError, match="no ONNX file"):
        files_of(f"onnx:{tmp_path / 'gone.onnx'}", {})
