"""Feature extractors: real formats, tiny random models, and the geometry of the face chip."""

from __future__ import annotations

import builtins
import importlib.util
import json
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from badfiles import photo
from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.extractors import load_extractor
from pogdiff_cli.models.extractors.dlib_face import fixed_chip
from pogdiff_cli.models.extractors.presence import refuse_absent
from pogdiff_cli.models.extractors.timm_model import prepared

PICTURES = [photo(40, 30, seed) for seed in range(5)]


class FakeFaces:
    """Stands for the dlib package: a descriptor is 128 pixels of the chip, a bright corner is a face."""

    def __init__(self) -> None:
        self.chips: list[np.ndarray] = []

    def face_recognition_model_v1(self, path: str) -> SimpleNamespace:
        assert Path(path).is_file()
        return SimpleNamespace(compute_face_descriptor=self._describe)

    def _describe(self, chip: np.ndarray) -> list[float]:
        assert chip.shape == (150, 150, 3)
        assert chip.flags["C_CONTIGUOUS"]
        self.chips.append(chip)
        return [float(value) for value in chip[75, :128, 0]]

    def get_frontal_face_detector(self) -> Callable[[np.ndarray, int], list[SimpleNamespace]]:
        def detect(pixels: np.ndarray, upsample: int) -> list[SimpleNamespace]:
            del upsample
            faces = [SimpleNamespace(size=4, area=lambda: 4), SimpleNamespace(size=9, area=lambda: 9)]
            return faces if pixels[0, 0, 0] > 127 else []

        return detect

    def shape_predictor(self, path: str) -> Callable[[np.ndarray, Any], Any]:
        assert Path(path).is_file()
        return lambda _, face: face

    def get_face_chip(self, pixels: np.ndarray, shape: SimpleNamespace, size: int) -> np.ndarray:
        del pixels
        return np.full((size, size, 3), shape.size, dtype=np.uint8)


@pytest.fixture
def faces(monkeypatch: pytest.MonkeyPatch) -> FakeFaces:
    fake = FakeFaces()
    monkeypatch.setitem(sys.modules, "dlib", fake)
    return fake


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.dat"
    path.write_bytes(b"weights")
    return path


def ramp(side: int) -> Image.Image:
    """Columns of brightness 0, 1, 2, ...: where a chip looks can be read from its values."""
    return Image.fromarray(np.tile(np.arange(side, dtype=np.uint8), (side, 1)))


def test_the_chip_is_the_box_of_the_picture() -> None:
    chip = fixed_chip(ramp(200), (0.25, 0.0, 0.75, 0.5))
    # columns 50 to 150 on 150 pixels: pixel j shows column 50 + (j + 1/2) * 2/3 - 1/2
    expected = 50 + (np.arange(150) + 0.5) * (100 / 150) - 0.5
    assert np.abs(chip[75, :, 1] - expected).max() <= 1.0


def test_a_box_beyond_the_picture_repeats_its_edge() -> None:
    chip = fixed_chip(ramp(100), (-0.5, 0.0, 1.5, 2.0))
    assert (chip[75, :36, 0] == 0).all()
    assert (chip[75, 114:, 0] == 99).all()


def test_the_chip_of_a_wide_picture_lies_in_its_centre_square() -> None:
    wide = Image.new("L", (300, 100), 0)
    wide.paste(200, (100, 0, 200, 100))
    assert (fixed_chip(wide, (0.0, 0.0, 1.0, 1.0)) == 200).all()


def test_the_demo_box_on_the_square_is_the_measured_box_on_the_whole_photograph() -> None:
    # (1.7, 24.8, 91.5, 114.3) of the 92x112 frame; the square is its rows 18 to 110
    box = [0.01848, 0.07391, 0.99457, 1.04674]
    on_frame = np.array(box) * 92 + np.array([0, 18, 0, 18])
    assert np.allclose(on_frame, [1.7, 24.8, 91.5, 114.3], atol=0.01)


def test_dlib_describes_the_chip_of_each_picture_in_order(faces: FakeFaces, weights: Path) -> None:
    extractor = load_extractor("dlib", opts={"weights": str(weights), "chip": [0.25, 0.25, 0.75, 0.75]})
    found = extractor.embed(iter(PICTURES), batch_size=2)
    assert found.vectors.shape == (5, extractor.dim) == (5, 128)
    assert found.vectors.dtype == np.float32
    assert not found.missing.any()
    for picture, chip, vector in zip(PICTURES, faces.chips, found.vectors, strict=True):
        assert np.array_equal(chip, fixed_chip(picture, (0.25, 0.25, 0.75, 0.75)))
        assert np.array_equal(vector, chip[75, :128, 0].astype(np.float32))


def test_the_largest_face_is_aligned_and_a_picture_without_one_is_missing(faces: FakeFaces, weights: Path) -> None:
    options = {"weights": weights, "aligner": "landmarks", "predictor": weights}
    extractor = load_extractor("dlib", opts=options)
    found = extractor.embed([Image.new("RGB", (20, 20), shade) for shade in ("white", "black", "white")])
    assert found.missing.tolist() == [False, True, False]
    assert (found.vectors[0] == 9.0).all()
    assert (found.vectors[1] == 0.0).all()
    assert len(faces.chips) == 2


def test_the_digest_names_weights_and_preprocessing(faces: FakeFaces, weights: Path) -> None:
    def digest(**changes: object) -> str:
        return load_extractor("dlib", opts={"weights": weights, **changes}).digest

    first = digest()
    assert digest() == first
    assert digest(chip=[0.0, 0.0, 1.0, 0.9]) != first
    weights.write_bytes(b"others")
    assert digest() != first


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        ({}, "face-recognition-models", Exit.MISSING),
        ({"weights": "absent.dat"}, "face-recognition-models", Exit.MISSING),
        ({"weigths": "x"}, "Did you mean 'weights'", Exit.USAGE),
        ({"chip": [0, 0, 1]}, "no box", Exit.USAGE),
        ({"chip": [0.9, 0, 0.1, 1]}, "no box", Exit.USAGE),
        ({"aligner": "mtcnn"}, "'landmarks'", Exit.USAGE),
        ({"aligner": "landmarks"}, "shape predictor", Exit.MISSING),
        ({"aligner": "landmarks", "chip": [0, 0, 1, 1]}, "exclude each other", Exit.USAGE),
    ],
)
def test_a_mistake_in_dlibs_options_says_what_to_do(
    faces: FakeFaces, weights: Path, options: dict[str, object], message: str, code: Exit
) -> None:
    del faces
    given = {"weights": weights, **options} if options and "weights" not in options else options
    with pytest.raises(PogdiffError, match=message) as caught:
        load_extractor("dlib", opts=given)
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    ("package", "spec", "command"),
    [
        ("dlib", "dlib", r"pip install 'pogdiff\[demo\]'"),
        ("onnxruntime", "onnx:", r"pip install 'pogdiff\[onnx\]'"),
    ],
)
def test_a_missing_package_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, weights: Path, package: str, spec: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    options = {"weights": weights} if package == "dlib" else {}
    with pytest.raises(PogdiffError, match=command) as caught:
        load_extractor(spec if package == "dlib" else f"onnx:{weights}", opts=options)
    assert caught.value.exit_code == Exit.MISSING


@pytest.mark.parametrize("spec", ["", "dlibb", "hf:", "timm:", "tim:resnet18", "onnx", "py:"])
def test_an_unknown_extractor_lists_the_known_ones(spec: str) -> None:
    with pytest.raises(PogdiffError, match="hf:ID_OR_DIR") as caught:
        load_extractor(spec)
    assert caught.value.exit_code == Exit.USAGE


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models in the folders that transformers writes."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ResNetConfig,
        ResNetModel,
        SiglipConfig,
        SiglipImageProcessorPil,
        SiglipModel,
        ViTConfig,
        ViTImageProcessorPil,
        ViTModel,
    )

    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    size = {"height": 32, "width": 32}
    processor = ViTImageProcessorPil(size=size)
    models: dict[str, Any] = {
        "vit": ViTModel(ViTConfig(**small, image_size=32, patch_size=8)),
        "vit_without_pooler": ViTModel(ViTConfig(**small, image_size=32, patch_size=8), add_pooling_layer=False),
        "dinov2": Dinov2Model(Dinov2Config(**small, image_size=32, patch_size=8)),
        "registers": Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**small, image_size=32, patch_size=8, num_register_tokens=4)
        ),
        "resnet": ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    vision = {**small, "image_size": 32, "patch_size": 8}
    text = {**small, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).save_pretrained(root / "clip")
    clip = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    clip.save_pretrained(root / "clip")
    SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).save_pretrained(root / "siglip")
    SiglipImageProcessorPil(size=size, resample=2).save_pretrained(root / "siglip")
    return root


def hidden_states(folder: Path) -> tuple[Any, Any]:
    """Oracle: the model called by hand on v / 127.5 - 1 of the picture resized by PIL."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    resized = [np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)) for picture in PICTURES]
    pixels = torch.tensor(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.no_grad():
        output = model(pixel_values=pixels)
    return output.last_hidden_state, output.pooler_output


def test_each_pooling_takes_its_part_of_the_hidden_states(vits: Path) -> None:
    hidden, pooled = hidden_states(vits / "vit")
    oracles = {"cls": hidden[:, 0], "mean": hidden[:, 1:].mean(1), "pooler": pooled}
    for pooling, oracle in oracles.items():
        extractor = load_extractor(f"hf:{vits / 'vit'}#{pooling}")
        found = extractor.embed(PICTURES, batch_size=2)
        assert extractor.dim == 16
        assert not found.missing.any()
        assert np.allclose(found.vectors, oracle.numpy(), atol=1e-5)


def test_dinov2_gives_its_class_token_its_patches_and_its_pooler(vits: Path) -> None:
    hidden, pooled = hidden_states(vits / "dinov2")
    for pooling, oracle in {"cls": hidden[:, 0], "mean": hidden[:, 1:].mean(1), "pooler": pooled}.items():
        found = load_extractor(f"hf:{vits / 'dinov2'}#{pooling}").embed(PICTURES)
        assert np.allclose(found.vectors, oracle.numpy(), atol=1e-5)


def test_siglip_has_a_pooler_and_patches_and_no_class_token(vits: Path) -> None:
    from transformers import SiglipModel

    model = SiglipModel.from_pretrained(vits / "siglip").vision_model.eval()
    resized = [np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)) for picture in PICTURES]
    pixels = torch.tensor(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.no_grad():
        output = model(pixel_values=pixels)
    for pooling, oracle in {"pooler": output.pooler_output, "mean": output.last_hidden_state.mean(1)}.items():
        extractor = load_extractor(f"hf:{vits / 'siglip'}#{pooling}")
        assert np.allclose(extractor.embed(PICTURES).vectors, oracle.numpy(), atol=1e-5)
        assert extractor.preprocessing["image_mean"] == [0.5, 0.5, 0.5]
    with pytest.raises(PogdiffError, match="no class token"):
        load_extractor(f"hf:{vits / 'siglip'}#cls")


def test_registers_are_not_patches(vits: Path) -> None:
    hidden, _ = hidden_states(vits / "registers")
    found = load_extractor(f"hf:{vits / 'registers'}#mean").embed(PICTURES)
    assert np.allclose(found.vectors, hidden[:, 5:].mean(1).numpy(), atol=1e-5)


def test_a_convolutional_net_is_averaged_over_its_grid_and_has_no_class_token(vits: Path) -> None:
    hidden, pooled = hidden_states(vits / "resnet")
    mean = load_extractor(f"hf:{vits / 'resnet'}#mean").embed(PICTURES).vectors
    assert np.allclose(mean, hidden.mean((2, 3)).numpy(), atol=1e-5)
    pooler = load_extractor(f"hf:{vits / 'resnet'}#pooler").embed(PICTURES).vectors
    assert np.allclose(pooler, pooled.flatten(1).numpy(), atol=1e-5)
    with pytest.raises(PogdiffError, match="no class token"):
        load_extractor(f"hf:{vits / 'resnet'}#cls")


def test_of_a_model_of_pictures_and_texts_the_vision_tower_is_taken(vits: Path) -> None:
    extractor = load_extractor(f"hf:{vits / 'clip'}#pooler")
    assert extractor.embed(PICTURES).vectors.shape == (5, 16)


def test_a_pooler_without_trained_weights_is_refused_and_the_rest_serves(vits: Path) -> None:
    with pytest.raises(PogdiffError, match="no trained weights for pooler") as caught:
        load_extractor(f"hf:{vits / 'vit_without_pooler'}#pooler")
    assert caught.value.exit_code == Exit.MISSING
    assert load_extractor(f"hf:{vits / 'vit_without_pooler'}").embed(PICTURES).vectors.shape == (5, 16)


def test_the_batch_size_changes_nothing_but_rounding(vits: Path) -> None:
    extractor = load_extractor(f"hf:{vits / 'vit'}#cls")
    one, all_ = (
        extractor.embed(PICTURES, batch_size=1).vectors,
        extractor.embed(PICTURES, batch_size=5).vectors,
    )
    assert np.allclose(one, all_, atol=1e-6)
    assert extractor.embed([]).vectors.shape == (0, 16)


def test_the_digest_of_a_model_is_that_of_its_weights_and_not_of_its_place(vits: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(vits / "vit", tmp_path / "elsewhere"))
    first = load_extractor(f"hf:{vits / 'vit'}#cls").digest
    assert load_extractor(f"hf:{copy}#cls").digest == first
    assert load_extractor(f"hf:{copy}#mean").digest != first
    assert load_extractor(f"hf:{vits / 'vit_without_pooler'}#cls").digest != first


def test_a_pickle_is_never_read_in_place_of_safetensors(vits: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(vits / "vit", tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(PogdiffError, match=r"model\.safetensors") as caught:
        load_extractor(f"hf:{folder}#cls")
    assert caught.value.exit_code == Exit.MISSING


def test_a_missing_model_names_the_command_that_fetches_it_in_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seconds = []
    for _ in range(2):  # the first also imports transformers, which a busy machine takes its time for
        start = time.perf_counter()
        with pytest.raises(PogdiffError, match=r"hf download nobody/nothing --revision v1") as caught:
            load_extractor("hf:nobody/nothing@v1#cls")
        assert caught.value.exit_code == Exit.MISSING
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 3.0


def test_unknown_poolings_and_options_are_refused(vits: Path) -> None:
    with pytest.raises(PogdiffError, match="cls, pooler or mean"):
        load_extractor(f"hf:{vits / 'vit'}#max")
    with pytest.raises(PogdiffError, match="no option 'size'"):
        load_extractor(f"hf:{vits / 'vit'}#cls", opts={"size": 5})


def write_onnx(path: Path, shape: list[int | str]) -> Path:
    """mean over height and width -> named "inside" -> doubled -> output."""
    import onnx
    from onnx import TensorProto, helper

    axes = [2, 3] if shape[1] == 3 else [1, 2]
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["inside"], axes=axes, keepdims=0),
        helper.make_node("Add", ["inside", "inside"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [shape[0], 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def channel_means(size: int) -> np.ndarray:
    resized = [picture.resize((size, size), Image.Resampling.BILINEAR) for picture in PICTURES]
    return np.stack([np.asarray(picture, dtype=np.float64).mean((0, 1)) for picture in resized])


@pytest.mark.parametrize("shape", [["b", 3, 16, 16], ["b", 16, 16, 3], [2, 3, 16, 16], [1, 16, 16, 3]])
def test_an_onnx_graph_sees_the_picture_as_its_options_say(tmp_path: Path, shape: list[int | str]) -> None:
    path = write_onnx(tmp_path / "tiny.onnx", shape)
    options = {"scale": 1.0, "mean": [104, 117, 123], "std": [1, 2, 4], "channels": "bgr"}
    extractor = load_extractor(f"onnx:{path}", opts=options)
    oracle = 2 * (channel_means(16)[:, ::-1] - [104, 117, 123]) / [1, 2, 4]
    found = extractor.embed(PICTURES, batch_size=3)
    assert extractor.dim == 3
    assert np.allclose(found.vectors, oracle, atol=1e-3)


def test_a_tensor_inside_an_onnx_graph_can_be_the_output(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "tiny.onnx", ["b", 3, 16, 16])
    outside, inside = load_extractor(f"onnx:{path}"), load_extractor(f"onnx:{path}#inside")
    assert np.allclose(inside.embed(PICTURES).vectors * 2, outside.embed(PICTURES).vectors, atol=1e-6)
    assert inside.digest != outside.digest
    with pytest.raises(PogdiffError, match="output 'absent'") as caught:
        load_extractor(f"onnx:{path}#absent")
    assert caught.value.exit_code == Exit.MISSING


def test_a_graph_of_any_size_asks_for_one(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "tiny.onnx", ["b", 3, "h", "w"])
    with pytest.raises(PogdiffError, match="option 'size'"):
        load_extractor(f"onnx:{path}")
    found = load_extractor(f"onnx:{path}", opts={"size": 8}).embed(PICTURES)
    assert np.allclose(found.vectors, 2 * channel_means(8) / 255, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [1]}, "three numbers"),
        ({"channels": "gbr"}, "rgb or bgr"),
        ({"sdt": 1}, "Did you mean 'std'"),
    ],
)
def test_a_mistake_in_onnx_options_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = write_onnx(tmp_path / "tiny.onnx", ["b", 3, 16, 16])
    with pytest.raises(PogdiffError, match=message):
        load_extractor(f"onnx:{path}", opts=options)


def test_a_file_that_is_no_onnx_graph_of_pictures_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    for spec in (f"onnx:{broken}", f"onnx:{tmp_path / 'absent.onnx'}"):
        with pytest.raises(PogdiffError) as caught:
            load_extractor(spec)
        assert caught.value.exit_code == Exit.MISSING
    with pytest.raises(PogdiffError, match="not a batch of RGB pictures"):
        load_extractor(f"onnx:{write_onnx(tmp_path / 'grey.onnx', ['b', 1, 16, 16])}")


def test_ones_own_function_runs_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "my_features.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "import numpy as np\n"
        "def size(images): return np.array([[np.nan, np.nan] if i.width == 1 else i.size for i in images])\n"
        "def flat(images): return np.zeros(3)\n"
        "def infinite(images): return np.full((len(images), 2), np.inf)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PogdiffError, match="allow_python"):
        load_extractor("py:my_features:size", opts={"allow_python": "yes"})
    assert not ran.exists()
    allowed = {"allow_python": True}
    extractor = load_extractor("py:my_features:size", opts=allowed)
    found = extractor.embed([Image.new("RGB", (7, 5)), Image.new("RGB", (1, 1))])
    assert found.vectors.tolist() == [[7.0, 5.0], [0.0, 0.0]]
    assert found.missing.tolist() == [False, True]
    with pytest.raises(PogdiffError, match="one row a picture"):
        load_extractor("py:my_features:flat", opts=allowed)
    with pytest.raises(PogdiffError, match="not finite"):
        load_extractor("py:my_features:infinite", opts=allowed).embed(PICTURES)


def test_loading_the_registry_imports_no_heavy_package(monkeypatch: pytest.MonkeyPatch) -> None:
    heavy = {"torch", "transformers", "faiss", "dlib", "onnxruntime"}
    imported: list[str] = []
    original = builtins.__import__

    def watching(name: str, *rest: Any, **more: Any) -> Any:
        imported.append(name.partition(".")[0])
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", watching)
    for name in (
        "extractors",
        "extractors.hub",
        "extractors.dlib_face",
        "extractors.onnx_graph",
        "extractors.timm_model",
        "extractors.presence",
        "neighbours",
    ):
        found = importlib.util.find_spec(f"pogdiff_cli.models.{name}")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        monkeypatch.setitem(sys.modules, found.name, module)  # dataclasses look their module up
        found.loader.exec_module(module)
    assert heavy.isdisjoint(imported)


class FakeTimm:
    """timm's border: architectures by name, without a classifier when asked for none."""

    @staticmethod
    def create_model(name: str, *, pretrained: bool, num_classes: int, width: int = 4) -> torch.nn.Module:
        assert (name, pretrained, num_classes) == ("mean_then_linear", False, 0)
        body = torch.nn.Linear(3, width)
        return torch.nn.Sequential(OrderedDict(mean=Mean(), body=body))


class Mean(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean(dim=(2, 3))


@pytest.fixture
def timm_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model as the hub keeps those of timm: config.json and safetensors with the classifier in it."""
    from safetensors.torch import save_file

    monkeypatch.setitem(sys.modules, "timm", FakeTimm)
    config = {
        "architecture": "mean_then_linear",
        "model_args": {"width": 2, "num_classes": 7},  # as timm saves it
        "pretrained_cfg": {
            "input_size": [3, 16, 16],
            "crop_pct": 0.5,
            "interpolation": "bicubic",
            "mean": [0.5, 0.25, 0.0],
            "std": [0.5, 1.0, 2.0],
            "classifier": "head",
        },
    }
    folder = tmp_path / "timm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        "body.weight": torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 4.0]]),
        "body.bias": torch.tensor([0.0, 1.0]),
        "head.weight": torch.zeros(7, 2),
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_timm_model_sees_the_centre_of_the_picture_as_its_configuration_says(timm_folder: Path) -> None:
    """Shorter side 40 -> 32 = 16 / 0.5, then the central 16: of 32 columns of a picture's middle only one colour."""
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[6:34, 6:34] = (255, 102, 51)
    extractor = load_extractor(f"timm:{timm_folder}")
    found = extractor.embed([Image.fromarray(pixels)]).vectors
    r, g, b = (1.0 - 0.5) / 0.5, 0.4 - 0.25, 0.2 / 2.0
    assert np.allclose(found, [[r, 2 * g + 4 * b + 1.0]], atol=1e-5)
    assert extractor.dim == 2
    assert extractor.preprocessing == {
        "size": 16,
        "crop_pct": 0.5,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.5, 0.25, 0.0],
        "std": [0.5, 1.0, 2.0],
    }


def test_what_is_kept_of_a_picture_is_rounded_as_timm_rounds_it() -> None:
    """torchvision's centre crop begins at round((length - size) / 2), halves to the even number."""
    how = {"size": 16, "crop_pct": 16 / 20.5, "interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1]}
    for width, height, left, top in ((20, 20, 2, 2), (21, 20, 2, 2), (23, 20, 4, 2), (20, 25, 2, 4), (20, 27, 2, 6)):
        pixels = np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)  # shorter side: 20
        kept = prepared(Image.fromarray(pixels), how | {"crop_mode": "center"}).transpose(1, 2, 0)
        assert np.allclose(kept, pixels[top : top + 16, left : left + 16] / 255)
    columns = np.repeat(np.linspace(0, 1, 40)[None], 20, axis=0)[..., None].repeat(3, axis=2)
    picture = Image.fromarray((255 * columns).astype(np.uint8))
    squashed = prepared(picture, how | {"crop_mode": "squash"})  # 40 columns -> 20 -> the central 16
    assert np.allclose(squashed[0].mean(axis=0), np.linspace(0, 1, 40).reshape(20, 2).mean(axis=1)[2:18], atol=0.01)


def test_a_way_to_crop_that_is_not_known_is_refused(timm_folder: Path) -> None:
    config = json.loads((timm_folder / "config.json").read_text())
    config["pretrained_cfg"]["crop_mode"] = "border"
    (timm_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PogdiffError, match="timm's way 'border'"):
        load_extractor(f"timm:{timm_folder}")


def test_the_digest_of_a_timm_model_is_that_of_its_files(timm_folder: Path, tmp_path: Path) -> None:
    first = load_extractor(f"timm:{timm_folder}").digest
    copy = shutil.copytree(timm_folder, tmp_path / "copy")
    assert load_extractor(f"timm:{copy}").digest == first
    config = json.loads((copy / "config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = 1.0
    (copy / "config.json").write_text(json.dumps(config))
    assert load_extractor(f"timm:{copy}").digest != first


def test_timm_weights_that_do_not_fit_or_are_pickled_are_refused(timm_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = timm_folder / "model.safetensors"
    weights = load_file(file)
    for wrong in ({"body.weight": weights["body.weight"]}, {**weights, "neck.weight": torch.ones(1)}):
        save_file(wrong, file)
        with pytest.raises(PogdiffError, match=r"do not fit their architecture: (body\.bias|neck\.weight)"):
            load_extractor(f"timm:{timm_folder}")
    torch.save(weights, timm_folder / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(PogdiffError, match="pickled weights are not loaded") as caught:
        load_extractor(f"timm:{timm_folder}")
    assert caught.value.exit_code == Exit.MISSING


def test_without_timm_or_with_a_torchvision_that_does_not_fit_it_is_said_what_to_install(
    timm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torchvision of another build than torch fails with a RuntimeError when timm imports it."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PogdiffError, match="needs a torchvision built for this torch") as caught:
        load_extractor(f"timm:{timm_folder}")
    assert caught.value.exit_code == Exit.MISSING
    broken = tmp_path / "packages" / "timm"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.syspath_prepend(str(broken.parent))
    with pytest.raises(PogdiffError, match="torchvision::nms does not exist") as caught:
        load_extractor(f"timm:{timm_folder}")
    assert caught.value.exit_code == Exit.MISSING
    assert "pip install timm torchvision" in (caught.value.hint or "")
    assert "timm" not in sys.modules


def test_what_timm_needs_is_looked_for_before_anything_is_loaded(
    timm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def there(*packages: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in packages else None)

    for packages, absent in (((), "timm"), (("timm",), "torchvision")):
        there(*packages)
        with pytest.raises(PogdiffError, match=f"needs {absent}") as caught:
            refuse_absent(f"timm:{timm_folder}", {})
        assert caught.value.exit_code == Exit.MISSING
        assert "pip install timm torchvision" in (caught.value.hint or "")
    there("timm", "torchvision")
    refuse_absent(f"timm:{timm_folder}", {})
