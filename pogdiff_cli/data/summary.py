"""A data set before anything is spent on it: how long its tail is, and what is wrong with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.data.captions import name_end, name_is_cut
from pogdiff_cli.data.records import Records
from pogdiff_cli.data.scan import Scan
from pogdiff_cli.data.shots import GROUPS, shots

_SHOWN = 5  # examples in a warning; the lists themselves are whole


def gini(counts: Sequence[int] | NDArray[np.int64]) -> float:
    """G = sum_ij |c_i - c_j| / (2 m^2 mean c) over m identities: 0 if equal, towards 1 for one giant."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))
    if ordered.sum() == 0:
        return 0.0
    m = len(ordered)
    return float(((2 * np.arange(1, m + 1) - m - 1) * ordered).sum() / (m * ordered.sum()))


def summarise(
    records: Records,
    scan: Scan,
    *,
    few_at_most: int,
    many_at_least: int,
    tokens: Callable[[str], int] | None = None,
    token_limit: int = 77,
    names: Mapping[str, str] | None = None,
    near_duplicates: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """JSON-able facts of usable images, and ``warnings`` in words.

    ``tokens`` counts a text's tokens, special ones included, as the text encoder does; ``names`` maps an
    identity to the name that its captions use (itself by default).
    """
    usable = records.select(scan.ok)
    train = usable.train
    counts = train.counts()
    groups = shots(counts, few_at_most=few_at_most, many_at_least=many_at_least)
    order = sorted(range(len(counts)), key=lambda code: (-counts[code], code))
    facts: dict[str, Any] = {
        "images": len(usable),
        "train_images": len(train),
        "heldout_images": len(usable) - len(train),
        "identities": int((usable.counts() > 0).sum()),
        "counts": [
            {
                "identity": records.identity_names[code],
                "train": int(counts[code]),
                "heldout": int(usable.counts()[code] - counts[code]),
                "group": groups[code],
            }
            for code in order
        ],
        **_imbalance(counts),
        "groups": _group_shares(counts, groups),
        "unreadable": [{"file_name": p.file_name, "reason": p.reason} for p in scan.problems],
        "notes": [{"file_name": n.file_name, "note": n.note} for n in scan.notes],
        "under_two_images": [records.identity_names[code] for code in order if counts[code] < 2],
        **_copies(records, scan),
        "near_duplicates": [list(group) for group in near_duplicates],
        **_caption_facts(usable, tokens, token_limit, names or {}),
    }
    return {**facts, "warnings": _warnings(facts)}


def _imbalance(counts: NDArray[np.int64]) -> dict[str, float | None]:
    """Max c / min c over the identities that have training images, and the Gini coefficient over the same."""
    present = counts[counts > 0]
    if len(present) == 0:
        return {"imbalance_ratio": None, "gini": None}
    return {"imbalance_ratio": float(present.max() / present.min()), "gini": gini(present)}


def _group_shares(counts: NDArray[np.int64], groups: Sequence[str]) -> dict[str, dict[str, float]]:
    total = max(1, int(counts.sum()))
    table: dict[str, dict[str, float]] = {}
    for group in GROUPS:
        members = np.array([found == group for found in groups], dtype=bool)
        images = int(counts[members].sum())
        table[group] = {"identities": int(members.sum()), "images": images, "share": images / total}
    return table


def _copies(records: Records, scan: Scan) -> dict[str, Any]:
    """Files with the same bytes: within the set, between train and held-out, and between identities."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(scan.sha256):
        if scan.ok[row]:
            by_digest[digest].append(row)
    same = [rows for rows in by_digest.values() if len(rows) > 1]

    def files(groups: list[list[int]]) -> list[list[str]]:
        return [[records.file_names[row] for row in rows] for rows in groups]

    return {
        "duplicates": files(same),
        "leakage": files([rows for rows in same if len({bool(records.heldout[row]) for row in rows}) > 1]),
        "shared_between_identities": files([r for r in same if len({int(records.identity[row]) for row in r}) > 1]),
    }


def _caption_facts(
    usable: Records, tokens: Callable[[str], int] | None, limit: int, names: Mapping[str, str]
) -> dict[str, Any]:
    cut, nameless = [], []
    for row, text in enumerate(usable.texts):
        identity = usable.name_of(row)
        name = names.get(identity, identity)
        if text and name_end(text, name) is None:
            nameless.append(usable.file_names[row])
        elif text and tokens is not None and name_is_cut(text, name, tokens, limit):
            cut.append(usable.file_names[row])
    return {
        "empty_captions": [name for name, text in zip(usable.file_names, usable.texts, strict=True) if not text],
        "captions_without_name": nameless,
        "captions_with_name_cut": cut if tokens is not None else None,
    }


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    """What the user should look at, the worst first."""
    kinds = (
        ("leakage", "image(s) in both train and held-out: scores on them prove nothing"),
        ("unreadable", "image(s) cannot be used and are left out"),
        ("shared_between_identities", "image(s) that belong to more than one identity"),
        ("captions_with_name_cut", "caption(s) whose name lies beyond what the text encoder reads"),
        ("under_two_images", "identities with fewer than 2 training images"),
        ("duplicates", "image(s) that are there more than once"),
        ("near_duplicates", "image(s) with near copies"),
    )
    warnings = [f"{len(facts[key])} {words}: {_examples(facts[key])}" for key, words in kinds if facts[key]]
    empty = len(facts["empty_captions"])
    if 0 < empty < facts["images"]:
        warnings.append(f"{empty} of {facts['images']} images have no caption: {_examples(facts['empty_captions'])}")
    if facts["train_images"] == 0:
        warnings.insert(0, "no image is left to train on")
    return warnings


def _examples(items: Sequence[Any]) -> str:
    shown = [_example(item) for item in items[:_SHOWN]]
    return ", ".join(shown) + (", ..." if len(items) > _SHOWN else "")


def _example(item: Any) -> str:
    if isinstance(item, list):
        return " = ".join(item)
    return f"{item['file_name']} ({item['reason']})" if isinstance(item, dict) else str(item)
