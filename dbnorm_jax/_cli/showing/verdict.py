"""What a command found, in a sentence or two, and what to type next: written here alone."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.methods import KINDS, Method, file_methods
from dbnorm_jax._cli.measuring.results import Popularity
from dbnorm_jax._cli.measuring.story import changed, shown_row
from dbnorm_jax._cli.measuring.table_rows import ResultRow
from dbnorm_jax._cli.reading.argument import typed
from dbnorm_jax._cli.showing.terminal import say
from dbnorm_jax._src.corrections.table import GALLERY_BANK
from dbnorm_jax._src.tuning.choice import RAW

Command = tuple[str, ...]

EVALUATE_HELP: Command = ("dbnorm", "evaluate", "--help")
INSPECT_HELP: Command = ("dbnorm", "inspect", "--help")
FIT_HELP: Command = ("dbnorm", "fit", "--help")

# What `dbnorm inspect --results` reads of what `dbnorm search` writes.
_LISTS = (".npz", ".npy", ".jsonl", ".trec")
_LARGEST_NUMBER = 1000  # of outputs of one name


class Verdict(NamedTuple):
    """What was found, and the commands to go on with, each complete."""

    text: str
    steps: tuple[Command, ...] = ()
    note: str = ""  # what of them to put something else in the place of

    @property
    def lines(self) -> list[str]:
        """As they are printed: what follows `Next: ` or `Then: ` may be pasted."""
        found = [self.text]
        for place, command in enumerate(self.steps):
            found.append(f"{'Then' if place else 'Next'}: {typed(*command)}")
        return found + [f"({self.note})"] * bool(self.note and self.steps)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The files of a command as they were named; None where there is none to name again."""

    gallery: str | None = None
    query_bank: str | None = None
    gallery_bank: str | None = None
    bank_pairs: str | None = None
    queries: str | None = None
    relevant: str | None = None
    similarity: str = "cosine"
    trust_banks: bool = False

    @classmethod
    def of(cls, request: Any, **named: Any) -> "Inputs":
        """Those of a request under the same names; `named`: under others, or resolved."""
        fields = (field.name for field in dataclasses.fields(cls))
        return cls(
            **{name: getattr(request, name) for name in fields if hasattr(request, name)} | named
        )

    @property
    def banks(self) -> list[str]:
        """The options of those banks that there are, their pairs with them."""
        return _options(
            query_bank=self.query_bank, gallery_bank=self.gallery_bank, bank_pairs=self.bank_pairs
        )

    @property
    def compared_by(self) -> list[str]:
        """The option of another similarity than the default one."""
        return _options(similarity=None if self.similarity == "cosine" else self.similarity)


def tell(verdict: Verdict, *, apart: bool = True, to_stderr: bool = False) -> None:
    """Prints it, `apart` from what was printed before."""
    for line in [""] * apart + verdict.lines:
        say(line, to_stderr=to_stderr)


# --- of a table ----------------------------------------------------------------------------------


def of_table(rows: Sequence[ResultRow], inputs: Inputs) -> Verdict:
    """Of raw and what stands beside it; told is `auto`, or else what pictures show."""
    raw = rows[0]
    told = next((row for row in rows if row.method.kind == "auto"), None) or shown_row(rows)
    if told is None:
        return Verdict("Raw alone was run.", _steps([*_evaluation(inputs)]))
    if told.choice is not None and told.choice.name == RAW:
        return Verdict(f"auto keeps {told.choice.reason}.", _searches(inputs, None))
    text = f"{told.method.label} {_change(raw, told)}"
    if not _is_better(raw, told):
        return Verdict(f"{text} Raw is the safer one here.", _searches(inputs, None))
    fit = fit_command(inputs, told.method)
    if fit is not None:
        first = _steps(fit)
        return Verdict(text, (*first, *_searches(inputs, fit[-1])) if first else ())
    row, known = KINDS[told.method.kind], inputs.gallery is not None
    function = row.function if hasattr(dbn, row.function) else f"baselines.{row.function}"
    made = f" dbnorm fit does not make it; dbnorm_jax.{function} does." * known
    return Verdict(text + made, _steps([*FIT_HELP]))


def of_inspection(found: str, rows: Sequence[ResultRow], inputs: Inputs) -> Verdict:
    """Of the hubs; `found`: how many there are and who is rescued."""
    text, steps, _ = of_table(rows, inputs)
    return Verdict(f"{found} {text}", steps if inputs.gallery else (EVALUATE_HELP,))


def _change(raw: ResultRow, row: ResultRow) -> str:
    """What a row has over raw: a sentence without its subject."""
    if math.isnan(row.gain):
        return (
            f"brings the skewness of the k-occurrence from {raw.skewness:.2f} to "
            f"{row.skewness:.2f}. What that gains is not known without right items (--relevant)."
        )
    interval = f"± {row.gain_interval:.1f} points of R@1"
    won, lost = (len(queries) for queries in changed(raw, row))
    if abs(row.gain) <= row.gain_interval:
        text = f"changes nothing that these queries show: {row.gain:+.1f} {interval}"
    else:
        text = f"{'gains' if row.gain > 0 else 'loses'} {abs(row.gain):.1f} {interval}"
    if row.choice is not None and row.choice.guarantee.recall_at_1 > -1:
        least = 100 * row.choice.guarantee.recall_at_1
        text += f", at least {least:+.1f} on queries like the bank's (95 %)"
    return f"{text}; {won:,} queries won, {lost:,} lost."


def _is_better(raw: ResultRow, row: ResultRow) -> bool:
    """Whether it is to be fitted: clearly better here, or proven by pairs and not worse here."""
    if math.isnan(row.gain):
        return row.skewness < raw.skewness
    least = -row.gain_interval if row.choice is not None else row.gain_interval
    return row.gain > least


# --- the commands --------------------------------------------------------------------------------


def fit_command(
    inputs: Inputs, method: Method | None, *, choice: str | None = None
) -> list[str] | None:
    """`dbnorm fit` of a method; its output is the last word. None where there is no such command.

    `choice`: the file of one, in the place of a method.
    """
    if inputs.gallery is None or inputs.query_bank is None:
        return None
    words = ["dbnorm", "fit", inputs.gallery]
    if choice is not None:
        words += [*inputs.banks, "--choice", choice]
    elif method is None or method.kind == "auto":
        if inputs.bank_pairs is None:
            return None
        words += [*inputs.banks, *["--trust-banks"] * inputs.trust_banks]
    else:
        options = _method_options(inputs, method)
        if options is None:
            return None
        words += options
    return [*words, *inputs.compared_by, "--output", _unused("correction.npz")]


def _method_options(inputs: Inputs, method: Method) -> list[str] | None:
    """As `dbnorm fit` takes them; None where it has no such method or parameter."""
    kind, known = method.kind, method.about.defaults
    if kind not in file_methods():
        return None
    others = {name: value for name, value in method.options if name != "k"}
    if any(value != known[name] for name, value in others.items()):
        return None
    bank = inputs.gallery_bank if GALLERY_BANK in method.about.needs else None
    words = _options(query_bank=inputs.query_bank, gallery_bank=bank, method=kind)
    for name in ("beta_query", "beta_gallery"):
        value = getattr(method, name)
        if value is not None and (inputs.similarity != "cosine" or value != known[name]):
            words += [f"--{name.replace('_', '-')}", _number(value)]
    k = dict(method.options).get("k", known.get("k", 0.0))
    return words + ["-k", _number(k)] * (k != known.get("k", 0.0))


def _searches(
    inputs: Inputs, correction: str | None, options: Sequence[str] = ()
) -> tuple[Command, ...]:
    """`dbnorm search` for the queries, where they are named."""
    if inputs.queries is None or inputs.gallery is None:
        return ()
    how = inputs.compared_by if correction is None else ["--correction", correction]
    words = ["dbnorm", "search", inputs.queries, inputs.gallery, *how, *options]
    return _steps([*words, "--output", _unused("found.npz")])


def _evaluation(inputs: Inputs) -> Command:
    if inputs.queries is None or inputs.gallery is None or inputs.query_bank is None:
        return EVALUATE_HELP
    more = [*inputs.banks, *_options(relevant=inputs.relevant), *inputs.compared_by]
    return ("dbnorm", "evaluate", inputs.queries, inputs.gallery, *more)


def _steps(words: Sequence[str]) -> tuple[Command, ...]:
    """The command as the only step; none where a file came through a pipe and is gone."""
    piped = any(word == "-" or word.startswith("-:") for word in words)
    return () if piped else (tuple(words),)


def _options(**named: str | None) -> list[str]:
    given = {f"--{name.replace('_', '-')}": value for name, value in named.items()}
    return [
        word for option, value in given.items() if value is not None for word in (option, value)
    ]


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _unused(name: str) -> str:
    """The name, or another where something is there: what is typed next must not be refused."""
    path = Path(name)
    for number in range(2, _LARGEST_NUMBER):
        if not path.exists():
            break
        path = path.with_name(f"{Path(name).stem}-{number}{path.suffix}")
    return str(path)


# --- of the commands that make something ---------------------------------------------------------


def of_choice(choice: dbn.tuning.Choice, inputs: Inputs, output: str | None) -> Verdict:
    """Of `dbnorm tune`; `output`: where it wrote the choice."""
    note = ""
    if inputs.gallery is None:
        note = f"{inputs.gallery_bank} stands in for your gallery"
        inputs = dataclasses.replace(inputs, gallery=inputs.gallery_bank)
    if choice.name != RAW:
        fit = fit_command(inputs, None, choice=output)
        return Verdict(f"Proven {choice.guaranteed}.", _steps(fit or FIT_HELP), note)
    if inputs.bank_pairs is None:
        fit = fit_command(inputs, Method("csls", options=(("k", KINDS["csls"].defaults["k"]),)))
        text = "Raw is kept, as nothing is proven without --bank-pairs. CSLS needs no choice."
        return Verdict(text, _steps(fit or FIT_HELP), note)
    words = ["dbnorm", "inspect", inputs.gallery or "", *inputs.banks, *inputs.compared_by]
    pairs = words.index("--bank-pairs")
    del words[pairs : pairs + 2]  # of use to screen by, and for auto
    return Verdict(f"Raw is kept: {choice.reason.removeprefix('raw: ')}.", _steps(words), note)


def of_fit(text: str, inputs: Inputs, output: str, *, statistics: bool) -> Verdict:
    """Of `dbnorm fit`; `text`: what it made, `statistics`: of a part of a bank."""
    assert inputs.gallery is not None
    if statistics:
        return Verdict(text, of_statistics(inputs.gallery, output, inputs.similarity))
    searches = _searches(dataclasses.replace(inputs, queries=inputs.query_bank), output)
    if searches:
        return Verdict(text, searches, f"your queries in the place of {inputs.query_bank}")
    words = ["dbnorm", "export", inputs.gallery, "--correction", output]
    return Verdict(text, _steps([*words, "--output", _unused("index")]))


def of_statistics(gallery: str, output: str, similarity: str) -> tuple[Command, ...]:
    """What comes after the statistics of a bank."""
    words = ["dbnorm", "fit", gallery, "--query-statistics", output, "--method", "is"]
    words += Inputs(similarity=similarity).compared_by
    return _steps([*words, "--output", _unused("correction.npz")])


def of_search(
    text: str,
    inputs: Inputs,
    correction: str | None,
    output: Path | None,
    *,
    options: Sequence[str],
    num_items: int | None,
) -> Verdict:
    """Of `dbnorm search`; `num_items`: of the gallery, None where the output names them all.

    `options`: those given beside, for the same search once more, into a file.
    """
    if output is None:
        return Verdict(text, _searches(inputs, correction, options))
    if output.suffix not in _LISTS:
        return Verdict(text, (INSPECT_HELP,))
    count = _options(num_items=None if num_items is None else str(num_items))
    return Verdict(text, (("dbnorm", "inspect", "--results", str(output), *count),))


def of_export(text: str, readme: Path) -> Verdict:
    """Of `dbnorm export`, whose README has what comes next."""
    return Verdict(text, (("cat", str(readme)),))


def of_results(found: Popularity) -> Verdict:
    """Of `dbnorm inspect --results`."""
    total = len(found.order) if found.num_items is None else found.num_items
    text = (
        f"{found.num_hubs:,} of {total:,} items take {found.hub_occurrence:.0f} % of all places. "
        f"With the embeddings, dbnorm inspect says who makes them hubs."
    )
    return Verdict(text, (INSPECT_HELP,))
