"""The user's intent, typed: every key of ``pogdiff.yaml``, frozen, with the source of each default."""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from pogdiff_cli.project.endpoint_config import EndpointSection
from pogdiff_cli.project.judge_config import JudgeConfig
from pogdiff_cli.project.rate_config import RateConfig
from pogdiff_cli.project.section import OPERATIONAL, Section

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")  # a run's name is its folder's
Method = Literal["pogdiff", "vanilla", "cbdm", "t2h"]
Sampling = Literal["natural", "sqrt", "balanced", "repeat_factor"]
PsiTerm = Literal["img_sim", "inv_density"]
Metric = Literal["fid", "kid", "prdc", "dino", "recall", "identity", "bleed", "copy", "judge", "human"]


class DataConfig(Section):
    """Where the images are, how they become squares, and what counts as head and tail."""

    images: str = "data/images"
    metadata: str | None = "data/metadata.jsonl"
    resolution: int = Field(512, ge=16, le=4096, multiple_of=8)
    resize: Literal["crop", "pad", "stretch", "bucket"] = "crop"
    few_at_most: int = Field(2, ge=0)  # Sec. 4.1: each minority class has 2 images
    many_at_least: int = Field(20, ge=1)
    max_unreadable: float = Field(0.05, ge=0, le=1, json_schema_extra=OPERATIONAL)

    @model_validator(mode="after")
    def _groups_do_not_overlap(self) -> DataConfig:
        if self.many_at_least <= self.few_at_most:
            raise ValueError("many_at_least must be larger than few_at_most")
        return self


class CaptionConfig(EndpointSection):
    """What each photo's caption says, under which name, and who writes it."""

    captioner: str = "template"
    prompts: tuple[str, ...] = ("An image of {name}.", "A photo of {name}.", "A portrait of {name}.")
    names: Literal["generic", "keep"] = "generic"  # Sec. 4.1: real names are replaced by random ones
    instruction: str = Field("Describe this picture in one sentence. Do not name anyone.", min_length=1)
    allow_python: bool = Field(False, json_schema_extra=OPERATIONAL)  # whether captioner may name py:module:function
    batch_size: int = Field(4, ge=1, json_schema_extra=OPERATIONAL)


class IndexConfig(Section):
    """Image embeddings and the neighbours drawn from them (Eq. 8)."""

    extractor: str = "hf:facebook/dinov2-base#cls"
    k: int = Field(5, ge=1)
    search: Literal["auto", "exact", "approximate"] = "auto"
    batch_size: int = Field(32, ge=1, json_schema_extra=OPERATIONAL)


class DensityConfig(Section):
    """The text density of Eqs. (10) and (11)."""

    text: Literal["caption", "prompt"] = "caption"
    scale: Literal["standardised", "literal"] = "standardised"
    temperature: float = Field(1.0, gt=0)
    mean: float = Field(1.0, gt=0)  # mean of psi's inverse density over the training set
    bound: Literal["elbo", "iwae"] = "elbo"  # Eq. (10)
    samples: int = Field(64, ge=2)
    latent_dim: int = Field(16, ge=1)
    hidden_dim: int = Field(256, ge=1)
    steps: int | None = Field(None, ge=1)
    learning_rate: float = Field(1e-3, gt=0)


class TrainConfig(Section):
    """The fine-tuning run: objective, sampling, optimizer, checkpoints."""

    method: Method = "pogdiff"
    a1: float = Field(1.0, ge=0)  # Eq. (9), footnote 3
    a2: float = Field(1.0, ge=0)  # Eq. (9), footnote 3
    a3: float = Field(1.0, gt=0)  # Eq. (11)
    psi_terms: tuple[PsiTerm, ...] = ("img_sim", "inv_density")  # Eq. (7), Table 5
    neighbour_grad: Literal["both", "stop"] = "both"  # Alg. 1, line 10
    roulette: float | None = Field(1.0, gt=0)  # benchmarks/step.py: a step costs about a quarter more than vanilla's
    sampling: Sampling = "natural"
    loss_weight: Literal["none", "inverse_sqrt"] = "none"
    cbdm_tau: float = Field(1.0, ge=0)
    cbdm_gamma: float = Field(0.25, ge=0)
    cbdm_uniform: Literal["record", "identity"] = "record"
    cbdm_drop: float = Field(0.1, ge=0, le=1)
    t2h_temperature: float = Field(1.0, gt=0)

    tuning: Literal["full", "lora"] = "full"
    rank: int = Field(16, ge=1)
    lora_alpha: float | None = Field(None, gt=0)
    lora_targets: tuple[str, ...] | None = None  # None: the family's attention projections
    use_dora: bool = False
    train_text_encoder: bool = False  # Sec. 3: the text encoder is frozen
    text_encoder_rank: int = Field(16, ge=1)
    text_encoder_lr: float | None = Field(None, gt=0)  # None: learning_rate

    class_prompts: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # prior preservation: empty, none
    class_images: str | None = None  # None: the base draws them
    num_class_images: int = Field(100, ge=1)
    prior_loss_weight: float = Field(1.0, ge=0)

    max_train_steps: int = Field(6000, ge=1)  # Sec. 4.1: 6,000 for the small and medium sets, 12,000 for large
    train_batch_size: int = Field(8, ge=1)  # Sec. 4.1, per device
    gradient_accumulation_steps: int = Field(1, ge=1)
    learning_rate: float = Field(1e-5, gt=0)  # Sec. 4.1
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"] = "constant"
    lr_warmup_steps: int = Field(0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    adam_weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    gradient_checkpointing: bool = False
    channels_last: bool = True
    compile: bool = False
    snr_gamma: float | None = Field(None, gt=0)
    timestep_sampling: Literal["uniform", "logit_normal"] | None = None  # None: the family's own
    logit_mean: float = 0.0
    logit_std: float = Field(1.0, gt=0)
    max_token_length: int | None = Field(None, ge=2)  # None: the family's own
    guidance_scale: float = Field(1.0, ge=0)
    noise_offset: float = Field(0.0, ge=0)
    caption_dropout: float = Field(0.1, ge=0, le=1)
    random_flip: bool = False
    use_ema: bool = False
    ema_decay: float = Field(0.999, gt=0, lt=1)

    checkpointing_steps: int = Field(500, ge=1, json_schema_extra=OPERATIONAL)
    checkpoints_total_limit: int | None = Field(2, ge=1, json_schema_extra=OPERATIONAL)
    resume_from_checkpoint: str = Field("latest", json_schema_extra=OPERATIONAL)
    validation_steps: int | None = Field(None, ge=1, json_schema_extra=OPERATIONAL)
    validation_loss_steps: int | None = Field(None, ge=1, json_schema_extra=OPERATIONAL)
    validation_identities: int = Field(4, ge=1, json_schema_extra=OPERATIONAL)
    logging_steps: int = Field(10, ge=1, json_schema_extra=OPERATIONAL)
    report_to: tuple[Literal["tensorboard"], ...] = Field((), json_schema_extra=OPERATIONAL)
    dataloader_num_workers: int | None = Field(None, ge=0, json_schema_extra=OPERATIONAL)  # 2 with a GPU, else 0
    parallel: Literal["ddp", "fsdp"] = Field("ddp", json_schema_extra=OPERATIONAL)
    on_out_of_memory: Literal["stop", "halve"] = Field("stop", json_schema_extra=OPERATIONAL)

    @property
    def preserves_prior(self) -> bool:
        """Whether rows of the class are added to each step."""
        return bool(self.class_prompts) and self.prior_loss_weight > 0

    @field_validator("resume_from_checkpoint")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value:
            raise ValueError("write 'latest', 'none' or a checkpoint folder")
        return value


class SampleConfig(Section):
    """What is generated for evaluation: one prompt an identity, many seeds."""

    prompt: str = "An image of {name}."  # Sec. 4.1
    images_per_identity: int = Field(100, ge=1)  # Sec. 4.1, all-shot
    few_images_per_identity: int | None = Field(None, ge=1)  # Sec. 4.1: 500, few-shot
    num_inference_steps: int = Field(50, ge=1)  # Sec. 4.1
    guidance_scale: float | None = Field(None, ge=0)  # None: the family's own
    true_cfg_scale: float = Field(1.0, ge=1)
    negative_prompt: str = ""
    eta: float = Field(0.0, ge=0, le=1)
    scheduler: Literal["auto", "ddim", "native"] = "auto"  # DDIM (Sec. 4.1) where it fits
    batch_size: int = Field(8, ge=1, json_schema_extra=OPERATIONAL)

    @field_validator("prompt")
    @classmethod
    def _names_someone(cls, value: str) -> str:
        if "{name}" not in value:
            raise ValueError("must contain {name}")
        try:
            fields = [part[1:] for part in Formatter().parse(value) if part[1] is not None]
        except ValueError as problem:
            raise ValueError(f"cannot be read ({problem}); write {{{{ and }}}} for braces") from None
        if any(field != ("name", "", None) for field in fields):
            raise ValueError("may have no placeholder but {name}; write {{ and }} for braces")
        return value


class EvaluateConfig(Section):
    """Which scores, computed from which features, judged how."""

    metrics: tuple[Metric, ...] = ("fid", "dino", "recall", "identity", "bleed", "copy")
    face: str = "dlib"
    dino: str = "hf:facebook/dinov2-base#cls"  # App. B
    recall_threshold: float = Field(0.9, gt=0, lt=1)  # App. E
    copy_threshold: float = Field(0.98, gt=0, lt=1)
    true_set: Literal["heldout", "exact"] = "exact"  # Sec. 4.1: all images of the identity
    images_per_identity: Literal["equal", "all"] | Annotated[int, Field(ge=1, strict=True)] = "equal"
    few_images_per_identity: int | None = Field(None, ge=1)  # Sec. 4.1: 500, few-shot
    bootstrap: int = Field(2000, ge=100)
    gates: dict[str, str | float] = Field(
        default_factory=dict, json_schema_extra=OPERATIONAL
    )  # judge scores, make none
    batch_size: int = Field(32, ge=1, json_schema_extra=OPERATIONAL)
    judge: JudgeConfig = JudgeConfig()

    @field_validator("judge", mode="before")
    @classmethod
    def _all_commented_out(cls, value: Any) -> Any:
        return {} if value is None else value


class Config(Section):
    """All of ``pogdiff.yaml``."""

    pretrained_model_name_or_path: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    seed: int = Field(0, ge=0, lt=2**63)
    data: DataConfig = DataConfig()
    caption: CaptionConfig = CaptionConfig()
    index: IndexConfig = IndexConfig()
    density: DensityConfig = DensityConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    rate: RateConfig = RateConfig()
    extractors: dict[str, dict[str, Any]] = Field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("runs")
    @classmethod
    def _names_folders(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in value:
            if not RUN_NAME.match(name):
                raise ValueError(f"{name!r} cannot name a run: letters, digits, '.', '_' and '-', 64 at most")
        return value


def dotted(section: BaseModel, prefix: str, *, operational: Literal["with", "without"]) -> dict[str, Any]:
    """Every key below ``section`` as ``prefix.key``, JSON values; ``without`` leaves out operational keys."""
    values: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        extra = info.json_schema_extra
        if operational == "without" and isinstance(extra, dict) and extra.get("operational"):
            continue
        path = f"{prefix}.{name}" if prefix else name
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            values |= dotted(value, path, operational=operational)
        else:
            values[path] = list(value) if isinstance(value, tuple) else value
    return values
