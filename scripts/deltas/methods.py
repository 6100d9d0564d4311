"""Ways to transfer the new image to a machine that has the old one, and the bytes that each transfers."""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from served import Served


class Cost:
    """What a run of a program took."""

    def __init__(self, seconds, processor, memory):
        self.seconds, self.processor, self.memory = seconds, processor, memory


def measured(*command) -> Cost:
    """Runs a program. Its memory is the peak of what is resident, mapped files included; ru_maxrss would be no less than that
    of this interpreter, from which it is inherited."""
    begun, peak = time.monotonic(), 0
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=said)
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                peak = max(peak, high_water(child.pid))
                time.sleep(0.02)
        except BaseException:
            # SIGTERM or Ctrl-C: the program ends with this one.
            child.kill()
            child.wait()
            raise
        took = time.monotonic() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            problem = said.read().decode(errors="replace").strip()
            raise SystemExit(f"bench-delta: {command[0]}: {problem[-300:] or child.returncode}")
    return Cost(took, usage.ru_utime + usage.ru_stime, peak)


def high_water(pid: int) -> int:
    """VmHWM of a process in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def text(*command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    return done.stdout or done.stderr


class Method:
    """`make` gives the bytes to transfer, all metadata counted, and what making them took."""

    key = label = program = ""

    def __init__(self, qstage, level):
        self.qstage, self.level = qstage, level

    def missing(self) -> bool:
        return shutil.which(self.program) is None

    def version(self) -> str:
        return ""

    def refuses(self, old: Path, new: Path) -> str:
        """Why it cannot be used for this pair, if so."""
        return ""

    def make(self, old: Path, new: Path, at: Path) -> tuple:
        raise NotImplementedError


class Bundle(Method):
    """The whole bundle. The deltas are made from it; it is made once for each image."""

    key, label = "bundle", "qstage, whole bundle"

    def missing(self):
        return False

    def version(self):
        return text(self.qstage, "--version").split()[-1]

    def bundle(self, image: Path) -> tuple:
        bundle, cost = image.with_name(f"{image.name}.{self.level}.qimg"), None
        if not bundle.exists():
            cost = measured(self.qstage, "pack", "--product", "bench", "--version",
                            "1" if image.name.startswith("old") else "2", "--platform", image,
                            "--level", self.level, "--key", image.with_name("key"),
                            "-o", bundle)  # fmt: skip
        return bundle, cost

    def make(self, old, new, at):
        bundle, cost = self.bundle(new)
        return bundle.stat().st_size, cost


class Delta(Bundle):
    def __init__(self, qstage, level, effort):
        super().__init__(qstage, level)
        self.effort = effort
        self.key, self.label = f"qstage-{effort}", f"**qstage delta**, level {effort}"

    def make(self, old, new, at):
        bundle, _ = self.bundle(new)
        cost = measured(self.qstage, "delta", "--level", self.effort, "--force", old, bundle, "-o", at / "delta")
        return (at / "delta").stat().st_size, cost


class Xdelta(Method):
    key, label, program = "xdelta3", "xdelta3 -9 -S lzma, whole image as window", "xdelta3"

    def version(self):
        return text("xdelta3", "-V").split("\n")[0].split()[2].rstrip(",")

    def make(self, old, new, at):
        # The window of the source must hold all of it, else nothing that moved far is found.
        window = 1 << max(20, (old.stat().st_size - 1).bit_length())
        cost = measured("xdelta3", "-e", "-f", "-9", "-S", "lzma", "-B", min(window, 1 << 31), "-W", 1 << 24, "-s", old,
                        new, at / "delta")  # fmt: skip
        return (at / "delta").stat().st_size, cost


class Zstd(Method):
    key, label, program = "zstd", "zstd -19 --patch-from", "zstd"

    def version(self):
        return text("zstd", "--version").split(" v")[1].split(",")[0]

    def refuses(self, old, new):
        return "more than 2 GiB" if max(old.stat().st_size, new.stat().st_size) >= 1 << 31 else ""

    def make(self, old, new, at):
        cost = measured("zstd", "-19", "-q", "-f", "--long=31", f"--patch-from={old}", new, "-o", at / "delta")
        return (at / "delta").stat().st_size, cost


class Rdiff(Method):
    key, label, program = "rdiff", "rdiff, then zstd -19", "rdiff"

    def version(self):
        return text("rdiff", "--version").split("\n")[0].split()[-1].strip("()")

    def make(self, old, new, at):
        run = [measured("rdiff", "--force", "signature", old, at / "signature"),
               measured("rdiff", "--force", "delta", at / "signature", new, at / "plain"),
               measured("zstd", "-19", "-q", "-f", "-T0", at / "plain", "-o", at / "delta")]  # fmt: skip
        return (at / "delta").stat().st_size, total(run)


class Bsdiff(Method):
    key, label, program = "bsdiff", "bsdiff", "bsdiff"

    def version(self):
        return text("dpkg-query", "-W", "-f", "${Version}", "bsdiff")

    def refuses(self, old, new):
        # Its suffix array has 8 bytes for each byte of the old image, twice while it is sorted.
        needed, free = 17 * old.stat().st_size + new.stat().st_size, os.sysconf("SC_AVPHYS_PAGES") * 4096
        return f"needs {needed >> 30} GiB of memory" if needed > free * 0.8 else ""

    def make(self, old, new, at):
        cost = measured("bsdiff", old, new, at / "delta")
        return (at / "delta").stat().st_size, cost


class Casync(Method):
    key, label, program = "casync", "casync, chunks of 64 KiB", "casync"

    def version(self):
        return text("casync", "--version").split()[1]

    def make(self, old, new, at):
        store, costs, chunks = at / "store.castr", [], []
        for image in (old, new):
            costs.append(measured("casync", "make", f"--store={store}", at / "image.caibx", image))
            chunks.append({path: path.stat().st_size for path in store.rglob("*.cacnk")})
        came = sum(size for path, size in chunks[1].items() if path not in chunks[0])
        return came + (at / "image.caibx").stat().st_size, costs[1]


class Zchunk(Method):
    key, label, program = "zchunk", "zchunk", "zck"

    def version(self):
        return text("zck", "--version").split()[1]

    def chunks(self, file: Path) -> tuple:
        """Size of the header, and checksum and stored size of each chunk."""
        header, found = 0, {}
        for line in text("zck_read_header", "-c", file).splitlines():
            words = line.split()
            if line.startswith("Header size:"):
                header = int(words[-1])
            elif len(words) >= 5 and words[0].isdigit():
                found[words[1]] = int(words[3])
        return header, found

    def make(self, old, new, at):
        costs = [measured("zck", "-o", at / f"{n}.zck", image) for n, image in enumerate((old, new))]
        (_, have), (header, want) = (self.chunks(at / f"{n}.zck") for n in range(2))
        return header + sum(size for digest, size in want.items() if digest not in have), costs[1]


class Bita(Method):
    key, label, program = "bita", "bita, chunks of some 64 KiB, zstd", "bita"

    def missing(self):
        return super().missing() or shutil.which("nginx") is None

    def version(self):
        return text("bita", "--version").split()[1]

    def make(self, old, new, at):
        archive = at / "new.cba"
        cost = measured("bita", "compress", "--compression", "zstd", "--compression-level", self.level, "-i", new, archive)
        with Served(at) as server:
            measured("bita", "clone", "--seed", old, server.url(archive.name), at / "clone")
            same(at / "clone", new)
            return server.sent(), cost


class Zsync(Method):
    key, label, program = "zsync", "zsync -z, blocks of 2 or 4 KiB", "zsyncmake"

    def missing(self):
        return super().missing() or shutil.which("nginx") is None

    def version(self):
        return text("zsyncmake", "-V").split()[1].lstrip("v")

    def make(self, old, new, at):
        # -z: the blocks come out of a file that gzip compressed, which is to its advantage.
        (at / "new").symlink_to(new)
        cost = measured("sh", "-c", 'cd "$1" && exec zsyncmake -z new', "sh", at)
        with Served(at) as server:
            measured("zsync", "-q", "-i", old, "-o", at / "clone", server.url("new.zsync"))
            return server.sent(), cost


def same(one: Path, other: Path):
    if subprocess.run(["cmp", "-s", one, other]).returncode:
        raise SystemExit(f"bench-delta: {one.name} differs from {other}")


class Blocks(Method):
    """RAUC's adaptive update, simulated: an index of SHA-256 per 4 KiB, and each block that the old image lacks anywhere. RAUC
    fetches them out of the image itself, which is compressed only if its file system is; here zstd -3 compresses all of them
    as one stream, which is to its advantage."""

    key, label, program = "rauc", "RAUC adaptive (simulated), blocks of 4 KiB, zstd", "zstd"

    def make(self, old, new, at):
        begun = time.monotonic()
        have, came = set(blocks(old)), at / "came"
        index = 0
        with open(came, "wb") as out, open(new, "rb") as file:
            while block := file.read(4096):
                index += 32
                if hashlib.sha256(block).digest() not in have:
                    out.write(block)
        measured("zstd", "-3", "-q", "-f", came, "-o", at / "delta")
        return (at / "delta").stat().st_size + index, Cost(time.monotonic() - begun, 0, 0)


def blocks(image: Path):
    with open(image, "rb") as file:
        while block := file.read(4096):
            yield hashlib.sha256(block).digest()


def total(costs) -> Cost:
    return Cost(sum(c.seconds for c in costs), sum(c.processor for c in costs), max(c.memory for c in costs))


PEERS = (Xdelta, Zstd, Bsdiff, Rdiff, Zsync, Zchunk, Bita, Casync, Blocks)


def methods(qstage, level, efforts) -> list:
    own = [Bundle(qstage, level), *(Delta(qstage, level, effort) for effort in efforts)]
    return own + [peer(qstage, level) for peer in PEERS]
