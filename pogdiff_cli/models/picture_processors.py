"""Processors of vision-language models for pictures alone: their part for videos wants torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_processor(folder: Path) -> Any:
    """The folder's processor; without its video part where that cannot be loaded. No code of its own is read."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False, local_files_only=True)
    except ImportError:
        found = _of_pictures(folder)
        if found is None:
            raise
        return found


def _of_pictures(folder: Path) -> Any | None:
    """Its image processor and tokenizer put together as its own class does; None where it is none of videos."""
    import transformers
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    name = PROCESSOR_MAPPING_NAMES.get(AutoConfig.from_pretrained(folder, **common).model_type)
    kind = getattr(transformers, str(name), None)
    if kind is None or "video_processor" not in kind.get_attributes():
        return None
    image_processors: Any = AutoImageProcessor
    parts = {
        "image_processor": image_processors.from_pretrained(folder, backend="pil", **common),
        "tokenizer": AutoTokenizer.from_pretrained(folder, **common),
    }
    settings, _ = kind.get_processor_dict(folder, local_files_only=True)
    made = _without_videos(kind).from_args_and_dict([parts.get(part) for part in kind.get_attributes()], settings)
    if made.chat_template is None:
        made.chat_template = parts["tokenizer"].chat_template
    return made


def _without_videos(kind: Any) -> Any:
    class PicturesOnly(kind):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":  # its class cannot even be asked for
                return type(argument)
            return super().check_argument_for_proper_class(argument_name, argument)

    PicturesOnly.__name__ = kind.__name__
    return PicturesOnly
