"""Pairs of images, before and after an upgrade, made of Debian packages in two versions. No root needed.

The packages are those that apt knows in more than one version (the release, its security updates), and some others. The
old tree has the oldest version of each, the new tree the newest, and the third tree the old packages but for one.
"""

import functools
import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

# In this order, until a tree fills most of the image: a small appliance, then the larger parts of a server.
PACKAGES = """
    libssl3 openssl libc6 bash coreutils util-linux systemd udev dpkg apt libgnutls30 libxml2 curl libcurl4 openssh-client
    openssh-server perl perl-base perl-modules-5.36 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib git
    libgcrypt20 libkrb5-3 libexpat1 libglib2.0-0 sqlite3 libsqlite3-0 libicu72 nginx-common nginx postgresql-15
    postgresql-client-15 vim-runtime locales linux-image-amd64 iso-codes libnode108 nodejs containerd docker.io
    qemu-system-data libllvm14 openjdk-17-jre-headless gcc-12 cpp-12 g++-12 libclang-cpp14 fonts-noto-cjk
""".split()
# Part of the image that the files fill.
FULL = 0.75
UUID, SEED = "5c1d7a3e-9d0b-4a5e-8f30-0123456789ab", "9e0c8f57-1a3f-4d5d-8f5b-0123456789ab"
ENVIRONMENT = os.environ | {"E2FSPROGS_FAKE_TIME": "1700000000", "SOURCE_DATE_EPOCH": "1700000000"}
UNCOMPRESSED = ["-noI", "-noD", "-noF", "-noX"]


def run(*command, **options):
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **options)
    if done.returncode:
        raise SystemExit(f"bench-delta: {' '.join(command)[:200]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def versions(package: str) -> list:
    """The versions that apt knows, oldest first."""
    found = {line.split("|")[1].strip() for line in run("apt-cache", "madison", package).splitlines() if "Packages" in line}
    older = lambda a, b: -1 if subprocess.run(["dpkg", "--compare-versions", a, "lt", b]).returncode == 0 else 1  # noqa: E731
    return sorted(found, key=functools.cmp_to_key(older))


def real(package: str, version: str) -> tuple:
    """The package that a meta package of the kernel needs; its name has the version."""
    if package != "linux-image-amd64":
        return package, version
    for line in run("apt-cache", "show", f"{package}={version}").splitlines():
        if line.startswith("Depends:"):
            name = line.split()[1]
            return name, versions(name)[-1]
    raise SystemExit(f"bench-delta: {package} {version} depends on nothing")


def fetch(package: str, version: str, debs: Path) -> Path:
    package, version = real(package, version)
    pattern = f"{package}_{version.replace(':', '%3a')}_*.deb"
    if not list(debs.glob(pattern)):
        run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", f"{package}={version}", cwd=debs)
    return next(debs.glob(pattern))


def unpack(deb: Path, tree: Path):
    """Unpacks the files of a package, without documents, which an appliance has no use for."""
    files = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE)
    extract = ["tar", "-x", "-C", tree, "--keep-directory-symlink", "--no-same-owner", "--exclude=./usr/share/doc"]
    subprocess.run(extract, stdin=files.stdout, check=True)
    if files.wait():
        raise SystemExit(f"bench-delta: {deb} cannot be unpacked")


def used(tree: Path) -> int:
    return int(run("du", "-s", "--apparent-size", "-B1", tree).split()[0])


def trees(at: Path, size: int, one: str, say) -> list:
    """Makes `old`, `new` and `one` below `at`. Returns a line for each package: name, old version, new version."""
    debs, report = at / "debs", []
    debs.mkdir(exist_ok=True)
    for name in ("old", "new", "one"):
        shutil.rmtree(at / name, ignore_errors=True)
        for link in ("bin", "sbin", "lib"):
            (at / name / "usr" / link).mkdir(parents=True)
            (at / name / link).symlink_to(f"usr/{link}")
        (at / name / "usr/lib64").mkdir()
        (at / name / "lib64").symlink_to("usr/lib64")
    for package in PACKAGES:
        if used(at / "new") > FULL * size:
            break
        found = versions(package)
        if not found:
            say(f"not available here, left out: {package}")
            continue
        old, new = (fetch(package, version, debs) for version in (found[0], found[-1]))
        unpack(old, at / "old")
        unpack(new, at / "new")
        unpack(new if package == one else old, at / "one")
        report.append((package, found[0], found[-1]))
    if max(used(at / name) for name in ("old", "new", "one")) > (FULL + 0.15) * size:
        raise SystemExit("bench-delta: the packages do not fit; name a larger --size")
    return report


def ext4(tree: Path, image: Path, size: int):
    image.unlink(missing_ok=True)
    with open(image, "wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-b", 4096, "-m", 0, "-E", f"lazy_itable_init=0,lazy_journal_init=0,hash_seed={SEED}",
        "-U", UUID, "-d", tree, image)  # fmt: skip


def listing(tree: Path) -> dict:
    """Paths below a tree with what is there: kind, mode, and hash or target."""
    found = {}
    for path in sorted(tree.rglob("*")):
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            what = ("link", 0, os.readlink(path))
        elif stat.S_ISDIR(about.st_mode):
            what = ("dir", about.st_mode, None)
        else:
            what = ("file", about.st_mode, hashlib.sha256(path.read_bytes()).digest())
        found["/" + str(path.relative_to(tree))] = what
    return found


def in_place(old: Path, new: Path, base: Path, image: Path):
    """An image like `base`, whose files are replaced by those of `new`, as an upgrade of the running system does it."""
    shutil.copyfile(base, image)
    before, after = listing(old), listing(new)
    commands = []
    gone = [path for path, what in before.items() if path not in after or after[path][0] != what[0]]
    for path in sorted(gone, reverse=True):
        commands.append(f'{"rmdir" if before[path][0] == "dir" else "rm"} "{path}"')
    for path, what in after.items():
        if before.get(path) == what or (what[0] == "dir" and path in before and path not in gone):
            continue
        folder, name = path.rsplit("/", 1)
        commands.append(f'cd "{folder or "/"}"')
        if path in before and path not in gone:
            commands.append(f'rm "{name}"')
        if what[0] == "dir":
            commands.append(f'mkdir "{name}"')
        elif what[0] == "link":
            commands.append(f'symlink "{name}" "{what[2]}"')
        else:
            commands.append(f'write "{new}{path}" "{name}"')
            commands.append(f'set_inode_field "{name}" mode 0{what[1]:o}')
    run("debugfs", "-w", "-f", "-", image, input="\n".join([*commands, ""]))
    check = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
    if check.returncode:
        raise SystemExit(f"bench-delta: {image} is damaged: {check.stdout[-500:]}")


def squashfs(tree: Path, image: Path, *options):
    image.unlink(missing_ok=True)
    run("mksquashfs", tree, image, "-quiet", "-no-progress", "-all-root", *(options or ("-comp", "zstd")))


def pairs(at: Path, size: int, one: str, wanted, say) -> dict:
    """Makes the images. Returns for each pair its name, and old and new image."""
    at.mkdir(parents=True, exist_ok=True)
    stamp, now = at / "made-of", f"{size} {one}\n"
    if not stamp.exists() or stamp.read_text() != now:
        stamp.unlink(missing_ok=True)
        for image in [*at.glob("*.ext4"), *at.glob("*.squashfs")]:
            image.unlink()
        say("fetching and unpacking packages")
        report = trees(at, size, one, say)
        (at / "packages").write_text("".join(f"{' '.join(line)}\n" for line in report))
        stamp.write_text(now)
    old, new, single = at / "old", at / "new", at / "one"
    make = {
        "old.ext4": lambda to: ext4(old, to, size),
        "new.ext4": lambda to: ext4(new, to, size),
        "new-in-place.ext4": lambda to: in_place(old, new, at / "old.ext4", to),
        "one-in-place.ext4": lambda to: in_place(old, single, at / "old.ext4", to),
        **{f"{name}.squashfs": lambda to, tree=tree: squashfs(tree, to)
           for name, tree in (("old", old), ("new", new), ("one", single))},
        **{f"{name}-plain.squashfs": lambda to, tree=tree: squashfs(tree, to, *UNCOMPRESSED)
           for name, tree in (("old", old), ("new", new), ("one", single))},
    }  # fmt: skip

    def image(name):
        if not (at / name).exists():
            say(f"making {name}")
            make[name](at / "unfinished")
            (at / "unfinished").rename(at / name)
        return at / name

    return {key: (image(before), image(after)) for key, (_, before, after) in PAIRS.items() if key in wanted}


# Title, old image, new image.
PAIRS = {
    "anew": ("ext4, laid out anew", "old.ext4", "new.ext4"),
    "in-place": ("ext4, changed in place", "old.ext4", "new-in-place.ext4"),
    "one": ("ext4, one package", "old.ext4", "one-in-place.ext4"),
    "squashfs": ("squashfs", "old.squashfs", "new.squashfs"),
    "squashfs-one": ("squashfs, one package", "old.squashfs", "one.squashfs"),
    "plain": ("squashfs without its compression", "old-plain.squashfs", "new-plain.squashfs"),
    "plain-one": ("squashfs without its compression, one package", "old-plain.squashfs", "one-plain.squashfs"),
}
