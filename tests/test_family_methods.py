"""Each family with each method, all the way: trained, saved, resumed, sampled by its own pipeline, exported, read back.

Every family is taken through with one method here, and with all of them among the slow tests.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import SAVE
from test_families import METHODS, SHORT, own_pipeline, pixels, settings
from training import trainer

from pogdiff_cli.engine import exports
from pogdiff_cli.engine.sampler import ImageRequest, generate
from pogdiff_cli.engine.tuning import load_final, write_final
from pogdiff_cli.models.adapter import Guidance
from pogdiff_cli.models.components import copy_components
from pogdiff_cli.models.families import open_backbone

CPU = torch.device("cpu")
HERE = {"sd": "cbdm", "sdxl": "pogdiff", "sd3": "t2h", "flux": "cbdm"}
PAIRS = [
    pytest.param(name, method, marks=() if HERE.get(name) == method else pytest.mark.slow)
    for name in SAVE
    for method in METHODS
]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_what_is_trained_survives_the_whole_way(
    name: str, method: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = open_backbone(folders(name), device=CPU, options=SHORT.get(name))
    keys: dict[str, Any] = {"method": method, "max_train_steps": 3, "learning_rate": 3e-3}
    whole = trainer(adapter, tmp_path / "whole", **keys, checkpointing_steps=100)
    whole.run()
    trainer(adapter, tmp_path / "halves", **(keys | {"max_train_steps": 2}), checkpointing_steps=2).run()
    one = trainer(adapter, tmp_path / "halves", **keys)
    assert one.resume() == 2
    one.run()
    assert all(torch.equal(one.trainable[key], value) for key, value in whole.trainable.items())

    (tmp_path / "final").mkdir()
    write_final(adapter, one.final_denoiser(), tmp_path / "final", "full")
    request = ImageRequest(prompt="Ada", noise_key=1, seed=0, path=tmp_path / "a.png")
    sampled = settings(scheduler="native", guidance=Guidance(guidance_scale=3.0))
    generate(adapter, load_final(adapter, tmp_path / "final"), [request], sampled)
    base = ImageRequest(prompt="Ada", noise_key=1, seed=0, path=tmp_path / "base.png")
    generate(adapter, adapter.load_denoiser(), [base], sampled)
    assert not np.array_equal(pixels(request.path), pixels(base.path))

    exports.write_pipeline(adapter, tmp_path / "final", tmp_path / "exported")
    for folder in (tmp_path / "final", tmp_path / "exported"):  # as the family's own class reads them
        pipeline = own_pipeline(folder)
        assert type(pipeline).__name__ == type(own_pipeline(folders(name))).__name__
        again = getattr(pipeline, adapter.denoiser_name).state_dict()
        kept = one.final_denoiser().state_dict()
        assert again.keys() == kept.keys()
        assert all(torch.equal(again[key], kept[key]) for key in kept)
        reread = open_backbone(folder, device=CPU, options=SHORT.get(name))
        redrawn = ImageRequest(prompt="Ada", noise_key=1, seed=0, path=folder.with_suffix(".png"))
        generate(reread, reread.load_denoiser(), [redrawn], sampled)
        assert np.array_equal(pixels(redrawn.path), pixels(request.path))


class Canary:
    """Unpickled, it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", [name for name in SAVE if name != "sd-v"])
def test_pickles_and_code_beside_a_family_s_weights_are_left_alone(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    folder = Path(shutil.copytree(folders(name), tmp_path / "base"))
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w')\n")
    for config in folder.glob("*/*config.json"):
        values = json.loads(config.read_text())
        keys = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoModelForTextEncoding")
        config.write_text(json.dumps(values | {"auto_map": dict.fromkeys(keys, "own.Own")}))
        (config.parent / "own.py").write_text(f"open({str(canary)!r}, 'w')\n")
        for file in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.ckpt", "tokenizer.pkl"):
            (config.parent / file).write_bytes(pickle.dumps(Canary(canary)))
    adapter, plain = (open_backbone(path, device=CPU, options=SHORT.get(name)) for path in (folder, folders(name)))
    ours, theirs = (one.encode_text(["Ada"]).condition for one in (adapter, plain))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    picture = torch.zeros(1, 3, 32, 32)
    assert torch.equal(adapter.encode_images(picture).mean, plain.encode_images(picture).mean)
    adapter.save(adapter.load_denoiser(), tmp_path / "copy")
    assert not canary.exists()
    assert {path.suffix for path in (tmp_path / "copy").rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".txt",
        ".model",
    }
    pickle.loads(pickle.dumps(Canary(canary)))  # it would have been seen
    assert canary.exists()


def test_copies_in_half_precision_do_not_travel_in_shards_either(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders("sd3"), tmp_path / "base"))
    twice = ("model.fp16-00001-of-00002.safetensors", "model.safetensors.index.fp16.json", "model.fp16.safetensors")
    for file in twice:
        (folder / "text_encoder_3" / file).write_bytes(b"x")
    copy_components(folder, tmp_path / "copy", ["text_encoder_3"], trained="transformer")
    copied = {path.name for path in (tmp_path / "copy" / "text_encoder_3").iterdir()}
    assert "model.safetensors" in copied
    assert not copied & set(twice)
