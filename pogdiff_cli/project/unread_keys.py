"""Keys of ``train`` that a run does not read: changing them never makes it stale."""

from __future__ import annotations

from pogdiff_cli.project.config import TrainConfig

#: Keys of ``train`` that only one method reads; the others' never make its run stale.
_METHOD_KEYS = {
    "pogdiff": {"a1", "a2", "a3", "psi_terms", "neighbour_grad", "roulette"},
    "cbdm": {"cbdm_tau", "cbdm_gamma", "cbdm_uniform", "cbdm_drop"},
    "t2h": {"t2h_temperature"},
    "vanilla": set(),
}
_PRIOR_KEYS = {f"train.{key}" for key in ("class_prompts", "class_images", "num_class_images", "prior_loss_weight")}
_LORA_KEYS = {"rank", "lora_alpha", "lora_targets", "use_dora"}


def unread_keys(train: TrainConfig) -> set[str]:
    """Keys of ``train`` that a run with these settings does not read."""
    ignored = {f"train.{key}" for other, keys in _METHOD_KEYS.items() if other != train.method for key in keys}
    if train.method == "cbdm":
        ignored.add("train.caption_dropout")  # its one coin a batch takes that place
    if train.tuning == "full":
        ignored |= {f"train.{key}" for key in _LORA_KEYS}
    if not train.train_text_encoder:
        ignored |= {"train.text_encoder_rank", "train.text_encoder_lr"}
    if not train.preserves_prior:
        ignored |= _PRIOR_KEYS
    elif train.class_images is not None:  # an input: what they are matters, not where they lie
        ignored |= {"train.class_images", "train.num_class_images"}
    if not train.use_ema:
        ignored.add("train.ema_decay")
    return ignored
