"""Families on the straight path between data and noise."""

from __future__ import annotations

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.backbone import Backbone
from pogdiff_cli.models.noise_path import RectifiedFlow, Times
from pogdiff_cli.models.weights import read_json

#: The projections of the joint attention in a transformer's double and single blocks.
JOINT_ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)


class FlowBackbone(Backbone):
    """Timesteps are noise levels; logit-normal ones unless told otherwise, under the schedule's own shift."""

    denoiser_name = "transformer"
    lora_targets = JOINT_ATTENTION
    latent_multiple = 2

    def _noise_path(self) -> RectifiedFlow:
        schedule = read_json(self.folder / "scheduler" / "scheduler_config.json")
        # a shift that depends on the resolution belongs to sampling: diffusers' schedule leaves it out as well
        shift = 1.0 if schedule.get("use_dynamic_shifting") else float(schedule.get("shift", 1.0))
        times = Times(
            count=int(schedule.get("num_train_timesteps", 1000)),
            unit="level",
            sampling=self.options.timestep_sampling or "logit_normal",
            logit_mean=self.options.logit_mean,
            logit_std=self.options.logit_std,
            shift=shift,
        )
        return RectifiedFlow(times)

    def sequence_length(self, own: int, most: int) -> int:
        """Positions of the T5 sequence, end included."""
        wanted = self.options.max_token_length or own
        if not 2 <= wanted <= most:
            raise PogdiffError(
                f"train.max_token_length is {wanted}; {self.family} reads 2 to {most} tokens.",
                hint=f"Set it to at most {most}, or null for {own}.",
                exit_code=Exit.USAGE,
            )
        return wanted
