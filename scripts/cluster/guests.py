"""Nodes that are virtual machines: QEMU, Debian's kernel, a disk with two slots, and the selector that counts tries."""

import http.client
import json
import queue
import re
import ssl
import struct
import subprocess
import threading
import time

from images import DATA, SLOT, Images, file_system
from machines import TOKEN, Network, Node, log, now, run, wait
from world import World

# /dev/kvm of a machine that is itself virtual may not run stock kernels: emulation runs everywhere.
QEMU = ("qemu-system-x86_64 -machine pc,accel=tcg,graphics=off -nodefaults -no-user-config -display none -monitor none "
        "-serial stdio -cpu qemu64,+rdrand -smp 1 -m 512").split()

# "gpt" for a damaged primary table; "panic=-1" reboots at once. On a busy machine the check of the timer fails. The names of
# network devices are those of the kernel, whether or not the initramfs has udev.
CMDLINE = "console=ttyS0 no_timer_check net.ifnames=0 quiet gpt panic=-1 qstage.disk=/dev/nvme0n1"

# The text of the console that a guest's failure shows, in lines.
LAST = 60


class GuestNetwork(Network):
    """A tap of the bridge for each guest."""

    def add(self, name, address):
        run("ip", "tuntap", "add", "dev", f"v-{name}", "mode", "tap")
        run("ip", "link", "set", f"v-{name}", "master", "bridge", "up")


class Guests(World):
    """Three of them, and one etcd beside them in this namespace. Without software: the platform is what reboots."""

    RELEASES = [("1.0", None), ("3.0", None), ("4.0", None)]

    def __init__(self, arguments, repo):
        self.images = Images(arguments.kernel, arguments.binaries, arguments.work)
        super().__init__(arguments, repo)

    def make_network(self):
        bundles = self.work / "bundles"
        bundles.mkdir()
        for version, _ in self.RELEASES[1:]:
            self.path(version).rename(bundles / f"{version}.qimg")
        size = sum(file.stat().st_size for file in bundles.iterdir())
        file_system(bundles, self.work / "bundles.ext4", (size >> 20) + 16)
        return GuestNetwork()

    def make_node(self, number):
        return Guest(number, self)

    def bundle(self, version, _):
        image = self.work / "image"
        self.images.system(version, image)
        run(self.qstage, "pack", "--product", "Demo", "--level", "1", "--version", version, "--key", self.work / "key",
            "--platform", image, "-o", self.path(version))
        image.unlink()

    def ordered(self, version):
        return f"/bundles/{version}.qimg"

    def serves(self, version):
        """The platform is all that these bundles have."""
        return self.runs(version)

    def begins(self, node):
        """The turn of a node: all others must be good by the tables of their disks, at this moment."""
        self.early += [f"{node.name} began its turn while {other.name} was not good yet" for other in self.nodes
                       if other is not node and not (other.up and other.marked(other.slot))]

    def drains(self):
        return [hook for node in self.nodes for hook in node.hooks if hook.startswith("drain")]


class Guest(Node):
    """A virtual machine. Its console reports what its kernel and its hooks do, and its disk whether a slot is good."""

    def install(self):
        self.dir.mkdir()
        self.console, self.answer = [], queue.Queue()
        self.hooks, self.turns, self.turn, self.boot_ids = [], [], {}, set()
        self.process, self.up = None, False
        data = self.dir / "data"
        data.mkdir()
        (data / "address").write_text(self.address)
        for name in ["signers", "tokens"]:
            (data / name).write_bytes((self.world.work / name).read_bytes())
        (data / "config").write_text(f"""disk = "/dev/nvme0n1"
trust = "/data/signers"
state_dir = "/data/state"
tries = 2
[service]
listen = "{self.address}:8000"
image_paths = ["/bundles"]
socket = "/run/qstage.sock"
tokens = "/data/tokens"
reboot_command = ["reboot", "-f"]
[cluster]
endpoints = {json.dumps(self.world.endpoints)}
node = {self.number}
address = "https://{self.address}:8000"
prefix = "/demo"
reboot_timeout = {self.world.reboot_timeout}
drain_command = ["/bin/hook", "drain"]
undrain_command = ["/bin/hook", "undrain"]
hook_timeout = 60
""")
        file_system(data, self.dir / "data.ext4", DATA)
        (self.dir / "config").write_text(f'trust = "{self.world.work}/signers"\n')
        run(self.world.qstage, "init", self.dir / "disk", "--slot-size", f"{SLOT}M", "--bundle", self.world.path("1.0"),
            "--config", self.dir / "config")

    def watch_software(self):
        return None

    def words(self):
        mac = f"52:54:00:77:00:{self.number:02x}"
        words = [*QEMU, "-kernel", self.world.images.kernel, "-initrd", self.world.images.initrd, "-append", CMDLINE,
                 "-netdev", f"tap,id=net,ifname=v-{self.name},script=no,downscript=no",
                 "-device", f"virtio-net-pci,netdev=net,mac={mac},romfile=", "-device", f"nvme,id=nvme,serial={self.name}"]
        disks = [(self.dir / "disk", "off"), (self.dir / "data.ext4", "off"), (self.world.work / "bundles.ext4", "on")]
        for number, (disk, read_only) in enumerate(disks, 1):
            words += ["-drive", f"if=none,id=d{number},format=raw,file={disk},read-only={read_only}",
                      "-device", f"nvme-ns,bus=nvme,nsid={number},drive=d{number}"]
        return list(map(str, words))

    def machine(self):
        self.down_since = now()
        with open(self.dir / "log", "w") as output:
            self.process = subprocess.Popen(self.words(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.STDOUT)
            threading.Thread(target=self.judge, daemon=True).start()
            for line in self.process.stdout:
                # Firmware clears the screen.
                line = re.sub(r"\x1b\[[0-9;?=]*[A-Za-z]|\r", "", line.decode(errors="replace")).rstrip()
                self.console.append(line)
                output.write(f"{line}\n")
                output.flush()
                self.read(line)
        self.up = False
        if not self.end:
            self.failed = "the virtual machine ended"

    def read(self, line):
        """A line of the console."""
        if found := re.search(r"guest: kernel started slot (\w): release (\S+), boot (\S+)", line):
            self.slot, release, boot_id = found.groups()
            self.boots += 1
            self.boot_ids.add(boot_id)
            self.turn.setdefault("release", release)
            self.turn["runs"] = release
            log(self.name, f"its kernel started slot {self.slot}: release {release}, boot {boot_id[:8]}")
            self.up = True
        elif found := re.search(r"guest: hook (\w+) \d+ (\w*)", line):
            self.hooks.append(" ".join(found.groups()))
            if found[1] == "drain":
                self.turn = {"drain": now()}
                self.world.begins(self)
            log(self.name, f"hook {found[1]}")
        elif "reboot: Restarting system" in line or "Kernel panic" in line:
            self.up, panic = False, "panic" in line
            self.down_since = self.down_since or now()
            self.turn.setdefault("down", now())
            log(self.name, line[line.index("Kernel panic"):] if panic else "reboots")
        elif found := re.search(r"\[exit (\d+)\]", line):
            self.answer.put(int(found[1]))

    def judge(self):
        """It counts as down until the slot that it runs from is good in the table of its disk, and its service answers."""
        try:
            while not self.end:
                if self.down_since is not None and self.up and self.marked(self.slot):
                    self.turn.setdefault("good", now())
                    if self.get("/v1/version"):
                        self.is_back()
                time.sleep(0.02)
        except Exception as error:
            self.failed = f"nothing is known of it any more: {error}"

    def is_back(self):
        self.downs.append((self.down_since, now()))
        if "down" in self.turn:
            self.turns.append({**self.turn, "serves": now()})
            log(self.name, f"serves from slot {self.slot}, which is good, {now() - self.turn['down']:.1f} s after it went down")
        self.down_since, self.turn = None, {}

    def marked(self, slot):
        """The successful bit of the slot, by the primary table (UEFI 5.3: header in LBA 1, entries where it says)."""
        with open(self.dir / "disk", "rb") as disk:
            disk.seek(512)
            header = disk.read(92)
            entries, count, size = struct.unpack_from("<QII", header, 72)
            disk.seek(entries * 512)
            table = disk.read(count * size)
        for at in range(0, len(table), size):
            name = table[at + 56:at + 128].decode("utf-16-le").rstrip("\0")
            if name == f"platform_{slot}":
                return struct.unpack_from("<Q", table, at + 48)[0] >> 56 & 1 == 1
        return False

    def typed(self, command):
        """Runs a command in the guest, as one would at its console."""
        self.process.stdin.write(f"{command}; echo \"[exit $?]\"\n".encode())
        self.process.stdin.flush()
        code = wait(f"{self.name} answers on its console", lambda: None if self.answer.empty() else [self.answer.get()])[0]
        if code:
            raise AssertionError(f"{self.name}: {command}: exit code {code}: {self.console[-10:]}")

    def verb(self, *words):
        self.typed(f"qstage {' '.join(map(str, words))} --config /data/config")

    def cannot_start(self, release):
        """A kernel that panics, as if the release did not fit this machine."""
        super().cannot_start(release)
        self.typed(f"echo {release} > /data/broken; sync" if release else "rm /data/broken; sync")

    def get(self, path):
        return super().get(path) if self.up else None

    def connection(self):
        """To its port, as a client of the API. The certificate is one that the service made; nothing here depends on it."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(self.address, 8000, timeout=20, context=context), {"Authorization": f"Bearer {TOKEN}"}

    def last_words(self):
        return self.console[-LAST:]

    def close(self):
        self.end = True
        if self.process:
            self.process.kill()
            self.process.wait()
