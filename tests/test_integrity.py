"""What finished stages wrote is held against its digest before it is read, and one bit is enough to tell."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pogdiff_cli.data.descriptions import Description, read_descriptions
from pogdiff_cli.data.records import read_records
from pogdiff_cli.data.scan import scan
from pogdiff_cli.engine import checkpoint
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.engine.encode import Images, encode_latents, encode_texts, latent_key, text_key
from pogdiff_cli.engine.metrics_log import MetricsLog, extent, read_metrics
from pogdiff_cli.engine.sampler import ImageRequest, batches, missing
from pogdiff_cli.engine.stamps import bears, write_stamped
from pogdiff_cli.engine.tuning import LORA_FILE, load_final, prepare, write_final
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.extractors import load_extractor
from pogdiff_cli.models.families import open_backbone
from pogdiff_cli.project.config import TrainConfig
from pogdiff_cli.project.digests import Digests, digest_bytes
from pogdiff_cli.project.integrity import damaged, refuse_damaged
from pogdiff_cli.project.layout import Project, open_project
from pogdiff_cli.project.line_log import LineWriter
from pogdiff_cli.project.manifest import Manifest, StageRecord, read_manifest, write_manifest


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A caption stage and a run's training, both done, as far as the manifest knows."""
    (tmp_path / "pogdiff.yaml").write_text("")
    files = {"artifacts/captions.jsonl": "one\n", "runs/a/final/weights": "two", "runs/a/metrics.jsonl": "three"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    project = open_project(tmp_path)
    digest = {name: str(project.digests.of(tmp_path / name)) for name in (*files, "runs/a/final")}
    caption = StageRecord(
        command="", state="done", outputs={"artifacts/captions.jsonl": digest["artifacts/captions.jsonl"]}
    )
    train = StageRecord(
        command="",
        state="done",
        outputs={"runs/a/final": digest["runs/a/final"]},
        logs={"runs/a/metrics.jsonl": digest["runs/a/metrics.jsonl"]},
    )
    write_manifest(tmp_path / "manifest.yaml", Manifest(stages={"caption": caption}, runs={"a": {"train": train}}))
    return project


def test_what_is_as_it_was_written_is_not_damaged(project: Project) -> None:
    assert damaged(project) == []
    refuse_damaged(project, ["runs/a/final", "runs/a/metrics.jsonl", "runs/b/final"])


def test_a_changed_output_is_named_with_the_command_that_makes_it_again(project: Project) -> None:
    (project.root / "runs/a/final/weights").write_text("twp")
    with pytest.raises(PogdiffError, match="runs/a/final is not what 'pogdiff train --name a' wrote") as caught:
        refuse_damaged(project, ["runs/a/final", "artifacts/captions.jsonl"])
    assert caught.value.exit_code == Exit.MISSING
    assert "type: pogdiff train --name a" in str(caught.value.hint)
    refuse_damaged(project, ["artifacts/captions.jsonl"])  # what is not read is not asked about


def test_a_lost_output_is_damage_and_a_log_counts_only_where_it_is_asked_for(project: Project) -> None:
    (project.root / "artifacts/captions.jsonl").unlink()
    (project.root / "runs/a/metrics.jsonl").write_text("thrEe")
    assert [(each.path, each.problem) for each in damaged(project)] == [("artifacts/captions.jsonl", "missing")]
    assert [(each.path, each.problem) for each in damaged(project, ["runs/a/metrics.jsonl"])] == [
        ("runs/a/metrics.jsonl", "changed")
    ]


def test_what_an_unfinished_stage_left_is_not_judged(project: Project) -> None:
    manifest = project.manifest()
    manifest.runs["a"]["train"].state = "failed"
    project.write_manifest(manifest)
    (project.root / "runs/a/final/weights").write_text("anything")
    assert damaged(project) == []


def test_any_flipped_bit_of_a_manifest_is_noticed_or_changes_no_fact(project: Project) -> None:
    path, draw = project.root / "manifest.yaml", random.Random(0)
    written, facts = path.read_bytes(), read_manifest(path)
    refusals = []
    for _ in range(300):
        content = bytearray(written)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            assert read_manifest(path) == facts
        except PogdiffError as problem:
            refusals.append(problem)
    assert len(refusals) > 200
    assert all("manifest.yaml" in problem.message and problem.hint for problem in refusals)


def test_a_manifest_cut_off_anywhere_is_refused(project: Project) -> None:
    path = project.root / "manifest.yaml"
    written, facts = path.read_bytes(), read_manifest(path)
    for length in range(0, len(written) - 1, 7):
        path.write_bytes(written[:length])
        with pytest.raises(PogdiffError, match=r"manifest\.yaml"):
            read_manifest(path)
    path.write_bytes(written[:-1])  # all but the last line break
    assert read_manifest(path) == facts


def test_whoever_merges_two_manifests_takes_the_digest_out_and_older_ones_have_none(project: Project) -> None:
    path = project.root / "manifest.yaml"
    text = path.read_text().replace("command: ''", "command: mine").replace('command: ""', "command: mine")
    path.write_text(text)
    with pytest.raises(PogdiffError, match="digest does not hold") as caught:
        read_manifest(path)
    assert "'digest:'" in str(caught.value.hint)
    path.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("digest:")))
    assert read_manifest(path).stages["caption"].command == "mine"


def test_a_flipped_bit_in_the_memory_of_digests_costs_time_only(tmp_path: Path) -> None:
    file, cache, draw = tmp_path / "file", tmp_path / "digests.json", random.Random(1)
    file.write_text("content")
    digests = Digests(cache)
    digests.of(file)
    digests.save()
    written = cache.read_bytes()
    for _ in range(200):
        content = bytearray(written)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        cache.write_bytes(content)
        assert Digests(cache).of(file) == digest_bytes(file)


def picture(path: Path, stamp: str, value: int = 7) -> None:
    write_stamped(Image.new("RGB", (8, 8), (value, 2, 3)), path, stamp)


def test_a_stamped_picture_is_known_again_and_any_flipped_bit_or_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "1.png"
    picture(path, "sha256:1")
    assert bears(path, "sha256:1")
    assert not bears(path, "sha256:2")
    assert not bears(tmp_path / "2.png", "sha256:1")
    assert [item.name for item in path.parent.iterdir()] == ["1.png"]
    written = path.read_bytes()
    for bit in range(8 * len(written)):
        content = bytearray(written)
        content[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(content)
        assert not bears(path, "sha256:1")
    for length in range(len(written)):
        path.write_bytes(written[:length])
        assert not bears(path, "sha256:1")
    path.write_bytes(written + b"\0")
    assert not bears(path, "sha256:1")


def test_exchanged_pictures_are_missing_and_their_batches_are_made_as_before(tmp_path: Path) -> None:
    requests = [
        ImageRequest(prompt="", noise_key=0, seed=seed, path=tmp_path / f"{seed}.png", stamp=f"of {seed}")
        for seed in range(7)
    ]
    for request in requests:
        picture(request.path, request.stamp, request.seed)
    assert missing(requests) == []
    first, second = tmp_path / "1.png", tmp_path / "5.png"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    todo = missing(requests)
    assert [request.seed for request in todo] == [1, 5]
    assert [[r.seed for r in batch] for batch in batches(requests, 3, todo)] == [[0, 1, 2], [3, 4, 5]]
    assert [[r.seed for r in batch] for batch in batches(requests, 3, requests)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(("harm", "intact"), [("none", True), ("later", True), ("earlier", False), ("gone", False)])
def test_a_log_is_told_from_the_one_that_the_checkpoint_was_made_with(tmp_path: Path, harm: str, intact: bool) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, resumed_at=0, tensorboard=None)
    log.write(1, {"denoise": 0.5})
    saved = extent(path)
    log.write(2, {"denoise": 0.25})
    text = path.read_text()
    if harm == "later":
        path.write_text(text[:-3])
    elif harm == "earlier":
        path.write_bytes(text.replace("0.5", "\N{LATIN SMALL LETTER E WITH ACUTE}").encode("latin-1"))
    elif harm == "gone":
        path.unlink()
    again = MetricsLog(path, resumed_at=1, tensorboard=None, as_saved=saved)
    assert again.intact == intact
    assert [line["step"] for line in read_metrics(path)] == ([1] if intact else [])


def test_what_is_encoded_later_has_the_bits_that_it_would_have_had_among_the_others(
    tmp_path: Path, pictures: Path, tiny_sd: Path, tiny_vit: Path
) -> None:
    adapter = open_backbone(tiny_sd, device=torch.device("cpu"))
    extractor = load_extractor(f"hf:{tiny_vit}#cls")
    names = [path.relative_to(pictures).as_posix() for path in sorted(pictures.rglob("*.png"))]
    texts = [f"A photo of number {i}." for i in range(5)]
    made = []
    for parts in ([slice(None)], [slice(3), slice(3, 4), slice(4, None)]):
        latents, encoded = TensorCache(tmp_path / f"latents{len(parts)}"), TensorCache(tmp_path / f"texts{len(parts)}")
        vectors = []
        for part in parts:
            some = names[part]
            digests = [hashlib.sha256((pictures / name).read_bytes()).hexdigest() for name in some]
            images = Images(folder=pictures, file_names=some, sha256=digests, sizes=np.full((len(some), 2), 36))
            encode_latents(latents, adapter, images, resolution=32, resize="crop")
            encode_texts(encoded, adapter, texts[part])
            vectors.append(extractor.embed([Image.open(pictures / name) for name in some]).vectors)
        keys = [hashlib.sha256((pictures / name).read_bytes()).hexdigest() for name in names]
        mean = latents.get([latent_key(key, flipped=False) for key in keys])["mean"]
        made.append((mean, encoded.get([text_key(text) for text in texts])["pooled"], np.concatenate(vectors)))
    (mean, pooled, vectors_once), (mean_later, pooled_later, vectors_later) = made
    assert torch.equal(mean, mean_later)
    assert torch.equal(pooled, pooled_later)
    assert np.array_equal(vectors_once, vectors_later)


def test_a_flipped_bit_in_the_memory_of_a_scan_costs_time_only(tmp_path: Path, pictures: Path) -> None:
    records, cache, draw = read_records(pictures, None), tmp_path / "scan.jsonl", random.Random(2)
    first = scan(records, pictures, cache=cache)
    written = cache.read_bytes()
    for _ in range(60):
        content = bytearray(written)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        cache.write_bytes(content)
        again = scan(records, pictures, cache=cache)
        assert again.sha256 == first.sha256
        assert again.sizes.tolist() == first.sizes.tolist()
        assert again.problems == []


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        state = {"step": step}
        checkpoint.save(tmp_path, checkpoint.Snapshot(weights={}, optimizer={}, ema={}, state=state), keep=None)
    assert checkpoint.damaged(tmp_path) == []
    for step in (4, 6):
        path = tmp_path / f"checkpoint-00000{step}" / "state.json"
        path.write_text(path.read_text().replace(str(step), "3"))
    latest = checkpoint.latest_whole(tmp_path)
    assert latest is not None
    assert checkpoint.load(latest).step == 2
    assert [path.name for path in checkpoint.damaged(tmp_path)] == ["checkpoint-000004", "checkpoint-000006"]


def test_a_lora_has_the_same_bytes_each_time_it_is_written(tmp_path: Path, tiny_sd: Path) -> None:
    train = TrainConfig(tuning="lora", rank=2)
    adapter = open_backbone(tiny_sd, device=torch.device("cpu"))
    denoiser = adapter.load_denoiser()
    prepare(denoiser, train, adapter.lora_targets)
    contents = set()
    for number in range(6):  # two keys in a random order agree five times in a row once in 32
        (tmp_path / str(number)).mkdir()
        write_final(adapter, denoiser, tmp_path / str(number), "lora")
        contents.add((tmp_path / str(number) / LORA_FILE).read_bytes())
    assert len(contents) == 1
    layers = load_file(tmp_path / "0" / LORA_FILE)
    assert len(layers) > 0
    assert type(load_final(adapter, tmp_path / "0")).__name__ == "UNet2DConditionModel"


def test_a_flipped_bit_in_an_answer_that_was_paid_for_is_named_by_its_line(tmp_path: Path) -> None:
    path, draw = tmp_path / "descriptions.jsonl", random.Random(3)
    with LineWriter(path) as log:
        log.append(
            Description(key="a", image="1", captioner="hf:x", name="", text="A woman in a garden."),
            Description(key="b", image="2", captioner="hf:x", name="", text="\u00e9t\u00e9"),
        )
    written, whole = path.read_bytes(), read_descriptions(path)
    assert len(whole) == 2
    lines = written.count(b"\n")
    for _ in range(200):
        place = draw.randrange(len(written) - 1)
        content = bytearray(written)
        content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with pytest.raises(PogdiffError, match=rf"descriptions\.jsonl:[1-{lines}]: not") as caught:
            read_descriptions(path)
        assert "Remove the line" in str(caught.value.hint)
