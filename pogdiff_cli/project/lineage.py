"""What each stage reads and writes, and which settings decide it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pogdiff_cli.project.config import Config, dotted
from pogdiff_cli.project.unread_keys import unread_keys

#: Keys of ``caption`` that only some captioners read.
_CAPTIONER_KEYS = {("template",): ("prompts",), ("hf", "openai"): ("instruction", "options")}
#: How log densities become weights (Eq. 11): training does that, and one density serves runs that differ in it.
_INVERSE_KEYS = ("density.scale", "density.temperature", "density.mean")
#: Components of a pipeline that read texts; each family has some of them.
TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
#: Those that decide how many tokens of a caption come before its name.
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage as it would run today.

    ``inputs`` maps a name to the project-relative path that holds it, or to None for ``data``, ``model`` and
    ``tokenizer``, whose digests come from the images and the weights. ``outputs`` are project-relative paths. Where
    the weights lie is no parameter: what they are is an input.
    """

    key: str
    parameters: dict[str, Any]
    inputs: dict[str, str | None]
    outputs: tuple[str, ...]
    after: tuple[str, ...] = ()
    model_parts: tuple[str, ...] = ()  # components of the pipeline that count; all where empty
    optional: tuple[str, ...] = ()  # inputs that need not be there
    extras: tuple[str, ...] = ()  # outputs that are not always there
    networks: dict[str, str] = field(default_factory=dict)  # input to spec: what looks at pictures
    logs: tuple[str, ...] = ()  # files for people to read: a change of them makes nothing stale

    @property
    def stage(self) -> str:
        """The command's name."""
        return self.key.rsplit("/", 1)[-1]


def plan_caption(config: Config) -> StagePlan:
    """Captions and names from images and metadata."""
    wanted = _pick(config, "seed", "caption")
    kind = config.caption.captioner.partition(":")[0]
    ignored = {f"caption.{key}" for other, keys in _CAPTIONER_KEYS.items() if kind not in other for key in keys}
    return StagePlan(
        key="caption",
        parameters={key: value for key, value in wanted.items() if key not in ignored},
        inputs={"data": None, "tokenizer": None},
        outputs=("artifacts/captions.jsonl", "artifacts/names.yaml"),
        model_parts=TOKENIZERS,
        networks={"captioner": config.caption.captioner},
    )


def plan_index(config: Config) -> StagePlan:
    """Embeddings and neighbours of the training images."""
    return StagePlan(
        key="index",
        parameters=_pick(config, "index") | extractor_options(config, config.index.extractor),
        inputs={"data": None},
        outputs=("artifacts/index",),
        networks={"extractor": config.index.extractor},
    )


def plan_density(config: Config) -> StagePlan:
    """Text VAE and log density of each training caption."""
    prompt = ("sample.prompt",) if config.density.text == "prompt" else ()
    wanted = _pick(config, "seed", "density", *prompt)
    return StagePlan(
        key="fit-density",
        parameters={key: value for key, value in wanted.items() if key not in _INVERSE_KEYS},
        inputs={"captions": "artifacts/captions.jsonl", "names": "artifacts/names.yaml", "model": None},
        outputs=("artifacts/density",),
        after=("caption",),
        model_parts=TEXT_PARTS,
    )


def plan_train(config: Config, run: str) -> StagePlan:
    """One fine-tuning run; what it reads depends on its method."""
    train = config.train
    method = train.method
    inputs: dict[str, str | None] = {"data": None, "model": None, "captions": "artifacts/captions.jsonl"}
    after = ["caption"]
    if method == "pogdiff":
        inputs["index"] = "artifacts/index"
        after.append("index")
    if (method == "pogdiff" and "inv_density" in train.psi_terms) or method == "t2h":
        inputs["density"] = "artifacts/density"
        after.append("fit-density")
    if train.preserves_prior and train.class_images is not None:
        inputs["class images"] = train.class_images
    ignored = unread_keys(config.train)
    shape = _INVERSE_KEYS if method == "pogdiff" and "density" in inputs else ()
    wanted = _pick(config, "seed", "train", "data.resolution", "data.resize", *shape)
    return StagePlan(
        key=f"runs/{run}/train",
        parameters={key: value for key, value in wanted.items() if key not in ignored},
        inputs=inputs,
        outputs=(f"runs/{run}/final",),
        logs=tuple(f"runs/{run}/{name}" for name in ("metrics.jsonl", "exposure.json", "config.resolved.yaml")),
        after=tuple(after),
    )


def plan_sample(config: Config, run: str) -> StagePlan:
    """Generated images of one run."""
    tail = () if config.sample.few_images_per_identity is None else ("data.few_at_most",)
    precision = ("train.mixed_precision",) if config.train.tuning == "lora" else ()  # of the base's weights
    return StagePlan(
        key=f"runs/{run}/sample",
        parameters=_pick(config, "seed", "sample", "data.resolution", *tail, *precision),
        inputs={"final": f"runs/{run}/final", "names": "artifacts/names.yaml", "model": None},
        outputs=(f"runs/{run}/samples",),
        after=(f"runs/{run}/train",),
    )


def plan_evaluate(config: Config, run: str) -> StagePlan:
    """Scores of one run."""
    options = extractor_options(config, config.evaluate.face) | extractor_options(config, config.evaluate.dino)
    groups = ("data.few_at_most", "data.many_at_least")
    networks: dict[str, str | None] = {"face": config.evaluate.face, "dino": config.evaluate.dino}
    wanted = _pick(config, "seed", "evaluate", *groups) | options
    if "judge" not in config.evaluate.metrics:
        wanted = {key: value for key, value in wanted.items() if not key.startswith("evaluate.judge.")}
    else:
        networks["judge"] = config.evaluate.judge.model
    return StagePlan(
        key=f"runs/{run}/evaluate",
        parameters=wanted,
        inputs={"data": None, "samples": f"runs/{run}/samples", "human": f"runs/{run}/evaluation/human.json"},
        outputs=(f"runs/{run}/evaluation/scores.json",),
        extras=tuple(f"runs/{run}/evaluation/{name}.csv" for name in ("scores", "identities", "recall")),
        after=(f"runs/{run}/sample",),
        optional=("human",),
        networks={name: spec for name, spec in networks.items() if spec is not None},
    )


def plan_run(config: Config, run: str) -> tuple[StagePlan, ...]:
    """All stages of one run in order."""
    return (
        plan_caption(config),
        plan_index(config),
        plan_density(config),
        plan_train(config, run),
        plan_sample(config, run),
        plan_evaluate(config, run),
    )


def extractor_options(config: Config, spec: str) -> dict[str, Any]:
    """The options in ``extractors`` that apply to one extractor, as parameters."""
    options = config.extractors.get(spec, config.extractors.get(spec.split(":", 1)[0], {}))
    return {f"extractors.{spec}.{key}": value for key, value in sorted(options.items())}


def _pick(config: Config, *prefixes: str) -> dict[str, Any]:
    everything = dotted(config, "", operational="without")
    return {
        key: value for key, value in everything.items() if any(key == p or key.startswith(f"{p}.") for p in prefixes)
    }
