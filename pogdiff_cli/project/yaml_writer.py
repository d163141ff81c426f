"""Writes YAML that our reader reads back as it was, whatever the text looks like."""

from __future__ import annotations

from typing import Any

import yaml


def dump_yaml(values: Any) -> str:
    """JSON-like values as YAML, in their own order."""
    return yaml.dump(values, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)


class _Plain(yaml.SafeDumper):
    """Dumps without anchors, and quotes text that would be read back as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # a line break of any kind is written as its escape: PyYAML's other styles lose some of them
    style = '"' if _reads_as_something_else(value) or not value.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _reads_as_something_else(value: str) -> bool:
    return value in ("", "~", "null", "true", "false") or value[:1] in "+-.0123456789"


_Plain.add_representer(str, _text)
