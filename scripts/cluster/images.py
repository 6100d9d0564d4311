"""Images of the guests: an initramfs with the packaged selector, a slot with busybox and the program, a disk of data."""

import os
import pathlib
import re
import shutil

from machines import run

GUESTS = pathlib.Path(__file__).resolve().parents[1] / "guests"

# Sizes in MiB. The program of a debug build is 27 MiB.
SLOT, SYSTEM, DATA = 60, 48, 16


class Images:
    """What all guests have in common, made once."""

    def __init__(self, kernel, binaries, work):
        self.work = work
        self.kernel = next((kernel / "boot").glob("vmlinuz-*"))
        # The selector is small when it has no debugging information, and so is what is read at each boot.
        for program in ["qstage", "qstage-select"]:
            run("strip", "-o", work / f"guest-{program}", binaries / program)
        run("unshare", "--mount", "--propagation", "private", "sh", GUESTS / "initramfs.sh", "initramfs-tools", kernel,
            work / "guest-qstage-select", work, "virtio_pci", "virtio_net")
        self.initrd = work / "initrd"

    def system(self, release, image):
        """The file system of a platform slot: read-only, the same on each node."""
        root = self.work / "root"
        for name in ["bin", "proc", "sys", "dev", "run", "tmp", "etc", "sbin", "root", "data", "bundles",
                     "etc/qstage/health.d"]:
            (root / name).mkdir(parents=True)
        for applet in run("busybox", "--list").split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("/bin/busybox")
        install(shutil.which("busybox"), root, "bin/busybox")
        install(self.work / "guest-qstage", root, "bin/qstage")
        install(GUESTS / "init", root, "sbin/init")
        install(GUESTS / "hook", root, "bin/hook")
        # A node is up before it is good, as with a check that does something: another one that began then would be seen.
        install(GUESTS / "health", root, "etc/qstage/health.d/10-settled")
        (root / "etc" / "release").write_text(f"{release}\n")
        file_system(root, image, SYSTEM)


def install(program, root, path):
    """A program of this machine with the libraries that it is linked to, in the places where it looks for them."""
    shutil.copy(program, root / path)
    (root / path).chmod(0o755)
    linked = os.popen(f"ldd '{program}' 2> /dev/null").read()
    for library in re.findall(r"(/\S+) \(0x", linked):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(library), target)


def file_system(root, image, size):
    """Moves a directory into an ext4 image of a size in MiB."""
    with open(image, "wb") as file:
        file.truncate(size << 20)
    run("mkfs.ext4", "-q", "-m", "0", "-d", root, image)
    shutil.rmtree(root)
