"""Tokenizers and text encoders as pipelines use them; CLIP in chunks for captions beyond its 77 positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Layer = Literal["last", "penultimate"]


@dataclass(frozen=True, kw_only=True)
class ClipStates:
    """``hidden`` (n, 75 chunks + 2, d) and ``pooled`` (n, d) of the first chunk."""

    hidden: Tensor
    pooled: Tensor


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text, without start and end."""
    return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def clip_ids(tokenizer: Any, texts: Sequence[str], chunks: int) -> Tensor:
    """Each chunk of 75 tokens between start and end, padded: (n, chunks, 77). What is longer is cut."""
    room = int(tokenizer.model_max_length) - 2
    found = tokenizer(
        list(texts), add_special_tokens=False, truncation=True, max_length=room * chunks, padding=False, verbose=False
    )
    rows = []
    for ids in found["input_ids"]:
        for start in range(0, room * chunks, room):
            words = [tokenizer.bos_token_id, *ids[start : start + room], tokenizer.eos_token_id]
            rows.append(words + [tokenizer.pad_token_id] * (room + 2 - len(words)))
    return torch.tensor(rows, dtype=torch.int64).reshape(len(texts), chunks, room + 2)


def read_clip(encoder: Any, ids: Tensor, *, layer: Layer) -> ClipStates:
    """Encode each chunk of ids (n, chunks, 77) alone and join: the first start, 75 positions a chunk, the last end."""
    n, chunks, _ = ids.shape
    output = encoder(ids.flatten(0, 1), output_hidden_states=layer == "penultimate")
    states = output.last_hidden_state if layer == "last" else output.hidden_states[-2]
    pooled = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
    states = states.float().unflatten(0, (n, chunks))  # (n, chunks, 77, d)
    middle = states[:, :, 1:-1].flatten(1, 2)
    hidden = torch.cat([states[:, 0, :1], middle, states[:, -1, -1:]], dim=1)
    return ClipStates(hidden=hidden, pooled=pooled.float()[::chunks])


@torch.no_grad()
def read_t5(tokenizer: Any, encoder: Any, texts: Sequence[str], *, length: int) -> Tensor:
    """Hidden states (n, length, d), padding included: these models were trained without a mask."""
    tokens = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    states: Tensor = encoder(tokens["input_ids"].to(encoder.device))[0]
    return states.float()
