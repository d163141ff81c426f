"""Files of models come from elsewhere: whatever a library raises over them is said as a fault of the files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pogdiff_cli.errors import Exit, PogdiffError


@contextmanager
def read_from(place: Path | str, what: str, *, hint: str = "Fetch it again.") -> Iterator[None]:
    """Turn any failure to read ``what`` into exit 4 with the place; a lack of memory stays what it is."""
    try:
        yield
    except (PogdiffError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise PogdiffError(
            f"The {what} in {place} cannot be loaded: {reason}.", hint=hint, exit_code=Exit.MISSING
        ) from error


def refuse_adapter(folder: Path, what: str) -> None:
    """Transformers would load an adapter that lies beside the weights, from a pickle too, over a base it names."""
    if (folder / "adapter_config.json").is_file():
        raise PogdiffError(
            f"The {what} in {folder} brings an adapter (adapter_config.json); whole models alone are loaded.",
            hint="Merge the adapter into the model, or remove that file.",
            exit_code=Exit.MISSING,
        )
