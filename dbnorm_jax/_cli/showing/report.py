"""The files of a report, and where they went."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from dbnorm_jax._cli.measuring.story import Story
from dbnorm_jax._cli.reading.sets import Test
from dbnorm_jax._cli.showing.output import Content, written
from dbnorm_jax._cli.showing.page import Picture, to_html
from dbnorm_jax._cli.showing.table import Report, content, to_csv
from dbnorm_jax._cli.showing.terminal import json_text, say
from dbnorm_jax._cli.showing.verdict import Verdict

FILES = ("report.html", "results.csv", "results.json", "k_occurrence.png", "methods.png")


def require(*packages: str) -> None:
    """Raises, before any work, where an optional package is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def contents(
    report: Report, test: Test, story: Story, command: Sequence[str], verdict: Verdict
) -> dict[str, Content]:
    """What each of the files will hold; `command`: the arguments that make them again."""
    from dbnorm_jax._cli.showing import plots

    k_occurrence = functools.cache(lambda: plots.k_occurrence_png(report))
    methods = functools.cache(lambda: plots.methods_png(report))
    pictures: list[Picture] = [
        (
            "Who is retrieved",
            f"First the {report.k}-occurrence of the items, most retrieved first; items beyond the "
            f"dot are never retrieved. Then the share of all places that the least retrieved items "
            f"have; the straight line is equality.",
            plots.k_occurrence_charts(report),
        ),
        (
            "Methods side by side",
            "The dotted line is raw retrieval. A gain is clear where its whisker does not reach "
            "the line.",
            plots.methods_charts(report),
        ),
    ]
    if story.sweep is not None:
        said = (
            "To see, not to choose by: these are the test queries. dbnorm tune chooses from the "
            "banks."
        )
        charts = plots.sweep_charts(report, story.sweep)
        pictures.append(("How much beta matters", said, charts))
    made: tuple[Callable[[], bytes], ...] = (
        lambda: to_html(report, test, story, pictures, command, verdict).encode(),
        lambda: to_csv(report).encode(errors="replace"),
        lambda: json_text(content(report)).encode(),
        k_occurrence,
        methods,
    )
    return dict(zip(FILES, map(written, made), strict=True))


def print_paths(paths: Sequence[Path], *, to_stderr: bool = False) -> None:
    """One line per written file."""
    for path in paths:
        say(f"wrote {path}", to_stderr=to_stderr)
