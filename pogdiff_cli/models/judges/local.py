"""A judge from transformers on this machine: ``hf:ID_OR_DIR[@revision]``, safetensors only, no code of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.completions import ChatAnswer
from pogdiff_cli.models.judges.protocol import Pause, Question

_OPTIONS = {"temperature": 1.0, "max_new_tokens": 64}


@dataclass(frozen=True, kw_only=True)
class LocalJudge:
    """An image-text-to-text model and its processor."""

    name: str
    model: Any
    processor: Any
    device: str
    temperature: float
    max_new_tokens: int
    threads: int = 1

    def ask(self, question: Question, *, pause: Pause = time.sleep) -> ChatAnswer:
        """One answer, drawn with the number of the repeat as seed; the likeliest one where temperature is 0."""
        import torch

        del pause
        parts = [{"type": "image", "image": image} for image in question.images()]
        conversation = [{"role": "user", "content": [*parts, {"type": "text", "text": question.prompt}]}]
        inputs = self.processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.device, dtype=self.model.dtype)
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        devices = [self.device] if self.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(question.repeat)
            tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, **sampling)  # (1, n)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        text = self.processor.decode(new, skip_special_tokens=True)
        return ChatAnswer(text=text, prompt_tokens=int(inputs["input_ids"].shape[1]), completion_tokens=len(new))


def weights_folder(spec: str) -> Path:
    """Where the files of ``hf:ID_OR_DIR[@revision]`` lie; exit 4 where they are not on this machine."""
    body = spec.removeprefix("hf:")
    if Path(body).is_dir():
        return Path(body)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    model, _, revision = body.partition("@")
    try:
        return Path(snapshot_download(model, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, FileNotFoundError):
        asked = f" --revision {revision}" if revision else ""
        raise PogdiffError(
            f"The judge {model} is not on this machine.",
            hint=f"Run: hf download {model}{asked}",
            exit_code=Exit.MISSING,
        ) from None


def load_local(spec: str, options: Mapping[str, Any], device: str) -> LocalJudge:
    """Load model and processor; neither custom code nor a pickle is ever read."""
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise PogdiffError(
            f"{spec} has no option {unknown[0]!r}.", hint=f"Options: {', '.join(_OPTIONS)}.", exit_code=Exit.USAGE
        )
    chosen = {**_OPTIONS, **options}
    model, processor = _load(weights_folder(spec))
    return LocalJudge(
        name=spec,
        model=model.to(device).eval(),
        processor=processor,
        device=device,
        temperature=float(chosen["temperature"]),
        max_new_tokens=int(chosen["max_new_tokens"]),
    )


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        processor = AutoProcessor.from_pretrained(folder, backend="pil", **common)
        model, loading = AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, dtype="auto", output_loading_info=True, **common
        )
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PogdiffError(
            f"The judge in {folder} cannot be loaded: {first}",
            hint="The folder must hold config.json, the processor's files, a chat template and *.safetensors.",
            exit_code=Exit.MISSING,
        ) from error
    if loading["missing_keys"]:  # they would be drawn at random
        raise PogdiffError(
            f"The judge in {folder} has no trained weights for {', '.join(sorted(loading['missing_keys'])[:3])}.",
            hint="Download the model again.",
            exit_code=Exit.MISSING,
        )
    return model, processor
