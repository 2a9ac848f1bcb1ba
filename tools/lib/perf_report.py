"""The report of tools/perf: one HTML file, plots in it as SVG, nothing loaded from elsewhere."""

import html

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #6b7280; --line: #d6dae0; --ours: #1f6feb; --theirs: #9aa4b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #14171c; --faint: #98a1ad; --line: #333a44; --ours: #589bff; --theirs: #5d6878; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { color: var(--faint); margin: .3rem 0; }
figure { margin: 1.2rem 0 0; } figcaption { font-weight: 600; } figcaption span { color: var(--faint); font-weight: 400; }
svg { width: 100%; height: auto; display: block; } text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.faint { fill: var(--faint); } .ours { fill: var(--ours); } .theirs { fill: var(--theirs); }
.spread { stroke: var(--ink); stroke-width: 1.5; } .axis { stroke: var(--line); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
"""

# Of a plot, in its own units.
WIDTH, LABEL, VALUE, ROW, BAR = 900, 190, 220, 26, 16

# What the table tells beside a figure.
COSTS = ("exits each", "CPU, guest", "CPU, host")


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(entries, ours):
    """Bars of one job: `entries` is a list of (contender, median, least, greatest, ratio as text, texts of COSTS)."""
    most = max((greatest for _, _, _, greatest, *_ in entries), default=0) or 1
    scale = (WIDTH - LABEL - VALUE) / most
    height = ROW * len(entries)
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img">', f'<line class="axis" x1="{LABEL}" x2="{LABEL}" y1="0" y2="{height}"/>']
    for row, (contender, median, least, greatest, ratio, _) in enumerate(entries):
        middle = row * ROW + ROW / 2
        kind = "ours" if contender == ours else "theirs"
        parts.append(f'<text x="{LABEL - 8}" y="{middle + 4:.0f}" text-anchor="end">{html.escape(contender)}</text>')
        parts.append(f'<rect class="{kind}" x="{LABEL}" y="{middle - BAR / 2:.0f}" width="{max(1, median * scale):.1f}" height="{BAR}"/>')
        parts.append(f'<line class="spread" x1="{LABEL + least * scale:.1f}" x2="{LABEL + greatest * scale:.1f}" y1="{middle}" y2="{middle}"/>')
        end = LABEL + greatest * scale + 8
        parts.append(f'<text x="{end:.0f}" y="{middle + 4:.0f}">{number(median)} <tspan class="faint">{html.escape(ratio)}</tspan></text>')
    return "".join([*parts, "</svg>"])


def render(groups, ours, title, notes):
    """The page. `groups` maps a heading to a list of (job, unit, whether more is better, entries as plot() takes them)."""
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
    ]
    rows = []
    for heading, jobs in groups.items():
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        for job, unit, more, entries in jobs:
            better = "more is better" if more else "less is better"
            parts.append(f"<figure><figcaption>{html.escape(job)} <span>{unit}, {better}</span></figcaption>{plot(entries, ours)}</figure>")
            rows += [
                f"<tr><td>{html.escape(job)}<td>{html.escape(contender)}<td>{number(median)}<td>{number(least)}<td>{number(greatest)}"
                f"<td>{unit}<td>{html.escape(ratio)}{''.join(f'<td>{text}' for text in costs)}</tr>"
                for contender, median, least, greatest, ratio, costs in entries
            ]
    parts.append("<h2>Figures</h2><table><tr><th>job<th>contender<th>median<th>least<th>greatest<th>unit<th>ratio" + "".join(f"<th>{cost}" for cost in COSTS) + "</tr>")
    return "\n".join([*parts, *rows, "</table></html>\n"])
