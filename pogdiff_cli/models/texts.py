"""How a family reads texts: what never changes of them first, then the CLIP encoders, which may be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Condition, FamilyOptions, TextEncoding
from pogdiff_cli.models.text_readers import count_tokens

_CLIP_POSITIONS = 75
#: Tensors of ``tokens``: token ids of each CLIP, T5's states, whether anything is said.
TOKENS = ("ids", "ids_2", "long", "said")
Encoders = Mapping[str, nn.Module]


class ReadsTexts(ABC):
    """The text side of a family. T5 is never trained: what it makes of a text is among the text's ``tokens``."""

    options: FamilyOptions
    device: torch.device
    clip_encoders: ClassVar[tuple[str, ...]]  # components that LoRA can be trained on
    unread_layers: ClassVar[Mapping[str, int]] = {}  # last layers of a CLIP that no condition depends on

    @abstractmethod
    def part(self, component: str) -> Any:
        """A tokenizer or a text encoder."""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """All that is known of texts before a CLIP reads them, a row each; some of ``TOKENS``."""

    @abstractmethod
    def read(self, tokens: Condition, encoders: Encoders) -> TextEncoding:
        """What CLIP ``encoders`` make of ``tokens``; gradients flow to them."""

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> TextEncoding:
        """Captions -> what the denoiser reads; longer ones are cut at ``token_limit``."""
        tokens = {name: tensor.to(self.device) for name, tensor in self.tokens(texts).items()}
        return self.read(tokens, {name: self.part(name) for name in self.clip_encoders})

    def conditioned(self, condition: Condition, encoders: Encoders) -> dict[str, Tensor]:
        """A condition in which texts are still tokens -> one that the denoiser reads."""
        rest = {name: tensor for name, tensor in condition.items() if name not in TOKENS}
        return self.read(condition, encoders).condition | rest

    @property
    def clip_chunks(self) -> int:
        """Chunks of 75 tokens in which CLIP reads a caption."""
        wanted = self.options.max_token_length
        if wanted is None:
            return 1
        if wanted % _CLIP_POSITIONS:
            raise PogdiffError(
                f"train.max_token_length is {wanted}; CLIP reads chunks of {_CLIP_POSITIONS} tokens.",
                hint="Set it to 75, 150, 225 and so on, or null.",
                exit_code=Exit.USAGE,
            )
        return wanted // _CLIP_POSITIONS

    @property
    def token_limit(self) -> int:
        """Positions less start and end, times the chunks."""
        return (int(self.part("tokenizer").model_max_length) - 2) * self.clip_chunks

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without start and end."""
        return count_tokens(self.part("tokenizer"), text)
