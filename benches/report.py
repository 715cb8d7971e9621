"""A table and a chart of what `bench.py` saw."""

import datetime
import html
import pathlib
import platform
import re
import statistics

HERE = pathlib.Path(__file__).resolve().parent


def median(results, name, what):
    values = results[name].get(what)
    return statistics.median(values) if values else None


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(values):
    if not values:
        return "-"
    text = number(statistics.median(values))
    return f"{text} ({number(min(values))}-{number(max(values))})" if len(values) > 1 else text


def measured(results, titles):
    return [what for what in titles if any(what in values for values in results.values())]


def table(results, titles):
    """A row for each measure, a column for each proxy: median (least-most)."""
    lines = ["| | " + " | ".join(f"{name} {values['version']}" for name, values in results.items()) + " |"]
    lines.append("| --- |" + " --- |" * len(results))
    for what in measured(results, titles):
        cells = [cell(values.get(what)) for values in results.values()]
        lines.append(f"| {titles[what].title}, {titles[what].unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(results, titles):
    """svidgate's median beside the best of the others'."""
    lines = []
    for what in measured(results, titles):
        others = {name: median(results, name, what) for name in results if name not in ("svidgate", "base")}
        others = {name: value for name, value in others.items() if value is not None}
        own, base = median(results, "svidgate", what) if "svidgate" in results else None, "base" in results and median(results, "base", what)
        if own is None:
            continue
        if base:
            lines.append(f"{titles[what].title}: {own / base:.3f} of the base")
        if others and titles[what].unit != "times one":
            best = min(others, key=others.get)
            lines.append(f"{titles[what].title}: {own / others[best]:.2f} of the best peer ({best})")
    return "\n".join(lines)


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info).group(1)
    return f"{info.count('model name')} cores ({model}), Linux {platform.release().split('-')[0]}"


def write(results, titles, options):
    ratio_lines = "\n".join(f"- {line}" for line in ratios(results, titles).splitlines())
    text = f"""# Results

Written by `make bench` on {datetime.date.today()}: {machine()}, {options.rounds} rounds of {options.seconds} s, one worker or
thread for each proxy. Median (least-most). CPU is the proxy's own, by the kernel's scheduler; load, proxy and backend
share the cores. What each row is stands in `benches/bench.py`, how each proxy is configured in `benches/peers.py`.

{table(results, titles)}

![bars](results.svg)

{ratio_lines}
"""
    (HERE / "RESULTS.md").write_text(text)
    (HERE / "results.svg").write_text(chart(results, titles))


COLOURS = {"svidgate": "#2f6f4f"}


def chart(results, titles):
    """Bars, a panel for each measure; shorter is better in all."""
    bar, gap, left, width, panel = 16, 4, 90, 240, 400
    rows = measured(results, titles)
    names = [name for name in results if name != "base"]
    height = 34 + len(names) * (bar + gap)
    parts = []
    for index, what in enumerate(rows):
        x, y = index % 2 * panel, index // 2 * height
        most = max(median(results, name, what) or 0 for name in names)
        parts.append(f'<text x="{x + 8}" y="{y + 20}" font-weight="bold">{html.escape(titles[what].title)}, {titles[what].unit}</text>')
        for place, name in enumerate(names):
            value, top = median(results, name, what), y + 28 + place * (bar + gap)
            parts.append(f'<text x="{x + 8}" y="{top + 12}">{name}</text>')
            if value is None:
                continue
            length = max(1, value / most * width)
            fill = COLOURS.get(name, "#9aa5b1")
            parts.append(f'<rect x="{x + left}" y="{top}" width="{length:.0f}" height="{bar}" fill="{fill}"/>')
            parts.append(f'<text x="{x + left + length + 4:.0f}" y="{top + 12}">{number(value)}</text>')
    total = (len(rows) + 1) // 2 * height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * panel}" height="{total}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{2 * panel}" height="{total}" fill="white"/>', *parts, "</svg>"]) + "\n"
