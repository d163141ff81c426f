"""Stable Diffusion 1.x and 2.x: AutoencoderKL, CLIP text encoder, conditional UNet; epsilon or v-prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Condition, Guidance, SchedulerChoice, TextEncoding
from pogdiff_cli.models.backbone import Backbone
from pogdiff_cli.models.noise_path import Times, VariancePreserving
from pogdiff_cli.models.text_readers import clip_ids, read_clip
from pogdiff_cli.models.texts import Encoders
from pogdiff_cli.models.weights import read_json

_PREDICTIONS = ("epsilon", "v_prediction")
#: The projections of self and cross attention in a UNet.
UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class VariancePreservingBackbone(Backbone):
    """A family on a schedule of betas: steps are counted, and DDIM samples it."""

    path: VariancePreserving

    def _noise_path(self) -> VariancePreserving:
        schedule = read_json(self.folder / "scheduler" / "scheduler_config.json")
        named, prediction = str(schedule.get("_class_name", "")), schedule.get("prediction_type", "epsilon")
        if named.startswith("EDM") or prediction not in _PREDICTIONS:
            raise PogdiffError(
                f"{self.folder}: its schedule is {named} with the prediction '{prediction}', which is not trained.",
                hint=f"Models that predict {' or '.join(_PREDICTIONS)} on a schedule of betas are.",
                exit_code=Exit.MISSING,
            )
        scheduler = DDPMScheduler.from_pretrained(self.folder, subfolder="scheduler", local_files_only=True)
        times = Times(
            count=int(scheduler.config.num_train_timesteps),
            unit="step",
            sampling=self.options.timestep_sampling or "uniform",
            logit_mean=self.options.logit_mean,
            logit_std=self.options.logit_std,
        )
        return VariancePreserving(scheduler, times)

    @property
    def prediction_type(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return self.path.prediction_type

    def scheduler(self, kind: SchedulerChoice) -> Any:
        """``ddim``: the base's noise schedule under DDIM. ``native``: the scheduler that the base names."""
        if kind == "native":
            return super().scheduler("native")
        return DDIMScheduler.from_pretrained(
            self.folder, subfolder="scheduler", clip_sample=False, local_files_only=True
        )

    def sampling_arguments(
        self, condition: Condition, negative: Condition, noise: Tensor, guidance: Guidance
    ) -> dict[str, Any]:
        """Classifier-free guidance and DDIM's eta."""
        return {**super().sampling_arguments(condition, negative, noise, guidance), "eta": guidance.eta}


class StableDiffusion(VariancePreservingBackbone):
    """Adapter of the family; the folder is a diffusers StableDiffusionPipeline."""

    family = "Stable Diffusion 1.x/2.x"
    pipeline_class = StableDiffusionPipeline
    parts: ClassVar[Mapping[str, str]] = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
    }
    denoiser_name = "unet"
    clip_encoders = ("text_encoder",)
    lora_targets = UNET_ATTENTION
    guidance_scale = 7.5

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """CLIP's token ids."""
        return {"ids": clip_ids(self.part("tokenizer"), texts, self.clip_chunks)}

    def read(self, tokens: Condition, encoders: Encoders) -> TextEncoding:
        """N captions -> hidden states (n, 77, d) and the pooled embedding (n, d)."""
        states = read_clip(encoders["text_encoder"], tokens["ids"], layer="last")
        return TextEncoding(condition={"hidden": states.hidden}, pooled=states.pooled)

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """H = f(x_t, t, y), (b, c, h, w)."""
        return cast(Tensor, denoiser(x_t, t, encoder_hidden_states=condition["hidden"], return_dict=False)[0])

    def _pipeline_options(self) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
