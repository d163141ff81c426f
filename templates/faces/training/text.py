"""Captions of the base's world, the tokenizer they are cut with, and the text encoder."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .assets import TEMPLATE

LENGTH = 77
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
PLAIN = "An image of {name}."
WORDINGS = (
    "A photo of {name}",
    "A portrait of {name}",
    "A photograph of {name}",
    "{name}",
    "A picture of {name}",
    "The face of {name}",
    "{name} in a photo",
    "A close look at {name}",
    "A black and white photo of {name}",
    "A grey portrait of {name}",
    "This is {name}",
    "An image of {name}",
    "A headshot of {name}",
    "A studio photo of {name}",
)
RENDERED = ("A rendered image of {name}.", "A rendered face of {name}.", "{name}, rendered.", "A render of {name}.")
ATTRIBUTES = ("pose", "mouth", "eyes", "glasses", "beard", "tilt", "framing", "light")
# words that captions of other photographs are likely to hold; they only shape the vocabulary
MORE = """a an the of and or in on at by for from to with without is are was this that it its his her their who man
woman person people face head hair dark fair grey black white short long curly straight bald young old
middle aged eyes brows nose mouth lips teeth chin cheek ears forehead neck shirt collar tie jacket sweater
suit background light bright dim dark even soft side front left right up down straight ahead slightly facing
looking turned tilted smiling broadly serious neutral laughing frowning surprised talking open closed
wearing glasses beard moustache goatee full clean shaven photo photograph picture image portrait studio
close headshot render rendered look camera viewer profile three quarter view upright seen nearby further
away"""


def world_names() -> list[str]:
    """Names of the base's people: s1-s20 first, then the pseudo-people."""
    return (TEMPLATE / "world_names.txt").read_text(encoding="utf-8").split()


def photo_records() -> list[dict[str, str]]:
    """The 200 described photographs of s1-s20."""
    return [json.loads(line) for line in (TEMPLATE / "world.jsonl").read_text(encoding="utf-8").splitlines()]


def mirrored(record: dict[str, str]) -> dict[str, str]:
    """Left and right exchanged, as in the mirrored photograph."""
    swap = {"left": "right", "right": "left"}
    return {key: " ".join(swap.get(word, word) for word in value.split()) for key, value in record.items()}


def photo_caption(name: str, record: dict[str, str], draw: random.Random) -> str:
    """A caption of a real photograph: the plain wording, or another with some attributes in any order."""
    if draw.random() < 0.3:
        return PLAIN.format(name=name)
    chosen = draw.sample(ATTRIBUTES, draw.choice((0, 1, 2, 2, 3, 4)))
    said = [record[key] for key in chosen if not record[key].startswith("with open eyes")]
    return ", ".join([draw.choice(WORDINGS).format(name=name), *said]) + "."


def rendered_caption(name: str, draw: random.Random) -> str:
    """A caption of a pseudo-person: always says that it is rendered."""
    return draw.choice(RENDERED).format(name=name)


def train_tokenizer(folder: Path, size: int) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's format: any text can be cut. Names count once, so most are several tokens."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=EOS))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    records = photo_records()
    said = [record[key] for record in records for key in ATTRIBUTES] + [*WORDINGS, *RENDERED, PLAIN] * 10
    corpus = [text.replace("{name}", "") for text in said] + MORE.split() * 20 + world_names()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 258, min_frequency=2, initial_alphabet=letters, show_progress=False, end_of_word_suffix="</w>"
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in model["merges"]]
    # CLIP's order: bytes, bytes at a word's end, merges, specials
    pieces = letters + [letter + "</w>" for letter in letters]
    pieces += [a + b for a, b in merges if a + b not in set(pieces)]
    pieces += [BOS, EOS]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    made = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH, pad_token=EOS)
    folder.mkdir(parents=True, exist_ok=True)
    made.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIPTextModel; the pooled output is the state at the first end-of-text token."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def token_counts(tokenizer: CLIPTokenizer, names: list[str]) -> dict[int, int]:
    """How many names are one token, two, ..."""
    return dict(sorted(Counter(len(tokenizer(name).input_ids) - 2 for name in names).items()))
