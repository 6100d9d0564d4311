"""The plans of measurement: all tools on a slot that holds something else, qstage on slots it could reuse, and packing."""

import mmap
import random
import shutil
import sys
from pathlib import Path

from run import Failed, measure, warm
from slot import MIB, Slot
from tools import Job, Qstage, Tool, shell

EVERY = 20  # one in 20 frames differs: 5 %


def say(text: str):
    print(f"bench-peers: {text}", file=sys.stderr, flush=True)


def one(tool: Tool, slot: Slot, job: Job, command: list, files: list, image: Path, cold: bool) -> dict:
    """One run on the slot as it is, and its sample."""
    log = job.inputs / f"{tool.key}.log"
    log.unlink(missing_ok=True)
    job.link.unlink(missing_ok=True)
    job.link.symlink_to(slot.node)
    shutil.rmtree(job.inputs / "state", ignore_errors=True)
    warm(files, cold or tool.cold)
    with log.open("ab") as out, tool.session(slot.node, out) as (environment, daemons):
        sample = measure(command, slot, log, environment, daemons)
    differ, holes = slot.differing(image)
    kept = holes if tool.leaves_holes else 0
    if differ > kept:
        raise Failed(f"says that it is done, but {differ - kept} bytes of the slot are not as in the image")
    sample["holes_kept"] = differ > 0
    return sample


def peers(tools: list, slots: list, job: Job, rounds: int, once: set, cold: bool):
    """In turns, so that other load on the machine affects all alike. Yields (slot, key, round, sample or failure)."""
    inputs = {}
    for tool in tools:
        say(f"making the input of {tool.key}")
        inputs[tool.key] = tool.make()
    for number in range(rounds):
        for slot in slots:
            for tool in tools:
                if number and tool.key in once:
                    continue
                slot.fill()
                try:
                    files = inputs[tool.key]
                    sample = one(tool, slot, job, tool.command(slot.node), files, job.image, cold)
                    yield slot, tool.key, number, sample
                except Failed as failure:
                    yield slot, tool.key, number, failure


def changed_image(image: Path, out: Path):
    """A copy in which every 20th MiB is from another place of the image, so that it compresses as usual."""
    shutil.copyfile(image, out)
    noise = random.Random(1)
    with open(out, "r+b") as file, mmap.mmap(file.fileno(), 0) as data, open(image, "rb") as source:
        for at in range(7 * MIB, len(data) - MIB + 1, EVERY * MIB):
            source.seek(at - 3 * MIB + 4096)
            other = source.read(MIB)
            data[at : at + MIB] = other if other != data[at : at + MIB] else noise.randbytes(MIB)


class DirectRead(Tool):
    """The reference of `updates`."""

    key = "read"

    def command(self, node):
        count = self.job.image.stat().st_size // MIB
        return ["dd", f"if={node}", "of=/dev/null", "iflag=direct,count_bytes", "bs=4M", f"count={count}M", "status=none"]


def updates(slots: list, job: Job, rounds: int, cold: bool):
    """Each round: over something else; one read for comparison; over the same; over one that differs in 5 %."""
    tool, read = Qstage(job), DirectRead(job)
    say("making the bundles")
    (bundle,) = tool.make()
    other = job.once("changed.img", lambda out: changed_image(job.image, out))
    key = job.inputs / "ssh/key"
    changed = job.once("changed.qimg", lambda out: tool.pack(other, out, key))
    for number in range(rounds):
        for slot in slots:
            slot.fill()
            for name, by, file, image in [
                ("other", tool, bundle, job.image),
                ("read", read, None, job.image),
                ("unchanged", tool, bundle, job.image),
                ("changed", tool, changed, other),
            ]:
                command = by.command(slot.node, file.name) if file else by.command(slot.node)
                slot.forget()
                try:
                    yield slot, name, number, one(by, slot, job, command, [file] if file else [], image, cold)
                except Failed as failure:
                    yield slot, name, number, failure


class Nowhere:
    """A measurement of packing has no slot."""

    @staticmethod
    def counters() -> dict:
        return dict.fromkeys(("read", "written", "flushes"), 0)

    @staticmethod
    def flush():
        pass


def packs(job: Job, levels: tuple, rounds: int):
    """`pack` and `zstd -T0` in turns, each until its file is durable. Yields (level, key, round, sample or failure)."""
    out = job.inputs / "packed"
    for number in range(rounds):
        for level in levels:
            compress = f"zstd -q -f -T0 -{level} {job.image} -o {out} && sync {out}"
            commands = {
                "qstage": [job.qstage, "pack", "--product", "bench", "--version", "1", "--level", str(level),
                           "--platform", job.image, "-o", out],
                "zstd": shell(compress),
                "zstd-sha256sum": shell(f"sha256sum {job.image} & {compress}; wait $!"),
            }  # fmt: skip
            for key, command in commands.items():
                out.unlink(missing_ok=True)
                warm([job.image], False)
                try:
                    sample = measure(command, Nowhere(), job.inputs / "pack.log")
                    yield level, key, number, {**sample, "size": out.stat().st_size}
                except Failed as failure:
                    yield level, key, number, failure
    out.unlink(missing_ok=True)
