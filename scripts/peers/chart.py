"""A bar chart in SVG, by hand: throughput of each tool, one block of bars for each target."""

from html import escape

from report import least

MIB = 1 << 20
WIDTH, LEFT, RIGHT, BAR, GAP = 860, 310, 150, 20, 8

# On a card of its own, so that it can be read on any page; colours follow the reader's scheme.
STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }  text { fill: #1f2328; font: 13px system-ui, sans-serif }
  .head { font-weight: 600 }  .small { fill: #59636e; font-size: 12px }
  .own { fill: #1a7f37 }  .both { fill: #2f6bb0 }  .once { fill: #86b0de }  .blind { fill: #a8b1bb }
  @media (prefers-color-scheme: dark) {
    .card { fill: #151b23; stroke: #3d444d }  text { fill: #f0f6fc }  .small { fill: #9198a1 }
    .own { fill: #3fb950 }  .both { fill: #79b4f5 }  .once { fill: #3f6ea3 }  .blind { fill: #656c76 }
  }
"""
LEGEND = [
    ("own", "qstage"),
    ("both", "verifies before, and reads back"),
    ("once", "verifies before or while it writes"),
    ("blind", "verifies nothing"),
]


def kind(tool: dict) -> str:
    if tool["key"].startswith("qstage"):
        return "own"
    if tool["after"] != "no":
        return "both"
    return "blind" if tool["before"] == "no" else "once"


def bars(result: dict, target: dict) -> list:
    """(tool, MiB of image per second in its least disturbed run), fastest first."""
    size = result["image"]["size"] / MIB
    found = [
        (tool, size / least(samples))
        for tool in result["tools"]
        if (samples := target["rows"].get(tool["key"]))
    ]
    return sorted(found, key=lambda bar: -bar[1])


def draw(result: dict) -> str:
    top = max(rate for target in result["targets"] for _, rate in bars(result, target))
    scale = (WIDTH - LEFT - RIGHT) / top
    size = result["image"]["size"] / MIB
    parts, y = [], 62
    for target in result["targets"]:
        y += 18
        parts.append(f'<text class="head" x="20" y="{y}">{escape(target["title"])}</text>')
        y += 14
        for tool, rate in bars(result, target):
            label = tool["label"].replace("*", "").replace("`", "").replace("\\", "")
            middle, length = y + BAR - 5, max(rate * scale, 1)
            parts += [
                f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end">{escape(label)}</text>',
                f'<rect class="{kind(tool)}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>',
                f'<text x="{LEFT + length + 8:.1f}" y="{middle}">{rate:.0f} MiB/s'
                f'<tspan class="small" dx="8">{size / rate:.1f} s</tspan></text>',
            ]
            y += BAR + GAP
        y += 8
    x = 20
    for name, text in LEGEND:
        parts.append(f'<rect class="{name}" x="{x}" y="{y + 3}" width="12" height="12" rx="2"/>')
        parts.append(f'<text class="small" x="{x + 18}" y="{y + 13}">{text}</text>')
        x += 44 + 6.2 * len(text)
    y += 34
    host = result["machine"]
    about = f"{host['cores']} cores, {'with' if host['sha_instructions'] else 'without'} SHA instructions; image of {size / 1024:.2f} GiB, zstd level {result['level']}"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">',
        "<title>Staging the same image into the same slot: image MiB per second, more is better</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{y - 1}" rx="6"/>',
        '<text class="head" x="20" y="30">The same image into the same slot: MiB of image per second, more is better</text>',
        f'<text class="small" x="20" y="50">{escape(about)}</text>',
        *parts, "</svg>", "",
    ])  # fmt: skip
