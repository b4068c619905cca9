"""What a process does while it reads files: memory, what it opens for writing or runs, and whether it ends."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HANGS_AFTER_SECONDS = 3
"""After this a load is broken off, so that one that hangs does not hang the test."""


def contents(folder: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of everything in it."""
    found = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            status = os.lstat(Path(parent) / name)
            found.append((f"{parent}/{name}", status.st_size, status.st_mtime_ns))
    return sorted(found)


def memory(field: str) -> int:
    """A line of `/proc/self/status`, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def start_of_memory() -> int | None:
    """What the process holds now, with its high-water mark reset; `None` where the system has no such thing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else the load would be given what earlier ones have freed, unseen
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return memory("VmRSS")


class Hang(BaseException):
    """A load that did not end; no `Exception`, so that nobody takes it for a damaged file."""


@contextmanager
def broken_off(seconds: float = HANGS_AFTER_SECONDS) -> Iterator[None]:
    """Raise [`Hang`] in the main thread after a while."""

    def stop(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


NEVER = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "pty.spawn"}
NEVER |= {"subprocess.Popen", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request"}
NEVER |= {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
NEVER |= {"os.chown", "os.kill", "os.putenv", "shutil.rmtree", "shutil.move", "webbrowser.open", "ctypes.dlopen"}
NEVER |= {"pickle.find_class", "tempfile.mkstemp", "tempfile.mkdtemp", "builtins.input", "code.__new__"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
GADGET_MODULES = {"fuzz_canary", "pty", "timeit", "runpy", "webbrowser", "antigravity", "torch.hub"}

_seen: list[str] | None = None
_watched_thread = 0


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None or threading.get_ident() != _watched_thread:
        return
    forbidden = event in NEVER
    if event == "open":
        forbidden = bool((args[2] or 0) & WRITING)
    elif event == "import":
        forbidden = args[0] in GADGET_MODULES
    elif event == "exec":  # an import runs a module's code, which lies in a file
        forbidden = args[0].co_name != "<module>" or not Path(args[0].co_filename).is_file()
    if forbidden:
        _seen.append(f"{event} {str(args)[:200]}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect what the code inside does that no reading of files needs."""
    global _seen, _watched_thread
    if not getattr(sys, "_sae_fuzz_audit", False):  # hooks cannot be removed
        sys.addaudithook(_audit)
        sys._sae_fuzz_audit = True  # type: ignore[attr-defined]
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    _seen, _watched_thread = [], threading.get_ident()
    try:
        yield _seen
    finally:
        _seen = None
        sys.dont_write_bytecode = writes_bytecode
