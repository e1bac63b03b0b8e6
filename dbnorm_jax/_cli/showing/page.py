"""The report as one HTML page that needs no network: what was found, shown and how to repeat it."""

import base64
import html
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dbnorm_jax._cli.measuring.story import Example, Story
from dbnorm_jax._cli.measuring.table_rows import ResultRow
from dbnorm_jax._cli.reading.sets import EvaluationSet, Test
from dbnorm_jax._cli.showing import table
from dbnorm_jax._cli.showing.table import Report

Labels = tuple[str, ...] | None


class Picture(NamedTuple):
    """A picture of the page; `png` makes it."""

    title: str
    description: str
    png: Callable[[], bytes]


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
) -> str:
    """The page.

    Args:
      report: the table.
      test: what was evaluated, for its labels.
      story: what is told beside the table.
      pictures: in this order.
      command: the arguments that make the page again.
    """
    name, *details = report.heading
    parts = [
        f"<h1>{_text(name)}</h1>",
        *(f'<p class="dim">{_text(line)}</p>' for line in details),
        f'<p class="lead" id="summary">{_text(summary(report, story))}</p>',
        "<h2>Methods</h2>",
        _methods(report, story.shown),
    ]
    parts += [f'<p class="dim">{_text(line)}</p>' for line in table.legend(report)]
    parts += [f"<p>{_text(note)}</p>" for note in report.notes]
    for title, description, png in pictures:
        data = base64.b64encode(png()).decode()
        parts += [
            f"<h2>{_text(title)}</h2>",
            f'<img alt="{_text(description)}" src="data:image/png;base64,{data}">',
            f'<p class="dim">{_text(description)}</p>',
        ]
    parts += _hubs(report, test, story)
    parts += _examples(report, test, story)
    parts += _settings(command)
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
    """What the table says, in a sentence or three."""
    raw, shown = report.rows[0], story.shown
    occurrence = f"N_{report.k}"
    text = (
        f"{raw.hub_share:.1f} % of the gallery are hubs ({occurrence} at least twice its mean) and "
        f"{raw.anti_hub_share:.1f} % are never retrieved; the skewness of {occurrence} is "
        f"{raw.skewness:.2f}."
    )
    if any(row.method.kind == "auto" for row in report.rows):
        kept = shown is None or shown.method.kind != "auto"
        text += " auto keeps raw: nothing is proven better by the bank's own pairs." * kept
    if shown is None:
        return text
    text += f" {shown.method.label} brings the skewness to {shown.skewness:.2f}"
    if shown.gain == shown.gain:  # NaN where no truth is known
        clear = abs(shown.gain) > shown.gain_interval
        text += (
            f" and R@1 from {raw.recall_at_1:.1f} % to {shown.recall_at_1:.1f} % "
            f"({shown.gain:+.1f} ± {shown.gain_interval:.1f} points"
            f"{'' if clear else ', within its 95 % interval of nothing'})"
        )
    return f"{text}."


def _methods(report: Report, shown: ResultRow | None) -> str:
    own = [row for row in report.rows if not row.method.about.transductive]
    others = [row for row in report.rows if row.method.about.transductive]
    parts = [_grid(table.HEADERS, [table.cells(row) for row in own], _place(own, shown))]
    if others:  # numbers that must not stand beside inductive ones
        rows = [report.rows[0], *others]
        parts.append("<p>Transductive: these read the other test queries.</p>")
        parts.append(_grid(table.HEADERS, [table.cells(row) for row in rows], _place(rows, shown)))
    return "\n".join(parts)


def _place(rows: Sequence[ResultRow], shown: ResultRow | None) -> int | None:
    return next((place for place, row in enumerate(rows) if row is shown), None)


def _grid(headers: Sequence[str], rows: Sequence[Sequence[str]], marked: int | None = None) -> str:
    lines = [
        '<div class="scroll"><table>',
        "<tr>"
        + "".join(
            f'<th class="number">{_text(header)}</th>' if place else f"<th>{_text(header)}</th>"
            for place, header in enumerate(headers)
        )
        + "</tr>",
    ]
    for place, cells in enumerate(rows):
        first, *numbers = (_text(cell) for cell in cells)
        mark = ' class="shown"' if place == marked else ""
        lines.append(
            f"<tr{mark}><td>{first}</td>"
            + "".join(f'<td class="number">{number}</td>' for number in numbers)
            + "</tr>"
        )
    return "\n".join([*lines, "</table></div>"])


def _hubs(report: Report, test: Test, story: Story) -> list[str]:
    if not story.hubs:
        return []
    k = report.k
    after = "raw" if story.shown is None else story.shown.method.label
    made = story.makers_beta is not None
    headers = ["Item", f"N_{k}", f"N_{k}, {after}", *["Made a hub by"] * made]
    lines = ["<h2>The most retrieved items</h2>", '<div class="scroll"><table>']
    lines.append("<tr>" + "".join(f"<th>{_text(header)}</th>" for header in headers) + "</tr>")
    gallery, bank = _labels(test, "gallery_labels"), _labels(test, "query_bank_labels")
    for hub in story.hubs:
        makers = ", ".join(
            f"{_name(maker.row, bank)} ({100 * maker.share:.0f} %)"
            for maker in hub.makers
            if maker.share >= 0.005
        )
        lines.append(
            f"<tr><td>{_name(hub.row, gallery)}</td>"
            f'<td class="number">{hub.before}</td><td class="number">{hub.after}</td>'
            + f"<td>{makers}</td>" * made
            + "</tr>"
        )
    lines.append("</table></div>")
    if made:
        lines.append(
            f'<p class="dim">Made a hub by: the query-bank items with the largest shares of the '
            f"sum behind its bias at beta {story.makers_beta:g}. All items and their makers: "
            f"<code>dbnorm inspect</code>.</p>"
        )
    return lines


def _examples(report: Report, test: Test, story: Story) -> list[str]:
    if story.shown is None or not (story.gained or story.lost):
        return []
    label = _text(story.shown.method.label)
    known = any(example.right is not None for example in story.gained + story.lost)
    total = f"of {report.sizes['queries']:,} queries"
    lines = ["<h2>Queries before and after</h2>"]
    if known:
        lines.append(
            f"<p>{label} puts a right item first in {story.num_gained:,} {total} where raw does "
            f"not, and loses it in {story.num_lost:,}. Some of either, spread evenly:</p>"
        )
    else:
        lines.append(
            f"<p>{label} changes the first place of {story.num_gained:,} {total}. Some of them, "
            f"spread evenly:</p>"
        )
    lines += [
        '<div class="scroll"><table>',
        f"<tr><th>Query</th>{'<th>Right</th>' * known}<th>Raw, best first</th>"
        f"<th>{label}</th></tr>",
    ]
    lines += [_example(example, test, known=known) for example in story.gained + story.lost]
    return [*lines, "</table></div>"]


def _example(example: Example, test: Test, *, known: bool) -> str:
    gallery = _labels(test, "gallery_labels")
    right = example.right or []

    def listed(rows: list[int]) -> str:
        return "<br>".join(
            f'<span class="right">{_name(row, gallery)}</span>'
            if row in right
            else _name(row, gallery)
            for row in rows
        )

    answer = f"<td>{'<br>'.join(_name(row, gallery) for row in right[:3])}</td>" * known
    return (
        f"<tr><td>{_name(example.query, _labels(test, 'query_labels'))}</td>{answer}"
        f"<td>{listed(example.before)}</td><td>{listed(example.after)}</td></tr>"
    )


def _settings(command: Sequence[str]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in table.versions().items())
    return [
        "<h2>Made with</h2>",
        f"<pre>{_text(shlex.join(command))}</pre>",
        f'<p class="dim">{_text(versions)}. The numbers are in results.json and results.csv '
        f"beside this page.</p>",
    ]


def _labels(test: Test, which: str) -> Labels:
    return getattr(test, which) if isinstance(test, EvaluationSet) else None


def _name(row: int, labels: Labels) -> str:
    return f"row {row}" if labels is None else _text(labels[row])


def _text(text: str) -> str:
    return html.escape(text)
