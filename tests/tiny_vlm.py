"""Small random LLaVA, LLaVA-NeXT and Qwen2-VL with their processors, saved in transformers' own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} answer{% endif %}"
)
_WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *(str(n) for n in range(11)), "/", "answer"]


def _tokenizer(*further: str) -> PreTrainedTokenizerFast:
    words = [*_WORDS, *further]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", *further],
    )


_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {
    **_SMALL,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save_vlm(folder: Path) -> Path:
    """LLaVA of 32x32 pictures that knows the numbers from 0 to 10."""
    torch.manual_seed(0)
    config = LlavaConfig(**_llava())
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(image_processor=pictures, **_processor()).save_pretrained(folder)
    return folder


def save_llava_next(folder: Path) -> Path:
    """LLaVA 1.6: a picture is seen whole and in tiles."""
    torch.manual_seed(0)
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(**_llava(), image_grid_pinpoints=pinpoints)
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
    )
    LlavaNextProcessor(image_processor=pictures, **_processor()).save_pretrained(folder)
    return folder


def save_qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: pictures keep their size, in patches of 14 pixels."""
    torch.manual_seed(0)
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = _tokenizer(*tokens)
    image, video, start, end = tokenizer.convert_tokens_to_ids(list(tokens))
    config = Qwen2VLConfig(
        text_config={
            **_TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    model = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight[[0, 1, 2, 3, 4, image, video, start, end]] = 0.0  # it says words, not marks
    model.save_pretrained(folder)
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    template = TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    pictures.save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"processor_class": "Qwen2VLProcessor"}))
    return folder


def _llava() -> dict[str, Any]:
    return {
        "vision_config": CLIPVisionConfig(**_SMALL, image_size=32, patch_size=16, projection_dim=32),
        "text_config": LlamaConfig(**_TEXT, vocab_size=len(_WORDS)),
        "image_token_index": _WORDS.index("<image>"),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _processor() -> dict[str, Any]:
    return {
        "tokenizer": _tokenizer(),
        "patch_size": 16,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": TEMPLATE,
    }
