"""One measured run: time, processor time, memory, device traffic, and bytes that were not durable when the tool returned."""

import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from slot import CHUNK, Slot, child

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLE = 0.02  # seconds; about 0.5 % of a core


class Failed(Exception):
    """A tool ended with an error, or the slot does not hold the image."""


def tree(roots) -> set:
    """The processes below `roots`, including these. Threads fork too, so the children of each thread are included."""
    found, todo = set(), list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            try:
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    todo += map(int, children.read_text().split())
            except OSError:
                pass  # it has ended meanwhile
    return found


def resident(pid: int) -> int:
    """Private memory of a process. Mapped files are in the page cache and can be evicted at any time; they do not count."""
    try:
        _, pages, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
        return (pages - shared) * PAGE
    except (OSError, ValueError):
        return 0


def processor_seconds(pid: int) -> float:
    """User and system time of a process and of its children that have ended, as proc(5) counts it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / TICK


class Memory(threading.Thread):
    """The maximum of the total memory of a process tree. ru_maxrss would be that of the largest process only, and never less
    than that of this interpreter, from which it is inherited."""

    def __init__(self, roots):
        super().__init__(daemon=True)
        self.roots, self.peak, self.done = roots, 0, threading.Event()

    def run(self):
        while not self.done.wait(SAMPLE):
            self.peak = max(self.peak, sum(map(resident, tree(self.roots))))


@contextmanager
def started(command, log, env=None):
    """A process in its own group, which ends when the block is left in any way."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})},
        preexec_fn=child,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def warm(files, cold: bool):
    """Reads the inputs into the page cache, or drops them from it."""
    for file in files:
        with open(file, "rb", buffering=0) as handle:
            if cold:
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while handle.read(CHUNK):
                    pass


def measure(command, slot: Slot, log: Path, env=None, daemons=()) -> dict:
    """Runs the command to its end. Seconds and bytes."""
    with open(log, "ab") as out:
        daemon_before = sum(map(processor_seconds, daemons))
        before = slot.counters()
        begin = time.monotonic()
        with started(command, out, env) as process:
            memory = Memory([process.pid, *daemons])
            memory.start()
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - begin
            process.returncode = os.waitstatus_to_exitcode(status)
            memory.done.set()
            memory.join()
    at_return = slot.counters()
    begin = time.monotonic()
    slot.flush()
    flush_seconds = time.monotonic() - begin
    after = slot.counters()
    if process.returncode:
        tail = log.read_text(errors="replace").strip().splitlines()[-5:]
        raise Failed("\n".join([f"exit code {process.returncode}", *tail]))
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime + sum(map(processor_seconds, daemons)) - daemon_before,
        "rss": memory.peak,
        "read": at_return["read"] - before["read"],
        "written": at_return["written"] - before["written"],
        # Without a flush the bytes may be in the cache of the device, and a power cut loses them.
        "flushes": at_return["flushes"] - before["flushes"],
        "left_dirty": after["written"] - at_return["written"],
        "flush_seconds": flush_seconds,
    }
