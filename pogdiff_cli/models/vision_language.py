"""Image-text-to-text models of transformers on this machine: safetensors only, no code of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.foreign import read_from, refuse_adapter
from pogdiff_cli.models.picture_processors import load_processor
from pogdiff_cli.models.snapshots import local_snapshot


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model wrote, and how many tokens were read (padding included) and written."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class VisionLanguageModel:
    """Any model of ``AutoModelForImageTextToText`` with its processor."""

    model: Any
    processor: Any
    device: str

    def answer(
        self,
        pictures: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Answer]:
        """One answer to each prompt about its pictures, in one batch; the likeliest one where temperature is 0."""
        import torch

        inputs = self.processor.apply_chat_template(
            [_turn(seen, prompt) for seen, prompt in zip(pictures, prompts, strict=True)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **({"processor_kwargs": {"padding": True}} if len(prompts) > 1 else {}),
        ).to(self.device, dtype=self.model.dtype)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        devices = [self.device] if self.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)  # (b, read + written)
        read = int(inputs["input_ids"].shape[1])
        texts = self.processor.batch_decode(tokens[:, read:], skip_special_tokens=True)
        written = int(tokens.shape[1]) - read
        return [Answer(text=text, prompt_tokens=read, completion_tokens=written) for text in texts]


def _turn(pictures: Sequence[Image.Image], prompt: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]


def chosen_options(spec: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """``known`` with what is asked for; an option that nobody reads is refused."""
    if unknown := sorted(set(options) - set(known)):
        raise PogdiffError(
            f"{spec} has no option {unknown[0]!r}.", hint=f"Options: {', '.join(known)}.", exit_code=Exit.USAGE
        )
    return {**known, **options}


def load_vision_language(spec: str, what: str, device: str) -> VisionLanguageModel:
    """Model and processor of ``hf:ID_OR_DIR[@revision]``; neither custom code nor a pickle is ever read."""
    folder = local_snapshot(spec, what)
    refuse_adapter(folder, what)
    with read_from(folder, what):
        model, processor = _load(folder, what)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.padding_side = "left"  # what is written follows what was read
    return VisionLanguageModel(model=model.to(device).eval(), processor=processor, device=device)


def _load(folder: Path, what: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText

    common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        processor = load_processor(folder)
        model, loading = AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, dtype="auto", output_loading_info=True, **common
        )
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PogdiffError(
            f"The {what} in {folder} cannot be loaded: {first}",
            hint="The folder must hold config.json, the processor's files, a chat template and *.safetensors.",
            exit_code=Exit.MISSING,
        ) from error
    if loading["missing_keys"]:  # they would be drawn at random
        raise PogdiffError(
            f"The {what} in {folder} has no trained weights for {', '.join(sorted(loading['missing_keys'])[:3])}.",
            hint="Download the model again.",
            exit_code=Exit.MISSING,
        )
    return model, processor
