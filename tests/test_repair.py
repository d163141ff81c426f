"""``doctor --repair``: every kind of damage is found, what can be made again is, and the user's own stays as it is."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import finished
import pytest
from finished import pogdiff
from test_crash_points import CRASHED, in_child, watched

from pogdiff_cli.data import scan
from pogdiff_cli.errors import Exit
from pogdiff_cli.project.digests import digest_value
from pogdiff_cli.project.locks import project_lock
from pogdiff_cli.project.manifest import read_manifest, write_manifest

PAID = "artifacts/descriptions.jsonl"
JUDGED = "runs/pogdiff/evaluation/judge.jsonl"


@pytest.fixture
def root(finished_project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_project, tmp_path / "p", symlinks=True))


@pytest.fixture
def begun(root: Path) -> Path:
    """The same before training: small, for what is repeated many times."""
    for folder in ("runs", "artifacts/receipts/runs", "artifacts/cache/text"):
        shutil.rmtree(root / folder)
    manifest = read_manifest(root / "manifest.yaml")
    manifest.runs.clear()
    write_manifest(root / "manifest.yaml", manifest)
    return root


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff{[\n" * 40)


def the(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def tree(root: Path) -> dict[str, bytes]:
    """Every file but the program's memory and locks."""
    found = (path for path in root.rglob("*") if path.is_file() and "artifacts/cache/" not in path.as_posix())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def repair(root: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status, and each finding by its path."""
    outcome = pogdiff("doctor", "--repair", "-C", root, "--json", *options)
    assert outcome.out, outcome.err
    return outcome.status, {finding["path"]: finding for finding in json.loads(outcome.out)["findings"]}


def stale(root: Path) -> set[str]:
    stages = json.loads(pogdiff("status", "-C", root, "--json").out)["stages"]
    return {stage["key"].rsplit("/", 1)[-1] for stage in stages if not stage["fresh"]}


def states_of_a_run(root: Path) -> dict[str, str]:
    outcome = pogdiff("run", "-C", root, "--json")
    assert outcome.status == 0, outcome.err
    return {stage["key"]: stage["state"] for stage in json.loads(outcome.out)["stages"]}


def test_of_a_whole_project_nothing_is_said_and_nothing_touched(root: Path) -> None:
    before = tree(root)
    assert repair(root) == (0, {})
    assert tree(root) == before
    said = pogdiff("doctor", "-C", root)
    assert said.status == 0
    assert "10 artifacts are as the manifest records them" in said.out


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "artifacts/index/embeddings.npy": (flip, "artifacts/index"),
    "artifacts/density/vae.safetensors": (truncate, "artifacts/density"),
    "runs/*/final/unet/*.safetensors": (flip, "runs/pogdiff/final"),
    "runs/*/samples/Ada*/00001.png": (truncate, "runs/pogdiff/samples"),
    "runs/*/samples/Alan*/00000.png": (Path.unlink, "runs/pogdiff/samples"),
    "runs/*/evaluation/scores.json": (flip, "runs/pogdiff/evaluation/scores.json"),
    "runs/*/checkpoints/checkpoint-000004/ema.safetensors": (Path.unlink, "runs/pogdiff/checkpoints/checkpoint-000004"),
    "runs/*/checkpoints/checkpoint-000002/digests.json": (garbage, "runs/pogdiff/checkpoints/checkpoint-000002"),
    "runs/*/exposure.json": (truncate, "runs/pogdiff/exposure.json"),
    "runs/*/config.resolved.yaml": (garbage, "runs/pogdiff/config.resolved.yaml"),
    "artifacts/names.yaml": (garbage, "artifacts/names.yaml"),
    "artifacts/captions.jsonl": (garbage, "artifacts/captions.jsonl"),
    "manifest.yaml": (truncate, "manifest.yaml"),
    "report.html": (truncate, "report.html"),
}


def test_all_at_once_is_found_at_a_glance_repaired_and_made_again_as_it_was(root: Path) -> None:
    whole = tree(root)
    for pattern, (harm, _) in DAMAGE.items():
        harm(the(root, pattern))
    shard = the(root, "artifacts/cache/latents/*/*.safetensors")
    flip(shard)
    damaged = tree(root)
    names = {name for _, name in DAMAGE.values()}

    seen = pogdiff("doctor", "-C", root, "--json")
    assert seen.status == Exit.MISSING
    checks = {check["name"] for check in json.loads(seen.out)["checks"] if check["state"] in ("damaged", "missing")}
    assert checks >= names
    status, planned = repair(root, "--dry-run")
    assert status == Exit.MISSING
    assert tree(root) == damaged
    assert not (root / "set-aside").exists()

    status, found = repair(root)
    assert status == 0
    assert set(found) == set(planned) == names | {shard.relative_to(root).as_posix()}
    assert "1 of 14 tensors" in found[shard.relative_to(root).as_posix()]["detail"]
    assert "Ada-Lovelace" in found["runs/pogdiff/samples"]["detail"]
    aside = the(root, "set-aside/*")
    kept = {name for name in damaged if (aside / name).is_file()}
    assert {name: (aside / name).read_bytes() for name in kept} == {name: damaged[name] for name in kept}
    assert {name for name in damaged if not (root / name).is_file()} <= kept  # nothing is lost

    states = states_of_a_run(root)
    assert states["index"] == "done"
    again = tree(root)
    same = [name for name in whole if name.startswith(("artifacts/captions", "artifacts/names", "artifacts/index"))]
    same += [name for name in whole if "/final/" in name or "/samples/" in name or name.startswith("artifacts/density")]
    assert len(same) > 20
    assert [name for name in same if again[name] != whole[name]] == []
    assert stale(root) == set()
    assert repair(root) == (0, {})


def cut_after_its_first_stage(path: Path) -> None:
    """What is left can be read."""
    text = path.read_text()
    path.write_text(text[: text.index("  index:\n")])


@pytest.mark.parametrize("harm", [truncate, garbage, Path.unlink, cut_after_its_first_stage])
def test_a_lost_manifest_is_made_again_from_receipts_and_nothing_has_to_be_done_twice(
    root: Path, harm: Callable[[Path], None]
) -> None:
    before = read_manifest(root / "manifest.yaml")
    harm(root / "manifest.yaml")
    status, found = repair(root)
    assert (status, found["manifest.yaml"]["done"]) == (0, "made again")
    after = read_manifest(root / "manifest.yaml")
    assert (after.stages, after.runs, after.devices) == (before.stages, before.runs, before.devices)
    assert stale(root) == set()


def test_what_no_receipt_vouches_for_is_stale_and_nothing_else(root: Path) -> None:
    (root / "manifest.yaml").unlink()
    flip(root / "artifacts/receipts/fit-density.json")
    flip(root / "artifacts/index/neighbours.npy")
    status, found = repair(root)
    assert (status, found["artifacts/index"]["done"]) == (0, "set aside")
    states = states_of_a_run(root)
    assert {key for key, state in states.items() if state == "done"} == {"index", "fit-density", "report"}


@pytest.mark.parametrize("whole", [True, False])
def test_a_manifest_from_a_newer_version_is_never_touched(begun: Path, whole: bool) -> None:
    path = begun / "manifest.yaml"
    text = path.read_text().replace("schema_version: 1", "schema_version: 7")
    path.write_text(text if whole else text[: len(text) // 2] + "\n  - [")
    before = tree(begun)
    for options in ((), ("--dry-run",)):
        outcome = pogdiff("doctor", "--repair", "-C", begun, *options)
        assert outcome.status in (Exit.FAILURE, Exit.USAGE)
    assert tree(begun) == before
    assert pogdiff("doctor", "-C", begun).status == Exit.MISSING


@pytest.mark.parametrize("told_by", ["captions", "samples", "the seed"])
@pytest.mark.parametrize("harm", [Path.unlink, garbage])
def test_names_are_derived_to_the_last_byte(root: Path, harm: Callable[[Path], None], told_by: str) -> None:
    names = root / "artifacts/names.yaml"
    before = names.read_bytes()
    harm(names)
    if told_by != "captions":
        (root / "artifacts/captions.jsonl").unlink()
    if told_by == "the seed":
        shutil.rmtree(root / "runs/pogdiff/samples")
    status, found = repair(root)
    assert (status, found["artifacts/names.yaml"]["done"]) == (0, "made again")
    assert names.read_bytes() == before


def test_names_that_runs_were_trained_with_come_back_although_the_seed_says_others(root: Path) -> None:
    names = root / "artifacts/names.yaml"
    before = names.read_bytes()
    names.unlink()
    (root / "manifest.yaml").unlink()
    shutil.rmtree(root / "artifacts/receipts")
    finished.configure(root, "seed=5")
    status, found = repair(root)
    assert (status, found["artifacts/names.yaml"]["state"]) == (0, "missing")
    assert names.read_bytes() == before


def test_where_nothing_tells_the_names_that_is_said_and_none_are_made_up(begun: Path) -> None:
    for name in ("names.yaml", "captions.jsonl"):
        (begun / "artifacts" / name).unlink()
    finished.configure(begun, "seed=5")
    status, found = repair(begun)
    assert status == Exit.MISSING
    assert "restore it" in found["artifacts/names.yaml"]["advice"]
    assert not (begun / "artifacts/names.yaml").exists()


def test_what_the_user_made_is_left_to_the_last_byte_and_named_where_it_is_damaged(root: Path) -> None:
    evaluation = root / "runs/pogdiff/evaluation"
    answer = json.dumps({"key": "k", "image": "i", "captioner": "openai:x", "name": "", "text": "a man"}) + "\n"
    (root / PAID).write_text(answer + "{torn}\n" + answer)
    (root / JUDGED).write_text("not an answer\n")
    (evaluation / "human.json").write_text('{"ratings": 1}')
    manifest = read_manifest(root / "manifest.yaml")
    rated = manifest.runs["pogdiff"]["evaluate"].model_copy(
        update={"outputs": {"runs/pogdiff/evaluation/human.json": "sha256:other"}}
    )
    manifest.runs["pogdiff"]["rate"] = rated
    write_manifest(root / "manifest.yaml", manifest)
    names = root / "artifacts/names.yaml"
    first = names.read_text().splitlines()[1].partition(": ")
    names.write_text(names.read_text().replace(first[2], "Wanda"))  # by hand
    captions = root / "artifacts/captions.jsonl"
    captions.write_text(captions.read_text().replace("photo", "picture").replace("image", "picture"))
    garbage(the(root, "data/images/*/*.png"))
    (root / "notes.txt").write_text("mine")
    (root / "runs/pogdiff/samples/mine.txt").write_text("mine")
    before = tree(root)
    status, found = repair(root)
    assert status == Exit.MISSING
    assert {name for name, finding in found.items() if finding["remains"]} == {
        PAID,
        JUDGED,
        "runs/pogdiff/evaluation/human.json",
    }
    assert "Wanda" in found["artifacts/names.yaml"]["detail"]
    assert "mine.txt" in found["runs/pogdiff/samples"]["detail"]
    assert "line 2" in found[PAID]["detail"]
    assert tree(root) == before


def test_captions_that_were_paid_for_are_copied_before_a_stage_without_a_record_replaces_them(begun: Path) -> None:
    captions = begun / "artifacts/captions.jsonl"
    captions.write_text(captions.read_text().replace('"template"', '"openai:x"'))
    (begun / "manifest.yaml").unlink()
    shutil.rmtree(begun / "artifacts/receipts")
    status, found = repair(begun)
    assert (status, found["artifacts/captions.jsonl"]["done"]) == (0, "copied")
    assert the(begun, "set-aside/*/artifacts/captions.jsonl").read_bytes() == captions.read_bytes()


def test_a_link_is_not_followed_and_not_moved(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(root / "artifacts/index", elsewhere)
    (root / "artifacts/index").symlink_to(elsewhere)
    flip(elsewhere / "embeddings.npy")
    before = tree(elsewhere)
    _, found = repair(root)
    assert found["artifacts/index"]["done"] == "left alone"
    assert (root / "artifacts/index").is_symlink()
    assert tree(elsewhere) == before


def test_a_bit_that_turned_although_size_and_time_are_the_same_is_found_and_then_known(root: Path) -> None:
    file = root / "artifacts/density/log_density.npy"
    memory = root / "artifacts/cache/digests.json"
    assert stale(root) == set()
    pogdiff("doctor", "-C", root)  # remembers digests under this path
    flip(file)
    known = json.loads(memory.read_text())["known"]
    status = file.stat()
    known[str(file)][:-1] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    memory.write_text(json.dumps({"digest": digest_value(known), "known": known}))  # as if nothing had been written
    assert stale(root) == set()
    assert repair(root, "--dry-run")[0] == Exit.MISSING
    assert repair(root)[1]["artifacts/density"]["done"] == "set aside"
    assert "fit-density" in stale(root)


def test_a_glance_at_a_checkpoint_sees_its_length_and_a_repair_every_bit(root: Path) -> None:
    weights = root / "runs/pogdiff/checkpoints/checkpoint-000002/weights.safetensors"
    optimizer = root / "runs/pogdiff/checkpoints/checkpoint-000004/optimizer.safetensors"
    flip(weights)
    os.truncate(optimizer, optimizer.stat().st_size - 1)
    seen = pogdiff("doctor", "-C", root).out
    assert "checkpoint-000004" in seen
    assert "checkpoint-000002" not in seen
    status, found = repair(root)
    assert status == 0
    assert found["runs/pogdiff/checkpoints/checkpoint-000002"]["detail"] == "not as written: weights.safetensors"
    assert list((root / "runs/pogdiff/checkpoints").iterdir()) == []


def test_a_log_that_was_changed_is_said_and_left_alone(root: Path) -> None:
    log = root / "runs/pogdiff/metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 99}\n')
    before = tree(root)
    status, found = repair(root)
    assert (status, set(found)) == (0, {"runs/pogdiff/metrics.jsonl"})
    assert tree(root) == before


def test_an_image_whose_bytes_turned_at_the_same_size_and_time_is_named_and_left_alone(begun: Path) -> None:
    image = the(begun, "data/images/*/*.png")
    pogdiff("status", "-C", begun)  # remembers images where they lie
    memory = begun / "artifacts/cache/scan.jsonl"
    entry = scan._read_cache(memory)[image.relative_to(begun / "data/images").as_posix()]
    flip(image)
    # a disk that loses a bit changes no time; here the memory is told of the new time instead
    memory.write_text(dataclasses.replace(entry, state=scan.state_of(image)).line())
    before = image.read_bytes()
    code, found = repair(begun)
    name = image.relative_to(begun).as_posix()
    assert (code, found[name]["done"]) == (Exit.MISSING, "left alone")
    assert image.read_bytes() == before


def test_stages_of_before_get_the_receipts_that_they_lack_where_their_outputs_hold(begun: Path) -> None:
    receipts = tree(begun / "artifacts/receipts")
    shutil.rmtree(begun / "artifacts/receipts")
    flip(begun / "artifacts/density/vae.safetensors")
    assert "receipts" not in pogdiff("doctor", "-C", begun).out
    status, found = repair(begun)
    assert (status, found["artifacts/receipts/index.json"]["done"]) == (0, "written")
    del receipts["fit-density.json"]
    assert tree(begun / "artifacts/receipts") == receipts


def test_a_key_that_names_no_stage_leads_nowhere(begun: Path) -> None:
    manifest = read_manifest(begun / "manifest.yaml")
    manifest.runs["../../../outside"] = {"train": manifest.stages["index"]}
    write_manifest(begun / "manifest.yaml", manifest)
    _, found = repair(begun)
    assert "names no stage" in found["manifest.yaml"]["detail"]
    assert not (begun.parent / "outside").exists()


def test_what_killed_processes_left_is_set_aside_and_their_stages_are_marked(begun: Path) -> None:
    left = [
        "artifacts/.partial-a/old/x",
        "runs/r/checkpoints/.partial-b/weights.safetensors",
        "artifacts/cache/scratch/index/embeddings.npy",
        "artifacts/cache/locks/index.holder.json",
    ]
    for name in left:
        (begun / name).parent.mkdir(parents=True, exist_ok=True)
        (begun / name).write_text("{}")
    manifest = read_manifest(begun / "manifest.yaml")
    manifest.stages["index"].state, manifest.stages["index"].holder = "running", "process 1 on nowhere"
    write_manifest(begun / "manifest.yaml", manifest)
    status, found = repair(begun)
    assert status == 0
    assert found["runs/r/checkpoints/.partial-b"]["detail"] == "a half-written checkpoint"
    assert (found["index"]["state"], found["index"]["done"]) == ("interrupted", "marked as not finished")
    assert [name for name in left if (begun / name).exists()] == []
    assert len([name for name in left if (the(begun, "set-aside/*") / name).exists()]) == len(left)
    assert read_manifest(begun / "manifest.yaml").stages["index"].state == "failed"
    assert repair(begun) == (0, {})


HOLDER = """
import sys, time
from pathlib import Path
from pogdiff_cli.project.locks import locked, project_lock
folder = Path(sys.argv[1])
with project_lock(folder, "pogdiff train", mode="shared"), locked(folder / "x.lock", "x", "pogdiff train --name slow"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def training(begun: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process with the locks of a stage."""
    locks = begun / "artifacts/cache/locks"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(locks)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_run_that_is_going_on_is_respected_until_its_process_is_gone(
    begun: Path, training: subprocess.Popen[str]
) -> None:
    flip(begun / "artifacts/index/neighbours.npy")
    (begun / "artifacts/.partial-a").mkdir()
    before = tree(begun)
    refused = pogdiff("doctor", "--repair", "-C", begun)
    assert refused.status == Exit.LOCKED
    assert f"process {training.pid}" in refused.err
    assert "pogdiff train --name slow" in refused.err
    assert tree(begun) == before
    seen = pogdiff("doctor", "-C", begun)
    assert "another command is at work" in seen.out
    assert ".partial-a" not in seen.out
    training.send_signal(signal.SIGKILL)
    training.wait()
    assert repair(begun)[0] == 0


def test_no_stage_starts_during_a_repair(begun: Path) -> None:
    with project_lock(begun / "artifacts/cache/locks", "pogdiff doctor --repair", mode="alone"):
        refused = pogdiff("caption", "--force", "-C", begun)
    assert refused.status == Exit.LOCKED
    assert "pogdiff doctor --repair" in refused.err
    assert pogdiff("caption", "--force", "-C", begun).status == 0


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_repair_that_is_killed_at_any_moment_is_completed_by_the_next(begun: Path, tmp_path: Path, step: int) -> None:
    whole, facts = tree(begun), read_manifest(begun / "manifest.yaml")
    for name in ("artifacts/names.yaml", "artifacts/index/index.json", "manifest.yaml"):
        truncate(begun / name)
    damaged = tree(begun)
    crashes = 0
    for moment in range(0, 10_000, step):
        root = Path(shutil.copytree(begun, tmp_path / "copies" / str(moment) / "p"))
        if crash_at(root, moment) == 0:
            break
        crashes += 1
        content = set(tree(root).values())
        assert [name for name, before in damaged.items() if before not in content] == []  # nothing is lost
        assert repair(root)[0] == 0
        mended = tree(root)
        assert mended["artifacts/names.yaml"] == whole["artifacts/names.yaml"]
        assert read_manifest(root / "manifest.yaml") == facts
        shutil.rmtree(root)
    assert crashes * step > 30


def crash_at(root: Path, moment: int) -> int:
    def work() -> None:
        seen = iter(range(10_000))

        def happened(name: str, path: str, when: str) -> None:
            del name, path, when
            if next(seen) == moment:
                os._exit(CRASHED)

        watched(happened)
        assert pogdiff("doctor", "--repair", "-C", root).status == 0

    return in_child(work)


def test_a_project_without_its_settings_says_where_they_can_be_found(root: Path) -> None:
    (root / "pogdiff.yaml").unlink()
    outcome = pogdiff("doctor", "--repair", "-C", root)
    assert outcome.status == Exit.USAGE
    assert "has lost its pogdiff.yaml" in outcome.err
    assert "config.resolved.yaml" in outcome.err


def test_a_run_whose_folder_somebody_deleted_is_no_damage_and_does_not_come_back(root: Path) -> None:
    shutil.rmtree(root / "runs/pogdiff")
    status, found = repair(root)
    assert status == 0
    assert {finding["state"] for finding in found.values()} == {"changed"}
    assert pogdiff("doctor", "-C", root).status == 0
    (root / "manifest.yaml").unlink()
    repair(root)
    assert read_manifest(root / "manifest.yaml").runs == {}


def test_a_dry_run_belongs_to_a_repair(begun: Path) -> None:
    refused = pogdiff("doctor", "--dry-run", "-C", begun)
    assert refused.status == Exit.USAGE
