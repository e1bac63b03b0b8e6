"""`dbnorm inspect`: the hubs of a collection explained. All checks come before any work."""

import dataclasses
from pathlib import Path
from typing import NoReturn

from dbnorm_jax._cli.commands import evaluate
from dbnorm_jax._cli.measuring.hubs import Inspection, inspect, num_steps
from dbnorm_jax._cli.measuring.methods import Method, checked_beta
from dbnorm_jax._cli.measuring.table_rows import NEIGHBORS, num_transductive
from dbnorm_jax._cli.reading.arrays import (
    labels_given,
    read_embeddings,
    read_set,
    with_labels,
)
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._cli.showing import hub_report
from dbnorm_jax._cli.showing.output import Sink
from dbnorm_jax._cli.showing.progress import Progress
from dbnorm_jax._cli.showing.report import print_paths, require
from dbnorm_jax._cli.showing.table import Report


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, by their names."""

    file: str | None = None
    query_bank: str | None = None
    gallery_bank: str | None = None
    queries: str | None = None
    relevant: str | None = None
    labels: str | None = None
    bank_labels: str | None = None
    query_labels: str | None = None
    demo: bool = False
    similarity: str | None = None
    method: str = "is"
    beta_query: float | None = None
    beta_gallery: float | None = None
    bank_pairs: str | None = None
    top: int = 10
    false_alarm_rate: float = 0.002
    output: Path | None = None
    force: bool = False
    as_json: bool = False

    @property
    def measure(self) -> str:
        """The similarity function; None means the default."""
        return self.similarity or "cosine"

    @property
    def own_queries(self) -> bool:
        """Whether the query bank is asked itself."""
        return self.query_bank is not None and self.queries is None


def run(request: Request) -> None:
    """Checks, reads, inspects, prints and, with --output, writes."""
    require(
        *["emoji"] * request.demo,
        *["rich"] * (not request.as_json),
        *["matplotlib"] * (request.output is not None),
    )
    _check_combination(request)
    method = _method(request)
    beta = method.beta_query or _beta(request)
    sink = None
    if request.output is not None:
        sink = Sink(request.output, names=hub_report.FILES, force=request.force)
    with Progress(num_steps(method)) as progress:
        test = read(request)
        found = inspect(
            test,
            method,
            beta=beta,
            top=request.top,
            false_alarm_rate=request.false_alarm_rate,
            on_step=progress,
        )
        report = _report(request, found, method)
        paths = []
        if sink is not None:
            paths = sink.write(hub_report.contents(report, found))
    if request.as_json:
        print(hub_report.to_json(report, found), end="")
    else:
        hub_report.show(report, found)
    print_paths(paths, to_stderr=request.as_json)


def _check_combination(request: Request) -> None:
    """Which options go together, before any file is opened."""
    given = {
        "--query-bank": request.query_bank,
        "--gallery-bank": request.gallery_bank,
        "--queries": request.queries,
        "--relevant": request.relevant,
        "--bank-pairs": request.bank_pairs,
    }
    others = [name for name, value in given.items() if value is not None]
    if request.demo:
        others += labels_given(request)
        others += ["--similarity"] * (request.similarity is not None)
        others += ["a file"] * (request.file is not None)
        if others:
            _fail("--demo: expected no data beside it", ", ".join(others), "leave that out")
    elif request.file is None:
        _fail(
            "inspect: expected GALLERY with --query-bank, SET.npz, or --demo",
            "none of them",
            "see dbnorm inspect --help",
        )
    elif request.query_bank is None and others:
        _fail(
            "--query-bank: expected a file of items like the queries beside GALLERY",
            f"only {', '.join(others)}",
            "name the file; with a SET.npz leave the others out",
        )
    if request.relevant is not None and request.queries is None:
        _fail(
            "--relevant: expected --queries beside it",
            "none",
            "the bank's own queries have no right items in the gallery",
        )
    if not 0 < request.false_alarm_rate < 1:
        _fail(
            "--false-alarm-rate: expected a share between 0 and 1",
            f"{request.false_alarm_rate:g}",
            "0.002 is 0.2 %",
        )


def _as_evaluation(request: Request) -> evaluate.Request:
    """The same options where the two commands share them."""
    named = request.demo or request.query_bank is None  # a set, which may hold pairs
    return evaluate.Request(
        files=("",) if named else ("", ""),
        bank_pairs=request.bank_pairs,
        similarity=request.similarity,
        beta_query=request.beta_query,
        beta_gallery=request.beta_gallery,
        methods=request.method,
        methods_option="--method",
    )


def _method(request: Request) -> Method:
    methods = evaluate.chosen_methods(_as_evaluation(request))
    chosen = [one for one in methods if one.kind != "raw"]
    if len(chosen) != 1:
        what = ", ".join(method.name for method in chosen) or "raw"
        _fail("--method: expected one correction", what, "name one, for instance --method is")
    if chosen[0].about.transductive:
        _fail(
            "--method: expected a correction learnt from banks",
            chosen[0].name,
            "name another, for instance --method is",
        )
    return chosen[0]


def _beta(request: Request) -> float:
    """Of the bias that is explained, where the method has none of its own."""
    why = "only cosines have a default; the hubs' contributors are those of a bias"
    return checked_beta("beta_query", request.beta_query, request.measure, why)


def read(request: Request) -> EvaluationSet:
    """The set to inspect, with the labels given."""
    if request.demo:
        return emoji_names()
    assert request.file is not None
    if request.query_bank is None:
        test = read_set(request.file, request.measure)
    else:
        named = {
            "gallery": ("GALLERY", request.file),
            "query_bank": ("--query-bank", request.query_bank),
            "gallery_bank": ("--gallery-bank", request.gallery_bank),
            "queries": ("--queries", request.queries),
        }
        test = read_embeddings(
            named, request.measure, relevant=request.relevant, bank_pairs=request.bank_pairs
        )
    test = with_labels(test, request)
    if request.own_queries and test.query_labels is None:
        return dataclasses.replace(test, query_labels=test.query_bank_labels)
    return test


def _report(request: Request, found: Inspection, method: Method) -> Report:
    test = found.test
    notes = [row.remark for row in found.rows if row.remark]
    if request.own_queries:
        notes.append(
            "The queries are the query bank itself: the correction knows them. Give --queries for "
            "what it does to others."
        )
    return Report(
        name=test.name,
        similarity=test.similarity,
        sizes=test.sizes,
        beta_query=method.beta_query,
        beta_gallery=method.beta_gallery,
        own_gallery_bank=test.gallery_bank is None,
        num_equal_rows=num_transductive(test),
        k=min(NEIGHBORS, len(test.gallery)),
        rows=found.rows,
        notes=tuple(notes),
    )


def _fail(expected: str, actual: str, remedy: str) -> NoReturn:
    raise ValueError(f"{expected}, got {actual}; {remedy}")
