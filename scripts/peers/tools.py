"""The programs that are compared: requirements, inputs, checks, and command lines.

What each checks is read from its source and its system calls (Debian 12: bmap-tools 3.6, SWUpdate 2022.12, RAUC 1.8,
casync 2; bita 0.15). Where a tool has a choice it gets its faster one, and the same zstd level as all others.
"""

import os
import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from run import started
from slot import tool


@dataclass
class Job:
    """Common base of all tools."""

    image: Path
    level: int
    inputs: Path
    qstage: str
    # To the node of the slot; it stands in bundles that name their target, so that these can be made before.
    link: Path = field(init=False)

    def __post_init__(self):
        self.link = self.inputs / "slot"

    def once(self, name: str, make) -> Path:
        """The input `name`; it is made if it does not exist, and is complete if it does."""
        path = self.inputs / name
        if not path.exists():
            part = self.inputs / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)
            make(part)
            part.rename(path)
        return path

    def compressed(self) -> Path:
        return self.once("image.zst", lambda out: tool("zstd", "-q", "-T0", f"-{self.level}", self.image, "-o", out))

    def sum(self, program: str, file: Path) -> str:
        made = self.once(f"{file.name}.{program}", lambda out: out.write_text(tool(program, file).split()[0]))
        return made.read_text()

    def signing_key(self) -> tuple:
        """A self-signed certificate, as SWUpdate and RAUC need it, and its key."""

        def make(out):
            out.mkdir()
            tool(
                "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/O=bench/CN=bench", "-days", 7300,
                "-addext", "extendedKeyUsage=emailProtection,codeSigning", "-keyout", out / "key", "-out", out / "cert",
            )  # fmt: skip

        directory = self.once("x509", make)
        return directory / "cert", directory / "key"


class Tool:
    key = label = before = after = ""
    needs: dict = {}  # command: how to get it
    cold = False
    leaves_holes = False  # does not write where the image has holes: what the slot held there stays

    def __init__(self, job: Job):
        self.job = job

    def missing(self) -> list:
        return [f"{command} ({source})" for command, source in self.needs.items() if not shutil.which(command)]

    def make(self) -> list:
        """Makes the inputs; returns the files to be read into the page cache."""
        raise NotImplementedError

    def command(self, node: str) -> list:
        raise NotImplementedError

    @contextmanager
    def session(self, node: str, log):
        """Around each run, outside of what is timed: (environment, processes whose cost counts)."""
        yield {}, []


def shell(script: str) -> list:
    return ["bash", "-c", f"set -euo pipefail; {script}"]


class Qstage(Tool):
    key, label = "qstage", "**qstage prepare**"
    before, after = "signature; each frame, BLAKE3", "each frame, BLAKE3, past the page cache"
    needs = {"ssh-keygen": "apt-get install openssh-client"}
    options: list = []

    def make(self):
        # Signed, as for the other tools; the state directory may be lost at any time, so each run has a new one.
        keys = self.job.once("ssh", self._keys)
        bundle = self.job.once("image.qimg", lambda out: self.pack(self.job.image, out, keys / "key"))
        return [bundle]

    def pack(self, image: Path, out: Path, key: Path):
        tool(self.job.qstage, "pack", "--product", "bench", "--version", "1", "--level", self.job.level,
             "--platform", image, "--key", key, "-o", out)  # fmt: skip

    @staticmethod
    def _keys(out: Path):
        out.mkdir()
        tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", out / "key")
        public = (out / "key.pub").read_text().split()
        (out / "trust").write_text(f'bench namespaces="qimg" {public[0]} {public[1]}\n')

    def command(self, node, bundle="image.qimg"):
        disk = f"/dev/{Path(os.path.realpath(f'/sys/class/block/{Path(node).name}/..')).name}"
        inputs = self.job.inputs
        return [
            self.job.qstage, "prepare", str(inputs / bundle), "--disk", disk, "--booted", "a", "--config", os.devnull,
            "--trust", str(inputs / "ssh/trust"), "--state-dir", str(inputs / "state"), *self.options,
        ]  # fmt: skip


class QstageTrusting(Qstage):
    key, label = "qstage-no-read-back", "qstage prepare --no-read-back"
    after = "no"
    options = ["--no-read-back"]


class QstageCold(Qstage):
    key, label = "qstage-cold", "qstage prepare, bundle not in page cache"
    cold = True


class ZstdDd(Tool):
    key, label = "zstd-dd", "`zstd -dc \\| dd`"
    before = after = "no"
    needs = {"zstd": "apt-get install zstd", "dd": "apt-get install coreutils"}

    def make(self):
        return [self.job.compressed()]

    def write(self, node):
        source = self.job.compressed()
        return f"zstd -dcq {source} | dd of={node} oflag=direct bs=4M iflag=fullblock conv=fsync status=none"

    def command(self, node):
        return shell(self.write(node))


class ZstdDdSha256(ZstdDd):
    key, label, program = "zstd-dd-sha256", "`zstd -dc \\| dd`, `sha256sum` before and after", "sha256sum"
    before, after = "whole file, SHA-256", "whole image, SHA-256, past the page cache"
    needs = {**ZstdDd.needs, "sha256sum": "apt-get install coreutils"}

    def make(self):
        files = super().make()
        for file in (self.job.compressed(), self.job.image):
            self.job.sum(self.program, file)
        return files

    def command(self, node):
        job, program = self.job, self.program
        source, size = job.compressed(), job.image.stat().st_size
        read = f"dd if={node} iflag=direct,count_bytes bs=4M count={size} status=none"
        return shell(
            f'echo "{job.sum(program, source)}  {source}" | {program} -c >/dev/null; {self.write(node)}; '
            f'[[ $({read} | {program}) == "{job.sum(program, job.image)} "* ]]'
        )


class ZstdDdB3sum(ZstdDdSha256):
    key, label, program = "zstd-dd-b3sum", "`zstd -dc \\| dd`, `b3sum` before and after", "b3sum"
    before, after = "whole file, BLAKE3", "whole image, BLAKE3, past the page cache"
    needs = {**ZstdDd.needs, "b3sum": "apt-get install b3sum"}


class Bmaptool(Tool):
    key, label = "bmaptool", "bmaptool"
    before, after = "no (each range by SHA-256 as it is written)", "no"
    needs = {"bmaptool": "apt-get install bmap-tools", "zstd": "apt-get install zstd"}
    leaves_holes = True

    def make(self):
        bmap = self.job.once("image.bmap", lambda out: tool("bmaptool", "create", "-o", out, self.job.image))
        return [self.job.compressed(), bmap]

    def command(self, node):
        return ["bmaptool", "copy", "--bmap", str(self.job.inputs / "image.bmap"), str(self.job.compressed()), node]


class Swupdate(Tool):
    key, label = "swupdate", "SWUpdate"
    before, after = "signature (the image by SHA-256 as it is written)", "no"
    needs = {
        "swupdate": "apt-get install swupdate", "openssl": "apt-get install openssl",
        "cpio": "apt-get install cpio", "zstd": "apt-get install zstd",
    }  # fmt: skip

    def make(self):
        return [self.job.once("image.swu", self._bundle)]

    def _bundle(self, out: Path):
        job = self.job
        cert, key = job.signing_key()
        directory = out.with_suffix(".dir")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        os.link(job.compressed(), directory / "image.zst")
        # installed-directly: without it the image is written to a temporary file before.
        (directory / "sw-description").write_text(
            'software = {\n version = "1"; hardware-compatibility: [ "1" ];\n'
            " bootloader_transaction_marker = false; bootloader_state_marker = false;\n"
            f' images: ( {{ filename = "image.zst"; device = "{job.link}"; type = "raw"; compressed = "zstd";\n'
            f'  installed-directly = true; sha256 = "{job.sum("sha256sum", job.compressed())}"; }} );\n}};\n'
        )
        tool("openssl", "cms", "-sign", "-in", "sw-description", "-out", "sw-description.sig", "-signer", cert,
             "-inkey", key, "-outform", "DER", "-nosmimecap", "-binary", cwd=directory)  # fmt: skip
        names = r"sw-description\nsw-description.sig\nimage.zst\n"
        tool("bash", "-c", f"printf '{names}' | cpio --quiet -o -H crc > {out}", cwd=directory)
        shutil.rmtree(directory)

    def command(self, node):
        cert, _ = self.job.signing_key()
        return ["swupdate", "-i", str(self.job.inputs / "image.swu"), "-k", str(cert), "-H", "bench:1"]

    @contextmanager
    def session(self, node, log):
        temporary = self.job.inputs / "swupdate.tmp"  # its sockets
        temporary.mkdir(exist_ok=True)
        yield {"TMPDIR": str(temporary)}, []


class Rauc(Tool):
    key, label = "rauc", "RAUC"
    # Not format=verity: that needs the device mapper.
    before, after = "signature and whole bundle, SHA-256", "no"
    needs = {
        "rauc": "apt-get install rauc", "dbus-daemon": "apt-get install dbus-daemon",
        "dbus-send": "apt-get install dbus-bin",
        "mksquashfs": "apt-get install squashfs-tools", "openssl": "apt-get install openssl",
    }  # fmt: skip

    def make(self):
        return [self.job.once("image.raucb", self._bundle)]

    def _bundle(self, out: Path):
        cert, key = self.job.signing_key()
        directory = out.with_suffix(".dir")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        tool("cp", "--sparse=always", "--reflink=auto", self.job.image, directory / "image.img")
        (directory / "manifest.raucm").write_text(
            "[update]\ncompatible=bench\nversion=1\n[bundle]\nformat=plain\n[image.system]\nfilename=image.img\n"
        )
        tool("rauc", "bundle", f"--cert={cert}", f"--key={key}", f"--keyring={cert}",
             f"--mksquashfs-args=-comp zstd -Xcompression-level {self.job.level}", directory, out)  # fmt: skip
        shutil.rmtree(directory)

    def _options(self):
        return f"--conf={self.job.inputs / 'rauc.conf'}"

    def command(self, node):
        return ["rauc", self._options(), "install", str(self.job.inputs / "image.raucb")]

    @contextmanager
    def session(self, node, log):
        inputs = self.job.inputs
        cert, _ = self.job.signing_key()
        mount, status, bus = inputs / "rauc.mnt", inputs / "rauc.status", inputs / "rauc.bus"
        mount.mkdir(exist_ok=True)
        for path in (status, bus):
            path.unlink(missing_ok=True)
        # It is configured to run from another slot, whose device is never accessed.
        (inputs / "rauc.conf").write_text(
            f"[system]\ncompatible=bench\nbootloader=noop\nmountprefix={mount}\nstatusfile={status}\n"
            f"activate-installed=false\n[keyring]\npath={cert}\n"
            "[slot.system.0]\ndevice=/dev/null\ntype=raw\nbootname=A\n"
            f"[slot.system.1]\ndevice={self.job.link}\ntype=raw\nbootname=B\n"
        )
        # A private bus, so that the machine's is not used.
        environment = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}", "DBUS_STARTER_BUS_TYPE": "session"}
        with ExitStack() as stack:
            daemon = ["dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address=unix:path={bus}"]
            daemons = [stack.enter_context(started(daemon, log))]
            wait(bus.exists, "dbus-daemon")
            # Private mounts, which end with it. And no mounts of other loop devices are visible: RAUC 1.8 fails if a
            # partition of one is mounted anywhere on the machine ("Error getting loop backing_file").
            own_mounts = (
                "awk '$1 ~ /^.dev.loop/ && $2 != \"/\" { print $2 }' /proc/self/mounts | xargs -r umount --lazy || true; "
                f"exec rauc {self._options()} --override-boot-slot=A service"
            )
            service = ["unshare", "--mount", *shell(own_mounts)]
            daemons.append(stack.enter_context(started(service, log, environment)))
            wait(lambda: "de.pengutronix.rauc" in names_on(bus), "rauc service")
            yield environment, [process.pid for process in daemons]


class Casync(Tool):
    key, label = "casync", "casync"
    before, after = "each chunk, SHA-512/256", "no"
    needs = {"casync": "apt-get install casync"}

    def make(self):
        store = self.job.inputs / "image.castr"
        index = self.job.inputs / "image.caibx"
        self.job.once(index.name, lambda out: tool(
            # It recognises an index by the end of its name.
            "bash", "-c", f"rm -rf {store}; casync make --store={store} {index}x.caibx {self.job.image}; mv {index}x.caibx {out}",
        ))  # fmt: skip
        return [index, *(path for path in store.rglob("*") if path.is_file())]

    def command(self, node):
        inputs = self.job.inputs
        # --seed-output=no: else it would first read and chunk the whole slot, of which nothing can be reused here.
        return ["casync", "extract", f"--store={inputs / 'image.castr'}", "--seed-output=no",
                str(inputs / "image.caibx"), node]  # fmt: skip


class Bita(Tool):
    key, label = "bita", "bita"
    before, after = "each chunk, BLAKE2", "no"
    needs = {"bita": "--with-bita builds it, by cargo install"}

    def make(self):
        job = self.job
        # It uses the end of the name, too.
        def compress(out):
            tool("bita", "compress", "--force-create", "--compression", "zstd", "--compression-level", job.level,
                 "-i", job.image, f"{out}.cba")  # fmt: skip
            Path(f"{out}.cba").rename(out)

        return [job.once("image.cba", compress)]

    def command(self, node):
        return ["bita", "clone", "--force-create", str(self.job.inputs / "image.cba"), node]


def wait(condition, what: str, seconds: float = 10):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} does not come up")
        time.sleep(0.05)


def names_on(bus: Path) -> str:
    return tool(
        "dbus-send", f"--bus=unix:path={bus}", "--print-reply", "--dest=org.freedesktop.DBus",
        "/org/freedesktop/DBus", "org.freedesktop.DBus.ListNames",
    )  # fmt: skip


TOOLS = [
    Qstage, QstageTrusting, QstageCold, ZstdDd, ZstdDdSha256, ZstdDdB3sum, Bmaptool, Swupdate, Rauc, Casync, Bita,
]  # fmt: skip
