"""A bar chart of the bytes to transfer in SVG: one block of bars for each pair, in the looks of the chart of bench-peers."""

from html import escape

from chart import BAR, GAP, LEFT, RIGHT, STYLE, WIDTH


def draw(results: dict, titles: dict, about: str) -> str:
    """`results` as bench-delta stores them, `titles` the name of each pair, in order. In each pair the longest bar is the
    largest delta; the whole bundle is in its title."""
    parts, y = [], 62
    for pair, title in titles.items():
        rows = {key: method["rows"][pair]["bytes"] for key, method in results.items() if pair in method["rows"]}
        whole = rows.pop("bundle", None)
        if not rows:
            continue
        y += 18
        beside = f'<tspan class="small" dx="8">whole bundle: {whole / 1e6:.1f} MB</tspan>' if whole else ""
        parts.append(f'<text class="head" x="20" y="{y}">{escape(title)}{beside}</text>')
        y += 14
        scale = (WIDTH - LEFT - RIGHT) / max(rows.values())
        for key, size in sorted(rows.items(), key=lambda row: row[1]):
            label = results[key]["label"].replace("*", "").split(",")[0]
            kind = "own" if key.startswith("qstage") else "once"
            label = f"qstage delta, level {key[7:]}" if kind == "own" else label
            middle, length = y + BAR - 5, max(size * scale, 1)
            parts += [
                f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end">{escape(label)}</text>',
                f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>',
                f'<text x="{LEFT + length + 8:.1f}" y="{middle}">{size / 1e6:.2f} MB</text>',
            ]
            y += BAR + GAP
        y += 8
    y += 10
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">',
        "<title>Bytes to transfer for an upgrade, less is better</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{y - 1}" rx="6"/>',
        '<text class="head" x="20" y="30">An upgrade from one image to the next: MB to transfer, less is better</text>',
        f'<text class="small" x="20" y="50">{escape(about)}</text>',
        *parts, "</svg>", "",
    ])  # fmt: skip
