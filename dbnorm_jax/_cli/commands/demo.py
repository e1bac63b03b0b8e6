"""`dbnorm demo`: the embedded data set from end to end."""

import dataclasses
from pathlib import Path

from dbnorm_jax._cli.commands.evaluate import report_of
from dbnorm_jax._cli.measuring.methods import DEFAULT, DEFAULT_BETAS, Method, choose_methods
from dbnorm_jax._cli.measuring.story import NUM_STEPS, tell
from dbnorm_jax._cli.measuring.table_rows import NEIGHBORS, ResultRow, count_steps, evaluate
from dbnorm_jax._cli.reading.emoji_names import EMOJI_VERSION, emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._cli.showing.output import Sink
from dbnorm_jax._cli.showing.progress import Progress
from dbnorm_jax._cli.showing.report import FILES, contents, print_paths, require
from dbnorm_jax._cli.showing.table import Report, show
from dbnorm_jax._cli.showing.verdict import EVALUATE_HELP, Inputs, of_table
from dbnorm_jax._cli.showing.verdict import tell as tell_verdict

_BETA_QUERY, _BETA_GALLERY = DEFAULT_BETAS.values()
_BEST, _EQUAL = (Method("dualis", _BETA_QUERY, beta) for beta in (_BETA_GALLERY, _BETA_QUERY))

# The hubs of the same data, and what files of one's own need.
_STEPS = (("dbnorm", "inspect", "--demo"), EVALUATE_HELP)

METHODS = choose_methods(DEFAULT, _BETA_QUERY, _BETA_GALLERY)
METHODS.insert(METHODS.index(_BEST) + 2, _EQUAL)  # after DualDIS


def run(source: str, target: str, seed: int, output: Path, *, force: bool) -> None:
    """Builds, evaluates, prints and writes."""
    require("emoji", "rich", "matplotlib")
    sink = Sink(output, names=FILES, force=force)
    command = ["dbnorm", "demo", "--source", source, "--target", target, "--seed", str(seed)]
    with Progress(count_steps(METHODS) + NUM_STEPS) as progress:
        test = emoji_names(source, target, seed)
        rows = evaluate(test, METHODS, progress)
        report = _report(test, rows)
        verdict = of_table(rows, Inputs())._replace(steps=_STEPS)
        made = contents(report, test, tell(test, rows, progress), command, verdict)
        paths = sink.write(made)
    show(report)
    print_paths(paths)
    tell_verdict(verdict)


def _report(test: EvaluationSet, rows: list[ResultRow]) -> Report:
    import emoji

    notes = []
    if not emoji.__version__.startswith(f"{EMOJI_VERSION}."):
        notes.append(
            f"These figures are of emoji {emoji.__version__}; documented ones of {EMOJI_VERSION}."
        )
    report = report_of(test, rows, *notes)
    return dataclasses.replace(
        report,
        name=f"{test.name} (cross-lingual stand-in for cross-modal retrieval)",
        beta_query=None,  # the rows differ: their names carry the betas
        notes=(*_sentences(test, rows), *report.notes),
    )


def _sentences(test: EvaluationSet, rows: list[ResultRow]) -> list[str]:
    """What to see in the table, read off its numbers."""
    by_method = {row.method: row for row in rows}
    raw, best, equal = (by_method[method] for method in (Method("raw"), _BEST, _EQUAL))
    assert test.query_labels is not None
    assert test.gallery_labels is not None
    hub = int(raw.k_occurrence.argmax())
    before, after = int(raw.k_occurrence[hub]), int(best.k_occurrence[hub])
    gains = [best.gain, equal.gain]
    worst = (
        f"Worst hub: '{test.gallery_labels[hub]}' ({test.query_labels[hub]}) is in the top "
        f"{NEIGHBORS} of {before} of {len(test.queries)} queries; with {best.method.label}, of "
        f"{after}."
    )
    gained = (
        f"{best.method.label} {_change(gains[0])} and brings the skewness of N_{NEIGHBORS} from "
        f"{raw.skewness:.2f} to {best.skewness:.2f}."
    )
    betas = f"{equal.method.label} {_change(gains[1])}"
    if gains[1] < gains[0]:
        return [worst, gained, f"Two banks need two betas: {betas} only."]
    return [worst, gained, f"Here equal betas do no harm: {betas}."]


def _change(points: float) -> str:
    verb = "adds" if points >= 0 else "takes"
    return f"{verb} {abs(points):.1f} points of R@1"
