"""Writes world.jsonl and data/metadata.jsonl: what can be said about each photograph.

Pose, mouth, eyes, tilt, distance and light are computed from dlib's 68 landmarks and grey levels; glasses and beards
are facts read from the photographs by eye (the tables below). Left and right are the viewer's.
Run: python templates/faces/describe.py [--cache FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from training import assets, photos

SEED = 20  # which people are heads, and which photographs they train on
HEADS, HEAD_SHOTS, TAIL_SHOTS = 10, 8, 2
UPSAMPLED = 5  # dlib's detector wants larger faces than 92x112

EVERY = tuple(range(1, 11))
GLASSES: dict[int, tuple[int, ...]] = {
    2: EVERY,
    4: (1, 2, 3, 8, 9),
    6: EVERY,
    7: (4, 5, 10),
    13: (1, 2, 5, 6, 7, 8, 9, 10),
    14: EVERY,
    17: (1, 2, 5, 6, 7, 8, 9, 10),
    19: (1, 2, 3, 6, 10),
    20: (1, 2, 3, 5, 7, 8, 9, 10),
    27: EVERY,
    28: EVERY,
    31: EVERY,
    34: EVERY,
    36: (9, 10),
    37: EVERY,
}
BEARD = {
    7: "with a short beard",
    11: "with a beard",
    14: "with a beard",
    17: "with a goatee",
    25: "with a moustache",
    26: "with a full beard",
    28: "with a full beard",
    37: "with a full beard",
}


def landmarks(photo: Image.Image, detector: Any, predictor: Any) -> NDArray[np.float64]:
    """(68, 2) landmark positions in the pixels of the 92x112 photograph."""
    import dlib

    width, height = photo.size
    pad = 20  # faces touch the frame
    grey = np.pad(np.asarray(photo), pad, mode="edge")
    large = np.asarray(
        Image.fromarray(grey).resize([UPSAMPLED * n for n in grey.shape[::-1]], Image.Resampling.BICUBIC)
    )
    found, scores, _ = detector.run(large, 0, -0.5)
    box = (
        found[int(np.argmax(scores))]
        if found
        else dlib.rectangle(
            *[int(UPSAMPLED * (pad + v)) for v in (0.05 * width, 0.25 * height, 0.95 * width, 0.98 * height)]
        )
    )
    shape = predictor(large, box)
    return np.array([[p.x, p.y] for p in shape.parts()]) / UPSAMPLED - pad


def measures(points: NDArray[np.float64], photo: Image.Image) -> dict[str, float]:
    """Numbers behind the words: yaw, pitch, smile, gap, eye opening, tilt, eye distance, light."""
    left, right = points[36:42].mean(0), points[42:48].mean(0)
    across = right - left
    span = float(np.linalg.norm(across))
    frame = np.array([across / span, [-across[1] / span, across[0] / span]])  # along the eyes, down the face
    p = (points - (left + right) / 2) @ frame.T / span
    opening = np.mean([p[41, 1] - p[37, 1], p[40, 1] - p[38, 1], p[47, 1] - p[43, 1], p[46, 1] - p[44, 1]])
    grey = np.asarray(photo, dtype=np.float64)
    return {
        "yaw": float(p[30, 0] - (p[36, 0] + p[45, 0]) / 2),
        "pitch": float(p[33, 1]),
        "width": float(p[54, 0] - p[48, 0]),
        "lift": float((p[62, 1] + p[66, 1]) / 2 - (p[48, 1] + p[54, 1]) / 2),
        "gap": float(p[66, 1] - p[62, 1]),
        "eyes": float(opening),
        "tilt": float(np.degrees(np.arctan2(across[1], across[0]))),
        "span": span,
        "light": float(np.median(grey[40:90, 20:72])),
    }


def pose(yaw: float, pitch: float) -> str:
    """Where the head points; pitch is relative to the person's median."""
    side = "left" if yaw < 0 else "right"
    if abs(yaw) > 0.2:
        return f"turned to the {side}"
    if pitch < -0.045:
        return "looking up"
    if pitch > 0.05:
        return "looking down"
    return f"looking slightly {side}" if abs(yaw) > 0.07 else "looking straight ahead"


def mouth(width: float, lift: float, gap: float) -> str:
    """Lips: corners above the middle in a wide mouth make a smile."""
    if lift > 0.06 and width > 0.86:
        return "smiling broadly" if gap > 0.08 else "smiling"
    return "with an open mouth" if gap > 0.08 else "with closed lips"


def tilt(degrees: float) -> str:
    """Roll of the head; dlib sees an upright one at 0.75 degrees."""
    degrees -= 0.75
    return "head upright" if abs(degrees) < 3.5 else f"head tilted {'left' if degrees < 0 else 'right'}"


def framing(difference: float) -> str:
    """How large the face is, by the distance between the eyes in pixels, against the person's own median."""
    return (
        "seen from close up" if difference > 1 else "seen from further away" if difference < -1 else "seen from nearby"
    )


def light(difference: float) -> str:
    """Brightness against the person's own median, so that skin does not count as light."""
    return "in bright light" if difference > 5 else "in dim light" if difference < -5 else "in even light"


def words(person: int, rows: list[dict[str, float]]) -> list[dict[str, str]]:
    """Ten rows of measures of one person -> ten rows of attributes."""
    middle = {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
    out = []
    for shot, row in zip(EVERY, rows, strict=True):
        shut = row["eyes"] < min(0.08, 0.65 * middle["eyes"])
        out.append(
            {
                "pose": pose(row["yaw"], row["pitch"] - middle["pitch"]),
                "mouth": mouth(row["width"], row["lift"], row["gap"]),
                "eyes": "with closed eyes" if shut else "with open eyes",
                "glasses": "with glasses" if shot in GLASSES.get(person, ()) else "without glasses",
                "beard": BEARD.get(person, "without a beard"),
                "tilt": tilt(row["tilt"]),
                "framing": framing(row["span"] - middle["span"]),
                "light": light(row["light"] - middle["light"]),
            }
        )
    return out


def splits(draw: np.random.Generator) -> dict[tuple[int, int], str]:
    """(person, shot) -> train or heldout for s21-s40."""
    heads = set(draw.permutation(np.array(photos.NEW))[:HEADS].tolist())
    split = {}
    for person in photos.NEW:
        kept = set(draw.permutation(10)[: HEAD_SHOTS if person in heads else TAIL_SHOTS].tolist())
        split.update({(person, shot): "train" if shot - 1 in kept else "heldout" for shot in EVERY})
    return split


def main() -> None:
    """Describes all photographs and writes the two files."""
    import dlib

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=assets.default_cache(), help="folder of the asset wheels")
    cache = parser.parse_args().cache
    detector = dlib.get_frontal_face_detector()
    predictor = dlib.shape_predictor(str(assets.member("dlib_landmarks", cache)))
    split = splits(np.random.default_rng(SEED))
    for people, path in ((photos.WORLD, "world.jsonl"), (photos.NEW, "data/metadata.jsonl")):
        lines = []
        for person in people:
            shots = [photos.photograph(person, shot, cache) for shot in EVERY]
            rows = [measures(landmarks(photo, detector, predictor), photo) for photo in shots]
            for shot, attributes in zip(EVERY, words(person, rows), strict=True):
                line = {"file_name": f"s{person}/{shot}.png", "identity": f"s{person}"}
                if (person, shot) in split:
                    line["split"] = split[person, shot]
                lines.append(json.dumps(line | attributes))
        (assets.TEMPLATE / path).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
