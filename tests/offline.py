"""Runs tests in a network namespace that holds loopback and nothing else (Linux).

python tests/offline.py                        the suite, as ``make test`` chooses it
python tests/offline.py tests/test_endpoint.py  what pytest is told
"""

# ruff: noqa: T201 - a command of its own
from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

_INSIDE = "--inside"
_SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8914, 0x1, 0x40
_ELSEWHERE = (("192.0.2.1", 80), ("2001:db8::1", 80))  # addresses that documentation may use


def main(arguments: Sequence[str]) -> int:
    """Start pytest inside; 2 with a sentence where the system gives no namespace."""
    if arguments[:1] == [_INSIDE]:
        return _inside(list(arguments[1:]))
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    unshare = shutil.which("unshare")
    if unshare is None:
        print("There is no 'unshare' here (util-linux): the tests cannot be run without a network.")
        return 2
    prefix = [unshare, "--net", *root]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        print(f"This system gives no network namespace to this user: {tried.stderr.strip()}")
        print("Type it as root, or allow user namespaces (kernel.unprivileged_userns_clone).")
        return 2
    chosen = list(arguments) or ["-m", "not slow"]
    return subprocess.run([*prefix, sys.executable, __file__, _INSIDE, *chosen], check=False).returncode


def _inside(arguments: list[str]) -> int:
    _raise_loopback()
    for address in _ELSEWHERE:
        reached = _reached(address)
        if reached:
            print(f"This namespace has a way to {address[0]}: {reached}. The tests are not run.")
            return 2
    return os.execv(sys.executable, [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments])


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", _IFF_UP | _IFF_RUNNING)
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)


def _reached(address: tuple[str, int]) -> str:
    """How an address outside answers; "" where there is no way to it."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as line:
        line.settimeout(2)
        number = line.connect_ex(address)
    return "" if number in (errno.ENETUNREACH, errno.EADDRNOTAVAIL) else os.strerror(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
