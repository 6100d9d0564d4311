"""Tables of the measurements: medians and spread over rounds, ratios of the least times."""

import os
import platform
from pathlib import Path
from statistics import median

MIB = 1 << 20


def machine() -> dict:
    """Properties of the machine that the figures depend on; nothing that identifies it."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    cpu = dict(line.split(":", 1) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line)
    cpu = {key.strip(): value.strip() for key, value in cpu.items()}
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return {
        "processor": cpu.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "sha_instructions": bool({"sha_ni", "sha2"} & set(flags)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB,
        "kernel": platform.release().split("-")[0],
        "hypervisor": "hypervisor" in flags,
    }


def describe(result: dict) -> str:
    host, image = result["machine"], result["image"]
    sha = "with" if host["sha_instructions"] else "without"
    level = "" if result["mode"] == "pack" else f"zstd level {result['level']}; "
    return (
        f"{host['processor']}{', virtual' if host['hypervisor'] else ''}, {host['cores']} cores {sha} SHA instructions, "
        f"{host['memory_mib'] / 1024:.0f} GiB, Linux {host['kernel']}. Image {image['size'] / 1024 / MIB:.2f} GiB, "
        f"of which {image['used'] / 1024 / MIB:.2f} GiB are not holes; {level}"
        f"{result['rounds']} rounds in turns: median (least-most); ratios and rates are of the least times."
    )


def spread(values, form="{:.1f}") -> str:
    text = form.format(median(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))}-{form.format(max(values))})"


def least(samples) -> float:
    """The least time: other work on the machine only adds to it. All tools ran equally often, in turns."""
    return min(sample["seconds"] for sample in samples)


def ratio(rows: dict, key: str, base: str):
    """Ratio of the least times of `key` and `base`, over rounds that have both; None if there are none."""
    both = {sample["round"] for sample in rows.get(key, [])} & {sample["round"] for sample in rows.get(base, [])}
    pick = lambda name: least(sample for sample in rows[name] if sample["round"] in both)  # noqa: E731
    return pick(key) / pick(base) if both else None


def durable(samples) -> str:
    """Yes, if at return every byte was on the device and the device was flushed."""
    dirty = max(sample["left_dirty"] for sample in samples)
    if dirty >= MIB:
        return f"no: {dirty / MIB:.0f} MiB in memory"
    if min(sample["flushes"] for sample in samples):
        return "yes"
    return f"no: not flushed (takes {median(sample['flush_seconds'] for sample in samples):.2f} s)"


def table(heading: list, rows: list) -> str:
    lines = [heading, ["---", *["--:" if cell.endswith("|") else "---" for cell in heading[1:]]], *rows]
    lines[0] = [cell.rstrip("|") for cell in heading]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def peers(result: dict, target: dict) -> str:
    # A bar after a heading: numbers, flush right.
    heading = ["", "s|", "x qstage|", "image MiB/s|", "CPU s|", "memory MiB|", "MiB written|",
               "verified before it is written", "read back", "durable at return"]  # fmt: skip
    rows = []
    for tool in result["tools"]:
        samples = target["rows"].get(tool["key"])
        if not samples:
            continue
        column = lambda name: [sample[name] for sample in samples]  # noqa: E731
        times = ratio(target["rows"], tool["key"], "qstage")
        rows.append([
            tool["label"] + (" ¹" if column("holes_kept")[0] else ""),
            spread(column("seconds")),
            f"{times:.1f}" if times else "",
            f"{result['image']['size'] / MIB / least(samples):.0f}",
            f"{median(column('cpu_seconds')):.1f}",
            f"{max(column('rss')) / MIB:.0f}",
            f"{median(column('written')) / MIB:.0f}",
            tool["before"], tool["after"], durable(samples),
        ])  # fmt: skip
    text = table(heading, rows)
    if "¹" in text:
        text += "\n¹ Leaves the slot as it was where the image has holes: the slot does not become equal to the image.\n"
    return text


UPDATES = {
    "read": "one O_DIRECT read of the image (`dd bs=4M`)",
    "unchanged": "`prepare` over the same image",
    "changed": "`prepare` over an image of which 5 % of the 1 MiB frames differ",
    "other": "`prepare` over something else",
}


def updates(result: dict, target: dict) -> str:
    rows = []
    for key, label in UPDATES.items():
        samples = target["rows"].get(key, [])
        if samples:
            times = ratio(target["rows"], key, "read")
            rows.append([label, spread([s["seconds"] for s in samples], "{:.2f}"), f"{times:.2f}",
                         f"{median(s['read'] for s in samples) / MIB:.0f}",
                         f"{median(s['written'] for s in samples) / MIB:.0f}"])  # fmt: skip
    return table(["slot holds before", "s|", "x one read|", "MiB read|", "MiB written|"], rows)


PACKS = {
    "qstage": "`qstage pack`: frames that stand alone, BLAKE3 of each, SHA-256 of the image",
    "zstd": "`zstd -T0`",
    "zstd-sha256sum": "`zstd -T0`, and `sha256sum` of the image beside it",
}


def packs(result: dict, target: dict) -> str:
    rows = []
    for key, label in PACKS.items():
        samples = target["rows"].get(key, [])
        if samples:
            rows.append([label, spread([s["seconds"] for s in samples]), f"{ratio(target['rows'], key, 'zstd'):.2f}",
                         f"{median(s['cpu_seconds'] for s in samples):.1f}",
                         f"{max(s['rss'] for s in samples) / MIB:.0f}", f"{samples[0]['size'] / MIB:.0f}"])  # fmt: skip
    return table(["", "s|", "x zstd -T0|", "CPU s|", "memory MiB|", "MiB made|"], rows)


def markdown(result: dict) -> str:
    make = {"updates": updates, "pack": packs, "peers": peers}[result["mode"]]
    parts = [describe(result) + "\n"]
    for target in result["targets"]:
        access = f", {target['access']}" if "access" in target else ""
        parts += [f"{target['title']}{access}:\n", make(result, target)]
    for name, why in result["left_out"].items():
        parts.append(f"Left out: {name}: {why}\n")
    return "\n".join(parts)
