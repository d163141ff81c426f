"""Text from elsewhere on a terminal: what would steer it is shown as its escape and does nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

# C0 (but for line feed and tab), DEL and C1, which hold ESC and CSI; lone surrogates; what turns the order of reading
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def inert(text: str) -> str:
    r"""``a\x1b[31m`` with the escape written out; a carriage return before a line feed is only the end of a line."""
    return _STEERS.sub(_written, text.replace("\r\n", "\n"))


def inert_json(text: str) -> str:
    """The same for JSON, which stays JSON: only inside its strings can such a character stand."""
    return _STEERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _written(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


class InertConsole(Console):
    """A console on which only rich's own codes reach the terminal: every text it is given passes here."""

    def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
        """Segments as rich makes them; those that are text without what steers."""
        for segment in super().render(*args, **kwargs):
            if segment.control or not _STEERS.search(segment.text):
                yield segment
            else:
                yield Segment(inert(segment.text), segment.style)
