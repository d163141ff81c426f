"""Result files: numbers with the machine, versions and command behind them, and the table that lists them."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ratios import Figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "faiss-cpu", "numpy", "pillow", "safetensors")


def machine() -> dict[str, Any]:
    """The processor, its memory and the GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(value, 2) for value in os.getloadavg()],
    }
    import torch

    found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found


def versions() -> dict[str, str]:
    """Python and the packages that decide how fast a step is."""
    found = {"python": platform.python_version()}
    for package in ("pogdiff", *_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    from pogdiff_cli import __version__

    return found | {"pogdiff": __version__}


def write(name: str, *, title: str, figures: Sequence[Figure], details: dict[str, Any], folder: Path = RESULTS) -> Path:
    """``NAME.json`` in the results folder, and its table made anew."""
    command = ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
    threads = os.environ.get("OMP_NUM_THREADS")
    content = {
        "title": title,
        "command": (f"OMP_NUM_THREADS={threads} " if threads else "") + shlex.join(command),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": versions(),
        "figures": [figure.as_json() for figure in figures],
        "details": details,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_table(folder)
    return path


def write_table(folder: Path = RESULTS) -> Path:
    """Put a table of every result between the marks in ``README.md``; what stands around them stays."""
    page = folder / "README.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# Results\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    sections = [_section(path, content) for path, content in found if "figures" in content]
    page.write_text(f"{before}{BEGIN}\n\n{''.join(sections)}{END}{after}", encoding="utf-8")
    return page


def _section(path: Path, content: dict[str, Any]) -> str:
    there = content["machine"]
    where = ", ".join([f"{there['cpu']}, {there['cores']} cores, {there['memory_gib']:g} GiB", *there["gpus"]])
    versions = content["versions"]
    packages = ", ".join(f"{package} {versions[package]}" for package in ("torch", "diffusers") if package in versions)
    lines = [
        f"### {content['title']}",
        "",
        f"`{content['command']}`",
        "",
        f"{content['date']}; {where}; {packages}. Every pair: [{path.name}]({path.name}).",
        "",
        "| figure | median | min to max | pairs | target |",
        "|---|---|---|---|---|",
        *(_row(figure) for figure in content["figures"]),
        "",
    ]
    return "\n".join(lines) + "\n"


def _row(figure: dict[str, Any]) -> str:
    median, low, high = (f"{figure[key]:.3g}" for key in ("median", "min", "max"))
    target = "" if figure["target"] is None else f"{figure['target']}: {'met' if figure['met'] else 'missed'}"
    return f"| {figure['what']} | {median} | {low} to {high} | {len(figure['pairs'])} | {target} |"


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(write_table())
