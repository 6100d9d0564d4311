"""The target: a loop device with the partition table of `qstage init`; all tools write to its platform_b."""

import ctypes
import fcntl
import mmap
import os
import subprocess
import tempfile
from pathlib import Path

MIB = 1 << 20
CHUNK = 4 * MIB
BLOCK = 4096  # images are whole blocks
SECTOR = 512  # the unit of /sys/block/*/stat, whatever the device says
BLKFLSBUF = 0x1261  # linux/fs.h
LIBC = ctypes.CDLL(None)


class Slot:
    """Owns file, loop device and partition nodes; `close` removes them all and may be called twice."""

    def __init__(self, directory: Path, image_size: int, qstage: str):
        # Space after the image for the slot record; the same for every tool.
        size = (image_size + MIB - 1) // MIB + 16
        handle, name = tempfile.mkstemp(prefix="bench-peers-", suffix=".disk", dir=directory)
        os.close(handle)
        self.file, self.device = Path(name), None
        self.file_system = tool("findmnt", "--noheadings", "--output", "FSTYPE", "--target", name).split()[-1]
        try:
            self.file.unlink()
            tool(qstage, "init", name, "--slot-size", f"{size}M", "--config", os.devnull)
            # Without direct I/O a loop device writes to the page cache below it, and is no model of a disk. On tmpfs that
            # is where the file is, and direct I/O only costs time.
            self.direct = self.file_system != "tmpfs"
            attach = ["losetup", "--find", "--show", f"--direct-io={'on' if self.direct else 'off'}"]
            self.device = tool(*attach, name)
            # Not losetup -P: with it some kernels make no nodes.
            tool("partx", "-a", self.device)
            self.node = self._partition("platform_b")
        except BaseException:
            self.close()
            raise
        self.size = int((self._sys() / Path(self.node).name / "size").read_text()) * SECTOR
        self.pattern = mmap.mmap(-1, CHUNK)
        self.pattern.write(os.urandom(CHUNK))

    def close(self):
        if self.device:
            for command in (["partx", "-d", self.device], ["losetup", "-d", self.device]):
                subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
            self.device = None
        self.file.unlink(missing_ok=True)

    def _sys(self) -> Path:
        return Path("/sys/block") / Path(self.device).name

    def _partition(self, name: str) -> str:
        for node in sorted(self._sys().glob(f"{Path(self.device).name}p*")):
            device = f"/dev/{node.name}"
            if tool("blkid", "-p", "-s", "PART_ENTRY_NAME", "-o", "value", device) == name:
                return device
        raise RuntimeError(f"{self.device} has no partition {name}")

    def fill(self):
        """Overwrites the whole slot with bytes that no image contains."""
        fd = os.open(self.node, os.O_WRONLY | os.O_DIRECT | os.O_EXCL)
        try:
            with memoryview(self.pattern) as pattern:
                for at in range(0, self.size, CHUNK):
                    os.pwrite(fd, pattern[: min(CHUNK, self.size - at)], at)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.forget()

    def flush(self):
        """Flushes bytes that a tool has left in the page cache or in the device's own cache."""
        fd = os.open(self.node, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def forget(self):
        """Drops the pages of the device from the page cache, so that no run profits from an earlier one."""
        for device in (self.node, self.device):
            fd = os.open(device, os.O_RDONLY)
            try:
                fcntl.ioctl(fd, BLKFLSBUF)
            finally:
                os.close(fd)

    def counters(self) -> dict:
        """Requests to the device so far, in bytes and numbers; zeroed ranges count as written."""
        fields = [int(word) for word in (self._sys() / "stat").read_text().split()]
        return {"read": fields[2] * SECTOR, "written": fields[6] * SECTOR, "flushes": fields[15]}

    def differing(self, image: Path) -> tuple:
        """Compares with the image, past the page cache: bytes in blocks that differ, and those of them zero in the image."""
        fd = os.open(self.node, os.O_RDONLY | os.O_DIRECT)
        differ = holes = 0
        zero = bytes(BLOCK)
        try:
            with open(image, "rb") as file, mmap.mmap(-1, CHUNK) as buffer:
                while expected := file.read(CHUNK):
                    with memoryview(buffer) as view:
                        os.preadv(fd, [view[: len(expected)]], file.tell() - len(expected))
                    if buffer[: len(expected)] == expected:
                        continue
                    for at in range(0, len(expected), BLOCK):
                        part = expected[at : at + BLOCK]
                        if buffer[at : at + BLOCK] != part:
                            differ += BLOCK
                            holes += BLOCK if part == zero else 0
        finally:
            os.close(fd)
        return differ, holes


def child():
    """For `preexec_fn`: a group of its own, to be ended as a whole; and a harness that is killed outright takes it along.

    Not a session: the kernel shares out the processor by session, and all must run in the one that the user started.
    """
    os.setpgid(0, 0)
    LIBC.prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM


def tool(*command, cwd=None) -> str:
    """Runs a tool that must succeed; returns its standard output. Its standard error is shown if it fails."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    return done.stdout.strip()
