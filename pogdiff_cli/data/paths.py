"""File names that come from data stay inside the folder they were given for."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from pathlib import Path

MAX_COMPONENT = 255  # bytes: the limit of the usual file systems
MAX_PATH = 1024
_HASH = 16  # hex digits: names of one script without ASCII all share their slug, and 8 digits meet by chance
_HASHED = re.compile(rf".*-[0-9a-f]{{{_HASH}}}\Z")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])\Z")


class BadPath(ValueError):
    """A file name that cannot be taken; its message completes "file_name ... "."""


def relative_path(file_name: str) -> str:
    """The normal form (``./a//b.png`` -> ``a/b.png``) of a relative POSIX path, or :class:`BadPath`."""
    if not file_name:
        raise BadPath("is empty")
    if not file_name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in file_name):
        raise BadPath("holds a control character")
    if "\\" in file_name:
        raise BadPath("holds a backslash; folders are separated by /")
    if file_name.startswith("/") or re.match(r"[A-Za-z]:", file_name):
        raise BadPath("is absolute; it must be relative to the images folder")
    # as PurePosixPath has it, at a tenth of the time: one name a record
    parts = [part for part in file_name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadPath("leaves the images folder with '..'")
    if not parts:
        raise BadPath("names no file")
    longest = max(map(len, parts)) if file_name.isascii() else max(len(os.fsencode(part)) for part in parts)
    if longest > MAX_COMPONENT or len(os.fsencode(file_name)) > MAX_PATH:
        raise BadPath(f"is too long (at most {MAX_COMPONENT} bytes a component, {MAX_PATH} in all)")
    return "/".join(parts)


class Folder:
    """A root folder and the question whether a relative path is a regular file inside it, links followed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = os.fspath(root)
        self._real = os.path.realpath(root)
        self._inside: dict[str, bool] = {}

    def regular_file(self, relative: str) -> Path:
        """The path of ``relative`` (already in normal form) under the root, or :class:`BadPath`."""
        self.refuse_unless_regular(relative)
        return self.root / relative

    def refuse_unless_regular(self, relative: str) -> None:
        """The same check alone: one a record, so it makes no path objects."""
        path = os.path.join(self._prefix, relative)
        try:
            status = os.stat(path, follow_symlinks=False)
            linked = stat.S_ISLNK(status.st_mode)
            if not self._is_inside(os.path.dirname(path)) or (linked and not self._holds(os.path.realpath(path))):
                raise BadPath("leaves the images folder through a symbolic link")
            if linked:
                status = os.stat(path)
        except OSError as error:
            raise BadPath(_reason(error)) from error
        if not stat.S_ISREG(status.st_mode):
            raise BadPath("is not a regular file")

    def something_at(self, relative: str) -> bool:
        """Whether there is anything of that name, be it a broken link."""
        return os.path.lexists(os.path.join(self._prefix, relative))

    def _is_inside(self, folder: str) -> bool:
        # one resolution a folder, not one a file: ten million files lie in a few thousand folders
        if folder not in self._inside:
            self._inside[folder] = self._holds(os.path.realpath(folder))
        return self._inside[folder]

    def _holds(self, real: str) -> bool:
        return real == self._real or real.startswith(self._real.rstrip(os.sep) + os.sep)


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "does not exist"
    return f"cannot be reached: {error.strerror or error}"


def safe_folder(identity: str) -> str:
    """The identity itself where it is a safe folder name, else a slug and 16 hex digits of its SHA-256.

    Different identities get different folders; the name has neither separators nor leading dots nor more than
    64 characters.
    """
    ascii_form = unicodedata.normalize("NFKD", identity).encode("ascii", "ignore").decode("ascii")
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", ascii_form).strip("-._")[:47].strip("-._")
    # a name that already ends as a hashed one does would let two identities meet
    if slug and slug == identity and not _RESERVED.match(slug.split(".")[0]) and not _HASHED.match(slug):
        return identity
    if _RESERVED.match(slug.split(".")[0]):  # what follows a dot does not free such a name
        slug = slug.replace(".", "-")
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    return f"{slug or 'identity'}-{digest}"
