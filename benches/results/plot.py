#!/usr/bin/env python3
"""Draws 2026-11-peers.svg out of the first table of 2026-11-peers.md, both in this script's folder.

Needs nothing but Python 3. Run it again when the table changes: .ci/run looks whether somebody forgot to.
"""

import pathlib
import re
from xml.sax.saxutils import escape

FOLDER = pathlib.Path(__file__).resolve().parent
ROWS = {
    "no mesh": ("no mesh", "#9aa5b1"),
    "SDK, `connect` and `listen`": ("this library, L4", "#1f6feb"),
    "two ztunnels": ("two ztunnels, L4", "#c98500"),
    "SDK, `http_client` and `listen_http`": ("this library, L7", "#1f6feb"),
    "two Envoys": ("two Envoys, L7", "#c98500"),
}
# Title, column of the table.
PANELS = [("CPU of all processes, µs a request", 2), ("median time of a request, µs", 3)]

WIDTH, LABELS, BAR, STEP, TOP = 860, 130, 18, 27, 58
PANEL = (WIDTH - LABELS) // 2


def table():
    """The medians of the first table, by row."""
    found = {}
    for line in (FOLDER / "2026-11-peers.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in ROWS and len(cells) == 6:
            # "1 071 (1 030..1 359)" is 1071.
            numbers = [re.match(r"[\d ]+(?:\.\d+)?", cell) for cell in cells]
            found[cells[0]] = [n and float(n.group().replace(" ", "")) for n in numbers]
    missing = ROWS.keys() - found.keys()
    if missing:
        raise SystemExit(f"the table has no rows {sorted(missing)}")
    return found


def text(x, y, words, more=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{escape(words)}</text>'


def draw():
    values = table()
    height = TOP + STEP * len(ROWS) + 12
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="system-ui, sans-serif" font-size="13" fill="#1f2328" role="img">',
        "<title>HTTP over 32 kept connections: CPU and median time of a request</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        text(12, 22, "HTTP/1.1 over 32 kept connections, two cores", 'font-weight="600" font-size="14"'),
    ]
    for panel, (title, column) in enumerate(PANELS):
        left = LABELS + panel * PANEL
        most = max(values[row][column] for row in ROWS)
        out.append(text(left, 46, title, 'fill="#59636e"'))
        for at, (row, (name, colour)) in enumerate(ROWS.items()):
            value, y = values[row][column], TOP + at * STEP
            length = max(2, value / most * (PANEL - 70))
            out.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>')
            shown = f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:g}"
            out.append(text(left + length + 6, y + 14, shown))
            if panel == 0:
                out.append(text(LABELS - 10, y + 14, name, 'text-anchor="end"'))
    out.append("</svg>")
    (FOLDER / "2026-11-peers.svg").write_text("\n".join(out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    draw()
