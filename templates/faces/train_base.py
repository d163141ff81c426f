"""Trains the base model of the faces template from nothing: `python templates/faces/train_base.py`.

Stages, each skipped when its result is in the work folder, each resumed where it was interrupted:
    assets   fetch the wheels of assets.yaml, check their digests, draw the pseudo-people
    vae      closed-form encoder, trained decoder
    unet     text encoder and denoiser together, then the denoiser alone with the text encoder frozen
    judge    PSNR, identity AUC, identity accuracy; contact sheet; provenance
The result is the diffusers folder templates/faces/base. Two CPU cores need about an hour and a half.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training import assets, stages


def main() -> None:
    """Parses the command line and runs the stages asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=assets.default_cache(), help="folder of the asset wheels")
    parser.add_argument(
        "--work", type=Path, default=None, help="folder of intermediate results (default: CACHE/train_base)"
    )
    parser.add_argument("--out", type=Path, default=assets.TEMPLATE / "base", help="the diffusers folder to write")
    parser.add_argument("--stages", default="assets,vae,unet,judge", help="comma-separated, in order")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of stages.py"
    )
    options = parser.parse_args()
    work = options.work or options.cache / "train_base"
    work.mkdir(parents=True, exist_ok=True)
    settings = stages.Settings.parse(options.set)
    for name in options.stages.split(","):
        stages.RUN[name](settings, options.cache, work, options.out)


if __name__ == "__main__":
    main()
