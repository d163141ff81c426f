"""``pogdiff sample``: images of every identity, many seeds each; what exists already is kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from pogdiff_cli.data.records import safe_folder
from pogdiff_cli.engine.sampler import ImageRequest, batches, encode_prompts, generate, missing
from pogdiff_cli.engine.tuning import base_dtype, load_final, load_final_text
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import atomic_file, put_away, sweep, write_text
from pogdiff_cli.project.digests import digest_value
from pogdiff_cli.project.layout import Run
from pogdiff_cli.project.lineage import plan_sample
from pogdiff_cli.report.contact_sheet import Row, write_contact_sheet
from pogdiff_cli.report.content import Picture
from pogdiff_cli.stages.caption import read_names
from pogdiff_cli.stages.context import Context, Made, Result, perform
from pogdiff_cli.stages.dataset import groups, load_dataset
from pogdiff_cli.stages.inputs import backbone_folder, input_digests, load_adapter
from pogdiff_cli.stages.preview import sampling_settings

INDEX = "samples.json"
_SHEET_ROWS = 60


def run(context: Context, run: Run) -> Result:
    """Write ``runs/NAME/samples/IDENTITY/SEED.png``, ``samples.json`` and a contact sheet."""
    project = context.project
    if not run.final.is_dir():
        raise PogdiffError(
            f"The run '{run.name}' has no final weights.",
            hint=f"Run 'pogdiff train --name {run.name}' first.",
            exit_code=Exit.MISSING,
        )
    plan = plan_sample(project.config, run.name)
    inputs = input_digests(context, plan, None)
    of = digest_value([inputs["final"], inputs["model"]])
    return perform(
        context,
        plan,
        inputs,
        lambda attempt: _sample(context, run, of),
        hands="all",
        clear=lambda: put_away(run.samples),
    )


def _sample(context: Context, run: Run, of: str) -> Made:
    sample = context.project.config.sample
    if context.world.main:
        for folder in (run.samples, *run.samples.glob("*/")):  # what a killed process was writing
            sweep(folder)
    context.world.together()
    names = read_names(context)
    wanted = _images_wanted(context, list(names))
    settings = sampling_settings(context)
    made_by = [of, asdict(replace(settings, batch_size=0))]
    requests = {
        identity: [
            ImageRequest(
                prompt=sample.prompt.format(name=name),
                noise_key=_noise_key(identity),
                seed=seed,
                path=run.samples / safe_folder(identity) / f"{seed:05d}.png",
                stamp=digest_value([*made_by, identity, name, seed]),
            )
            for seed in range(wanted[identity])
        ]
        for identity, name in names.items()
    }
    everything = [request for group in requests.values() for request in group]
    todo = missing(everything)
    context.world.together()  # all have looked before anyone writes
    shared = context.world.share(batches(everything, settings.batch_size, todo))
    mine = [request for batch in shared for request in batch]
    if mine:
        folder = run.final if (run.final / "model_index.json").is_file() else backbone_folder(context)
        adapter = load_adapter(context, folder)
        adapter.use_text_encoders(load_final_text(adapter, run.final))
        # all of them, so that a prompt's neighbours in its batch, and with them its bits, are always the same
        prompts = encode_prompts(adapter, [request.prompt for request in everything], settings, track=context.track)
        generate(
            adapter,
            load_final(adapter, run.final, dtype=base_dtype(context.project.config.train, adapter.device)),
            mine,
            settings,
            prompts=prompts,
            keep={request.path for request in everything} - {request.path for request in todo},
            track=context.track,
            label=f"Sampling {run.name}",
        )
    context.world.together()
    if not context.world.main:
        return Made()
    index: list[dict[str, Any]] = [
        {
            "identity": identity,
            "name": names[identity],
            "prompt": group[0].prompt,
            "images": [{"seed": r.seed, "file": r.path.relative_to(run.samples).as_posix()} for r in group],
        }
        for identity, group in requests.items()
    ]
    write_text(run.samples / INDEX, json.dumps(index, indent=1, ensure_ascii=False))
    _write_contact_sheet(run, requests, names)
    facts = {"images": len(everything), "generated": len(todo), "kept": len(everything) - len(todo)}
    return Made(facts=facts | {"identities": len(requests), "scheduler": _scheduler_name(context)})


def _scheduler_name(context: Context) -> str:
    """What ``auto`` came to."""
    return type(load_adapter(context).scheduler(context.project.config.sample.scheduler)).__name__


def _images_wanted(context: Context, identities: list[str]) -> dict[str, int]:
    """How many of each identity: the tail may have a number of its own (Sec. 4.1: 500 few-shot, 100 all-shot)."""
    sample = context.project.config.sample
    wanted = dict.fromkeys(identities, sample.images_per_identity)
    if sample.few_images_per_identity is not None:
        dataset = load_dataset(context)
        shots = zip(dataset.records.identity_names, groups(context, dataset), strict=True)
        tail = {identity for identity, shot in shots if shot == "few"}
        wanted |= {identity: sample.few_images_per_identity for identity in identities if identity in tail}
    return wanted


def _write_contact_sheet(run: Run, requests: dict[str, list[ImageRequest]], names: dict[str, str]) -> None:
    rows = [
        Row(
            label=f"{identity} ({names[identity]})",
            pictures=tuple(Picture(source=request.path, seed=request.seed) for request in group),
        )
        for identity, group in list(requests.items())[:_SHEET_ROWS]
    ]
    with atomic_file(run.samples / "contact_sheet.png") as path:
        write_contact_sheet(rows, path)


def _noise_key(identity: str) -> int:
    """The same initial noise for an identity in every run, whatever other identities there are."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big")
