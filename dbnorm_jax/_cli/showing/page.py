"""The report as one HTML page that needs no network: what was found, shown and how to repeat it."""

import base64
import html
from collections.abc import Container, Iterable, Sequence
from typing import Protocol

from dbnorm_jax._cli.measuring.story import Example, Story
from dbnorm_jax._cli.reading.argument import typed
from dbnorm_jax._cli.reading.sets import Test
from dbnorm_jax._cli.showing import table
from dbnorm_jax._cli.showing.table import Report
from dbnorm_jax._cli.showing.verdict import Verdict
from dbnorm_jax._src.core.text import printable


class Drawn(Protocol):
    """A chart that can be drawn for either scheme."""

    @property
    def says(self) -> str:
        """Its numbers in words."""

    def png(self, *, dark: bool) -> bytes:
        """Its pixels."""


# Title, description, and the charts.
Picture = tuple[str, str, Sequence[Drawn]]

_NUMBERS = range(1, len(table.HEADERS))  # columns
_LABELS = {"gallery": "--labels", "query_bank": "--bank-labels", "query": "--query-labels"}

_STYLE = """
:root { color-scheme: light; --ink: #1b1b1b; --paper: #fff; --dim: #595959; --line: #e2e2e2;
  --rule: #8a8a8a; --soft: #f4f4f4; --shown: #eaf3fa; --right: #00583f; --warn: #fff4d6;
  --edge: #b36b00; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --ink: #e6e6e6; --paper: #16191d; --dim: #a8adb3; --line: #33383e;
    --rule: #7b828a; --soft: #22272d; --shown: #1c3346; --right: #63d6ae; --warn: #3a2d0c;
    --edge: #e0a33a; }
  .charts .light { display: none; } .charts .dark { display: block; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin-bottom: .25rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { margin: .4rem 0; } .dim, figcaption { color: var(--dim); } .lead { font-size: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; margin: .6rem 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--rule); white-space: nowrap; }
tbody th { font-weight: inherit; }
.number { text-align: right; white-space: nowrap; }
tr.shown > * { background: var(--shown); }
.warning { background: var(--warn); border-left: 4px solid var(--edge); padding: .4rem .8rem; }
.right { color: var(--right); font-weight: 600; } .right::after { content: " \\2713"; }
figure { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
  gap: 1rem; align-items: start; max-width: 62rem; }
img { display: block; width: 100%; max-width: 32rem; height: auto; }
img.dark { display: none; }
pre { background: var(--soft); padding: .6rem .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--edge); outline-offset: 2px; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; } th, td { padding: .25rem .4rem; }
  tbody th { position: sticky; left: 0; background: var(--paper); max-width: 9rem; }
  td:not(.number) { min-width: 8rem; }
}
@media print {
  @page { margin: 1.2cm; }
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; }
  h2 { break-after: avoid; } tr, figure { break-inside: avoid; }
  .scroll { overflow: visible; } table { font-size: 8pt; } th, td { padding: .1rem .3rem; }
  .charts { grid-template-columns: 1fr 1fr; }
  .shown, .warning, pre { print-color-adjust: exact; }
}
"""


def to_html(
    report: Report,
    test: Test,
    story: Story,
    pictures: Sequence[Picture],
    command: Sequence[str],
    verdict: Verdict,
) -> str:
    """The page; `command`: the arguments that make it again."""
    name, *details = report.heading
    parts = [
        f"<h1>{_text(name)}</h1>",
        *map(_dim, details),
        *(f'<p class="warning">{_text(f"Warning: {one}.")}</p>' for one in report.warnings),
        f'<p class="lead" id="verdict">{_text(verdict.text)}</p>',
        *_next(verdict),
        f'<p id="summary">{_text(summary(report, story))}</p>',
        "<h2>Methods</h2>",
    ]
    for title, rows in report.tables.items():
        parts += [f"<p>{_text(title)}</p>"] * bool(title)
        lines = [
            _row([*map(_text, table.cells(row))], _NUMBERS, shown=row is story.shown)
            for row in rows
        ]
        parts += _table(title or "Methods", _header(table.HEADERS, _NUMBERS), lines)
    parts += map(_dim, table.legend(report))
    parts += [f"<p>{_text(note)}</p>" for note in report.remarks]
    parts += [part for picture in pictures for part in _figure(*picture)]
    parts += [*_hubs(report, test, story), *_examples(report, test, story)]
    versions = ", ".join(f"{name} {version}" for name, version in table.versions().items())
    footer = [
        "<h2>Made with</h2>",
        f"<pre>{_text(typed(*command))}</pre>",
        _dim(f"{versions}. The numbers are in results.json and results.csv beside this page."),
    ]
    body = "\n".join(["<main>", *parts, "</main>", "<footer>", *footer, "</footer>"])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Whatever a label holds: nothing is loaded and nothing runs.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def _figure(title: str, description: str, charts: Sequence[Drawn]) -> list[str]:
    lines = [f"<h2>{_text(title)}</h2>", '<figure><div class="charts">']
    # One of either is shown. A <source> would not do: what is printed stays as the screen had it.
    lines += [
        f'<img class="{scheme}" alt="{_text(chart.says)}" src="{_data(chart.png(dark=dark))}">'
        for chart in charts
        for scheme, dark in (("light", False), ("dark", True))
    ]
    return [*lines, "</div>", f"<figcaption>{_text(description)}</figcaption></figure>"]


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def summary(report: Report, story: Story) -> str:
    """What the table says of hubs, in a sentence or two."""
    raw, shown = report.rows[0], story.shown
    occurrence = f"N_{report.k}"
    text = (
        f"{raw.hub_share:.1f} % of the gallery are hubs ({occurrence} at least twice its mean) and "
        f"{raw.anti_hub_share:.1f} % are never retrieved; the skewness of {occurrence} is "
        f"{raw.skewness:.2f}."
    )
    if shown is None:
        return text
    text += f" {shown.method.label} brings the skewness to {shown.skewness:.2f}"
    if shown.gain == shown.gain:  # NaN where no truth is known
        text += f" and R@1 from {raw.recall_at_1:.1f} % to {shown.recall_at_1:.1f} %"
    return f"{text}."


def _next(verdict: Verdict) -> list[str]:
    """What to type after reading."""
    commands = "\n".join(_text(typed(*words)) for words in verdict.steps)
    return [f'<p>Next:</p><pre id="next">{commands}</pre>'] * bool(commands)


def _hubs(report: Report, test: Test, story: Story) -> list[str]:
    made = story.makers_beta is not None
    after = "raw" if story.shown is None else story.shown.method.label
    headers = ["Item", f"N_{report.k}", f"N_{report.k}, {after}", *["Made a hub by"] * made]
    rows = []
    for hub in story.hubs:
        makers = [
            f"{_name(test, 'query_bank', maker.row)} ({100 * maker.share:.0f} %)"
            for maker in hub.makers
            if maker.share >= 0.005
        ]
        cells = [_name(test, "gallery", hub.row), str(hub.before), str(hub.after)]
        rows.append(_row(cells + [", ".join(makers)] * made, numbers=(1, 2)))
    title = "The most retrieved items"
    lines = [f"<h2>{title}</h2>", *_table(title, _header(headers, numbers=(1, 2)), rows)]
    lines += _unnamed(test, ["gallery", *["query_bank"] * made])
    if made:
        lines.append(
            f'<p class="dim">Made a hub by: the query-bank items with the largest shares of the '
            f"sum behind its bias at beta {story.makers_beta:g}. All items and their makers: "
            f"<code>dbnorm inspect</code>.</p>"
        )
    return lines


def _examples(report: Report, test: Test, story: Story) -> list[str]:
    examples = story.gained + story.lost
    if story.shown is None or not examples:
        return []
    label = _text(story.shown.method.label)
    known = examples[0].right is not None
    total = f"of {report.sizes['queries']:,} queries"
    if known:
        said = (
            f"{label} puts a right item first in {story.num_gained:,} {total} where raw does not, "
            f"and loses it in {story.num_lost:,}. Some of either, spread evenly:"
        )
    else:
        said = (
            f"{label} changes the first place of {story.num_gained:,} {total}. Some of them, "
            f"spread evenly:"
        )
    headers = ["Query", *["Right"] * known, "Raw, best first", story.shown.method.label]
    rows = [_row(_example(example, test)) for example in examples]
    title = "Queries before and after"
    lines = [f"<h2>{title}</h2>", f"<p>{said}</p>", *_table(title, _header(headers), rows)]
    return lines + _unnamed(test, ["query", "gallery"])


def _example(example: Example, test: Test) -> list[str]:
    cells = [_name(test, "query", example.query)]
    if example.right is not None:
        cells.append("<br>".join(_name(test, "gallery", row) for row in example.right[:3]))
    for rows in (example.before, example.after):
        names = []
        for row in rows:
            name = _name(test, "gallery", row)
            right = example.right is not None and row in example.right
            names.append(f'<span class="right">{name}</span>' if right else name)
        cells.append("<br>".join(names))
    return cells


def _unnamed(test: Test, parts: Iterable[str]) -> list[str]:
    """A word about rows that stand where names could."""
    if not hasattr(test, "gallery_labels"):
        return [_dim("Rows are counted from 0. Matrices come without names.")]
    missing = [part for part in parts if getattr(test, f"{part}_labels") is None]
    if not missing:
        return []
    options = " and ".join(_LABELS[part] for part in missing)
    return [_dim(f"Rows are counted from 0. With {options} names stand in their place.")]


def _table(name: str, header: str, rows: Iterable[str]) -> list[str]:
    """A table that scrolls within the page, by the keyboard too."""
    scrolls = f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(name)}">'
    return [scrolls, f"<table><thead>{header}</thead><tbody>", *rows, "</tbody></table></div>"]


def _header(names: Iterable[str], numbers: Container[int] = ()) -> str:
    cells = [
        f'<th scope="col"{_to_the_right(place, numbers)}>{_text(name)}</th>'
        for place, name in enumerate(names)
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _row(cells: Sequence[str], numbers: Container[int] = (), *, shown: bool = False) -> str:
    """A line of a table, named by its first cell; `numbers`: the columns to the right."""
    mark = ' class="shown"' if shown else ""
    first, *others = cells
    parts = [
        f"<td{_to_the_right(place, numbers)}>{cell}</td>" for place, cell in enumerate(others, 1)
    ]
    return f'<tr{mark}><th scope="row">{first}</th>{"".join(parts)}</tr>'


def _to_the_right(place: int, numbers: Container[int]) -> str:
    return ' class="number"' if place in numbers else ""


def _dim(line: str) -> str:
    return f'<p class="dim">{_text(line)}</p>'


def _name(test: Test, part: str, row: int) -> str:
    labels = getattr(test, f"{part}_labels", None)  # matrices have none
    return f"row {row}" if labels is None else _text(labels[row])


def _text(text: str) -> str:
    return html.escape(printable(text))
