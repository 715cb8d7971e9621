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


def ratios(results, titles, own):
    """The medians of our own builds beside the best of the others', or, where
    there is no other, beside svidgate's."""
    lines = []
    for what in measured(results, titles):
        if titles[what].unit == "times one":
            continue
        seen = {name: median(results, name, what) for name in results}
        ours = {name: seen[name] for name in own if seen.get(name) is not None}
        others = {name: value for name, value in seen.items() if name not in own and value is not None}
        best = min(others, key=others.get) if others else "svidgate"
        beside = [f"{name} {value / seen[best]:.2f}" for name, value in ours.items() if name != best]
        if beside:
            lines.append(f"{titles[what].title}: {', '.join(beside)} of {'the best peer, ' if others else ''}{best}")
    return "\n".join(lines)


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info).group(1)
    return f"{info.count('model name')} cores ({model}), Linux {platform.release().split('-')[0]}"


def write(results, titles, own, options):
    ratio_lines = "\n".join(f"- {line}" for line in ratios(results, titles, own).splitlines())
    text = f"""# Results

Written by `make bench` on {datetime.date.today()}: {machine()}, {options.rounds} rounds of {options.seconds} s, one worker or
thread for each proxy. Median (least-most). CPU is the proxy's own, by the kernel's scheduler; load, proxy and backend
share the cores. What each row is stands in `benches/bench.py`, how each proxy is configured in `benches/peers.py`. `svidgate`
is what `make build` makes, and `pgo` what `make pgo` makes of the same code.

{table(results, titles)}

![bars](results.svg)

{ratio_lines}
"""
    (HERE / "RESULTS.md").write_text(text)
    (HERE / "results.svg").write_text(chart(results, titles, own))


def chart(results, titles, own):
    """Bars, a panel for each measure; shorter is better in all."""
    bar, gap, left, width, panel = 16, 4, 90, 240, 400
    rows = measured(results, titles)
    names = list(results)
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
            fill = "#2f6f4f" if name in own else "#9aa5b1"
            parts.append(f'<rect x="{x + left}" y="{top}" width="{length:.0f}" height="{bar}" fill="{fill}"/>')
            parts.append(f'<text x="{x + left + length + 4:.0f}" y="{top + 12}">{number(value)}</text>')
    total = (len(rows) + 1) // 2 * height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * panel}" height="{total}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{2 * panel}" height="{total}" fill="white"/>', *parts, "</svg>"]) + "\n"
