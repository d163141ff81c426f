"""Captions beyond CLIP's 77 positions: read in chunks where that is asked for, in training and in sampling alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TinyProject

from pogdiff_cli.engine.sampler import SamplingSettings, encode_prompts
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import FamilyOptions, Guidance
from pogdiff_cli.models.families import open_backbone

CPU = torch.device("cpu")
#: The tiny tokenizer has a token for each letter: 75 for the first chunk, then the rest.
FIRST, SECOND = " ".join("a" * 75), " ".join("b" * 20)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_each_chunk_is_read_as_a_caption_of_its_own(name: str, folders: Callable[[str], Path]) -> None:
    plain = open_backbone(folders(name), device=CPU)
    chunked = open_backbone(folders(name), device=CPU, options=FamilyOptions(max_token_length=150))
    assert (plain.token_limit, chunked.token_limit) == (75, 150)
    both = chunked.encode_text([f"{FIRST} {SECOND}", FIRST])
    alone = plain.encode_text([FIRST, SECOND])
    hidden = both.condition["hidden"]
    assert hidden.shape[1] == 2 + 150
    # start of the first, both middles, end of the last: as kohya's scripts join them
    torch.testing.assert_close(hidden[0, :76], alone.condition["hidden"][0, :76], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden[0, 76:], alone.condition["hidden"][1, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both.pooled, alone.pooled[[0, 0]], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(hidden[0, 76:], hidden[1, 76:], atol=1e-3)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_short_caption_is_read_by_the_unet_in_either_length(name: str, folders: Callable[[str], Path]) -> None:
    adapter = open_backbone(folders(name), device=CPU, options=FamilyOptions(max_token_length=225))
    settings = SamplingSettings(
        seed=0,
        resolution=32,
        num_inference_steps=2,
        guidance=Guidance(),
        negative_prompt="",
        scheduler="auto",
        batch_size=4,
    )
    prompts = encode_prompts(adapter, ["Ada", "Grace"], settings)
    trained = adapter.encode_text(["Ada"]).condition
    assert torch.equal(prompts.of(["Ada"], CPU)["hidden"], trained["hidden"])
    pipeline = adapter.pipeline(adapter.load_denoiser(), scheduler="auto", text="without text")
    noise = torch.randn(2, *adapter.latent_shape(32), generator=torch.Generator().manual_seed(0))
    arguments = adapter.sampling_arguments(
        prompts.of(["Ada", "Grace"], CPU), prompts.of(["", ""], CPU), noise, Guidance()
    )
    images = pipeline(**arguments, height=32, width=32, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    assert abs(images[0] - images[1]).max() > 0


def test_a_length_that_is_no_number_of_chunks_is_refused(folders: Callable[[str], Path]) -> None:
    for name, length, words in (("sd", 100, "chunks of 75"), ("flux", 513, "2 to 512 tokens")):
        adapter = open_backbone(folders(name), device=CPU, options=FamilyOptions(max_token_length=length))
        with pytest.raises(PogdiffError, match=words) as refusal:
            adapter.encode_text(["a"])
        assert refusal.value.exit_code == Exit.USAGE


def test_inspect_names_captions_that_lose_their_name_and_chunks_keep_it(project: TinyProject) -> None:
    root = Path(project.root)
    lines = [
        {"file_name": "Ada Lovelace/0.png", "identity": "Ada Lovelace", "text": "Ada Lovelace, seen from far away."},
        {"file_name": "Ada Lovelace/1.png", "identity": "Ada Lovelace", "text": f"{'far ' * 30}Ada Lovelace."},
    ]
    metadata = root / "metadata.jsonl"
    metadata.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one = project.configure("data.metadata=metadata.jsonl")
    cut = json.loads(one("inspect", "--json").out)
    assert cut["captions_with_name_cut"] == ["Ada Lovelace/1.png"]
    assert any("name" in warning for warning in cut["warnings"])
    kept = json.loads(one("inspect", "--json", "--set", "train.max_token_length=150").out)
    assert kept["captions_with_name_cut"] == []
