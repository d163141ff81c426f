"""Which adapter a pipeline folder needs, by the class that its model_index.json names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter, FamilyOptions
from pogdiff_cli.models.foreign import read_from
from pogdiff_cli.models.weights import pipeline_index

if TYPE_CHECKING:
    import torch

    from pogdiff_cli.models.backbone import Backbone


def open_backbone(folder: Path, *, device: torch.device, options: FamilyOptions | None = None) -> Adapter:
    """The adapter of a local diffusers folder; a pipeline of another kind is refused by name (exit 4)."""
    with read_from(folder, "pipeline"):
        return family_of(folder)(folder, device=device, options=options)  # type: ignore[return-value]


def family_of(folder: Path) -> type[Backbone]:
    """The family's class."""
    name = str(pipeline_index(folder).get("_class_name", "a pipeline without a name"))
    if name not in _FAMILIES:
        raise PogdiffError(
            f"{folder} is {name}, which pogdiff does not train.",
            hint=f"It trains {', '.join(_FAMILIES)}.",
            exit_code=Exit.MISSING,
        )
    return _FAMILIES[name]()


def _stable_diffusion() -> type[Backbone]:
    from pogdiff_cli.models.stable_diffusion import StableDiffusion

    return StableDiffusion


def _stable_diffusion_xl() -> type[Backbone]:
    from pogdiff_cli.models.stable_diffusion_xl import StableDiffusionXL

    return StableDiffusionXL


def _stable_diffusion_3() -> type[Backbone]:
    from pogdiff_cli.models.stable_diffusion_3 import StableDiffusion3

    return StableDiffusion3


def _flux() -> type[Backbone]:
    from pogdiff_cli.models.flux import Flux

    return Flux


_FAMILIES: dict[str, Callable[[], type[Backbone]]] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
}
