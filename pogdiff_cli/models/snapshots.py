"""Models of the hub that are on this machine already: nothing is fetched here, and no library of tensors is loaded."""

from __future__ import annotations

from pathlib import Path

from pogdiff_cli.errors import Exit, PogdiffError


def local_snapshot(spec: str, what: str) -> Path:
    """Where the files of ``hf:ID_OR_DIR[@revision]`` lie; exit 4 and the command that fetches them where they do not.

    ``what`` names the model's part in the message: judge, captioner, extractor.
    """
    body = spec.partition(":")[2].partition("#")[0]
    if Path(body).is_dir():
        return Path(body)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    model, _, revision = body.partition("@")
    try:
        return Path(snapshot_download(model, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, FileNotFoundError):
        asked = f" --revision {revision}" if revision else ""
        raise PogdiffError(
            f"The {what} {model} is not on this machine.",
            hint=f"Run: hf download {model}{asked} --include '*.json' --include '*.txt' --include '*.jinja' "
            "--include '*.model' --include '*.safetensors'",
            exit_code=Exit.MISSING,
        ) from None


def refuse_without_weights(spec: str, what: str) -> None:
    """Exit 4 where the model's folder is not here, or holds no safetensors yet."""
    folder = local_snapshot(spec, what)
    if not any(folder.glob("*.safetensors")):
        body = spec.partition(":")[2].partition("#")[0].partition("@")[0]
        raise PogdiffError(
            f"The {what} in {folder} has no safetensors file (pickled weights are not loaded).",
            hint=f"Run: hf download {body}" if not Path(body).is_dir() else None,
            exit_code=Exit.MISSING,
        )
