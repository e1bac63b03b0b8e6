"""The report as one HTML page that needs no network: what was found, shown and how to repeat it."""

import base64
import html
from collections.abc import Callable, Container, Iterable, Sequence

from dbnorm_jax._cli.measuring.story import Example, Story
from dbnorm_jax._cli.reading.argument import typed
from dbnorm_jax._cli.reading.sets import Test
from dbnorm_jax._cli.showing import table
from dbnorm_jax._cli.showing.table import Report
from dbnorm_jax._cli.showing.verdict import Verdict
from dbnorm_jax._src.core.text import printable

# Title, description, and what makes the PNG.
Picture = tuple[str, str, Callable[[], bytes]]

_NUMBERS = range(1, len(table.HEADERS))  # columns

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin-bottom: .25rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { margin: .4rem 0; } .dim { color: #595959; } .lead { font-size: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e2e2e2; }
th { border-bottom: 2px solid #9a9a9a; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
tr.shown td { background: #eaf3fa; }
.warning { background: #fff4d6; border-left: 4px solid #b36b00; padding: .4rem .8rem; }
.right { color: #00583f; font-weight: 600; } .right::after { content: " \\2713"; }
img { max-width: 100%; height: auto; }
pre { background: #f4f4f4; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
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
            _row("td", [*map(_text, table.cells(row))], _NUMBERS, shown=row is story.shown)
            for row in rows
        ]
        parts += _table(_row("th", map(_text, table.HEADERS), _NUMBERS), lines)
    parts += map(_dim, table.legend(report))
    parts += [f"<p>{_text(note)}</p>" for note in report.remarks]
    for title, description, png in pictures:
        data = base64.b64encode(png()).decode()
        parts += [
            f"<h2>{_text(title)}</h2>",
            f'<img alt="{_text(description)}" src="data:image/png;base64,{data}">',
            _dim(description),
        ]
    parts += [*_hubs(report, test, story), *_examples(report, test, story)]
    versions = ", ".join(f"{name} {version}" for name, version in table.versions().items())
    parts += [
        "<h2>Made with</h2>",
        f"<pre>{_text(typed(*command))}</pre>",
        _dim(f"{versions}. The numbers are in results.json and results.csv beside this page."),
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever a label holds: nothing is loaded and nothing runs.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


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
        rows.append(_row("td", cells + [", ".join(makers)] * made, numbers=(1, 2)))
    lines = ["<h2>The most retrieved items</h2>", *_table(_row("th", map(_text, headers)), rows)]
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
    headers = ["Query", *["Right"] * known, "Raw, best first", label]
    rows = [_row("td", _example(example, test)) for example in examples]
    lines = ["<h2>Queries before and after</h2>", f"<p>{said}</p>"]
    return [*lines, *_table(_row("th", headers), rows)]


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


def _table(header: str, rows: Iterable[str]) -> list[str]:
    return ['<div class="scroll"><table>', header, *rows, "</table></div>"]


def _row(
    tag: str, cells: Iterable[str], numbers: Container[int] = (), *, shown: bool = False
) -> str:
    """A line of a table; `numbers`: the columns to the right."""
    mark = ' class="shown"' if shown else ""
    parts = [
        f'<{tag} class="number">{cell}</{tag}>' if place in numbers else f"<{tag}>{cell}</{tag}>"
        for place, cell in enumerate(cells)
    ]
    return f"<tr{mark}>{''.join(parts)}</tr>"


def _dim(line: str) -> str:
    return f'<p class="dim">{_text(line)}</p>'


def _name(test: Test, part: str, row: int) -> str:
    labels = getattr(test, f"{part}_labels", None)  # matrices have none
    return f"row {row}" if labels is None else _text(labels[row])


def _text(text: str) -> str:
    return html.escape(printable(text))
