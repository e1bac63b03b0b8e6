"""`dbnorm inspect`: the hubs of a collection explained. All checks come before any work."""

import dataclasses

from dbnorm_jax._cli.commands import evaluate
from dbnorm_jax._cli.commands.options import check, given
from dbnorm_jax._cli.measuring.hubs import inspect, num_steps
from dbnorm_jax._cli.measuring.methods import Method, checked_beta, with_rows_for
from dbnorm_jax._cli.measuring.results import popularity
from dbnorm_jax._cli.measuring.table_rows import NEIGHBORS
from dbnorm_jax._cli.reading.argument import Source, neighbors
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.results import Results, judged, read_results, with_labels
from dbnorm_jax._cli.reading.sets import EvaluationSet
from dbnorm_jax._cli.showing import hub_report, results_report
from dbnorm_jax._cli.showing.output import sink_of
from dbnorm_jax._cli.showing.progress import Progress
from dbnorm_jax._cli.showing.report import print_paths, require
from dbnorm_jax._cli.showing.terminal import say_json, say_warnings
from dbnorm_jax._cli.showing.verdict import Inputs, of_inspection, of_results, tell


@dataclasses.dataclass(frozen=True)
class Request(evaluate.Shared):
    """The options of the command, by their names."""

    file: str | None = None
    queries: str | None = None
    demo: bool = False
    results: str | None = None
    k: int | None = None
    num_items: int | None = None
    method: str | None = None
    top: int = 10
    false_alarm_rate: float | None = None

    @property
    def own_queries(self) -> bool:
        """Whether the query bank is asked itself."""
        return self.query_bank is not None and self.queries is None


# What only embeddings have a use for, and only results.
_OF_EMBEDDINGS = (
    "demo", "query_bank", "gallery_bank", "queries", "bank_pairs", "trust_banks",
    "bank_labels", "query_labels", "similarity", "method", "beta_query", "beta_gallery",
    "false_alarm_rate",
)  # fmt: skip
_FALSE_ALARM_RATE = 0.002


def run(request: Request) -> None:
    """Checks, reads, inspects, prints and, with --output, writes."""
    if request.results is not None:
        _run_of_results(request)
        return
    require(
        *["emoji"] * request.demo,
        *["rich"] * (not request.as_json),
        *["matplotlib"] * (request.output is not None),
    )
    _check_combination(request)
    method = _method(request)
    unused = ["beta_gallery", *["beta_query"] * (method.beta_query is not None)]
    for name in given(request, *unused):
        evaluate.check_taken(request, name, [method])
    evaluate.check_trust(request, [method])
    screened = request.gallery_bank is not None and method.about.by_statistics
    if request.bank_pairs is not None and method.kind != "auto" and not screened:
        raise ValueError(
            f"--bank-pairs: expected --method auto, or a --gallery-bank and a method of statistics "
            f"to screen by, got {method.label}; leave it out"
        )
    # Of the bias that is explained, where the method has none of its own.
    why = "only cosines have a default; the hubs' contributors are those of a bias"
    beta = method.beta_query or checked_beta("beta_query", request.beta_query, request.measure, why)
    sink = sink_of(request, names=hub_report.FILES)
    with Progress(num_steps(method)) as progress:
        test = _read(request)
        method = with_rows_for(method, test.sizes, "--method")
        found = inspect(
            test,
            method,
            beta=beta,
            top=request.top,
            false_alarm_rate=_false_alarm_rate(request),
            on_step=progress,
        )
        own = (
            "The queries are the query bank itself: the correction knows them. Give --queries for "
            "what it does to others."
        )
        report = evaluate.report_of(
            test, found.rows, *evaluate.remarks(test), *[own] * request.own_queries
        )
        paths = [] if sink is None else sink.write(hub_report.contents(report, found))
    if request.as_json:
        say_json(hub_report.content(report, found))
    else:
        hub_report.show(report, found)
    say_warnings(report.warnings)
    print_paths(paths, to_stderr=request.as_json)
    if not request.as_json:
        counted = hub_report.counted(report, found)
        tell(of_inspection(counted, found.rows, _inputs(request, test)))


def _inputs(request: Request, test: EvaluationSet) -> Inputs:
    """What a next command can name: nothing of the built-in data."""
    if request.file is None:
        return Inputs()
    if request.query_bank is None:
        return evaluate.inputs_of_set(request.file, test)
    return Inputs.of(request, gallery=request.file, similarity=request.measure)


def _false_alarm_rate(request: Request) -> float:
    given_rate = request.false_alarm_rate
    return _FALSE_ALARM_RATE if given_rate is None else given_rate


def _run_of_results(request: Request) -> None:
    """What the lists of a system alone say."""
    beside = ["GALLERY"] * (request.file is not None) + given(request, *_OF_EMBEDDINGS)
    check(
        (
            beside,
            f"--results: expected the lists of a system alone, got {', '.join(beside)} beside it, "
            f"which embeddings have a use for; leave that out",
        )
    )
    require(*["rich"] * (not request.as_json))
    sink = sink_of(request, names=results_report.FILES)
    source = Source.parse("--results", request.results or "")
    results = read_results(source)
    if request.labels is not None:
        results = with_labels(results, Source.parse("--labels", request.labels))
    _check_num_items(request, results)
    longest = int(results.lengths.max())
    k = neighbors(request.k, longest, "places of the longest list", NEIGHBORS)
    right = None
    if request.relevant is not None:
        right = judged(results, Source.parse("--relevant", request.relevant), request.num_items)
    found = popularity(results, k, request.num_items, request.top, right)
    paths = [] if sink is None else sink.write(results_report.contents(found))
    if request.as_json:
        say_json(results_report.content(found))
    else:
        results_report.show(found)
    print_paths(paths, to_stderr=request.as_json)
    if not request.as_json:
        tell(of_results(found))


def _check_num_items(request: Request, results: Results) -> None:
    count = request.num_items
    if count is None:
        return
    if results.whole:
        raise ValueError(
            f"--num-items: expected results that do not name all items, got names of "
            f"{len(results.items)}; leave it out"
        )
    if count < results.num_named:
        raise ValueError(
            f"--num-items: expected at least {results.num_named}, as the results name so many "
            f"items, got {count}; give the size of the whole collection"
        )


def _check_combination(request: Request) -> None:
    """Which options go together, before any file is opened."""
    lonely = given(request, "k", "num_items")
    others = given(request, "query_bank", "gallery_bank", "queries", "relevant", "bank_pairs")
    beside = others + given(request, "labels", "bank_labels", "query_labels", "similarity")
    beside += given(request, "trust_banks") + ["a file"] * (request.file is not None)
    rate = _false_alarm_rate(request)
    check(
        (
            lonely,
            f"{', '.join(lonely)}: expected --results beside it, got none; leave it out",
        ),
        (
            request.demo and beside,
            f"--demo: expected no data beside it, got {', '.join(beside)}; leave that out",
        ),
        (
            not request.demo and request.file is None,
            "inspect: expected GALLERY with --query-bank, SET.npz, --results or --demo, got none "
            "of them; see dbnorm inspect --help",
        ),
        (
            request.query_bank is None and others,
            f"--query-bank: expected a file of items like the queries beside GALLERY, got only "
            f"{', '.join(others)}; name the file; with a SET.npz leave the others out",
        ),
        (
            request.relevant is not None and request.queries is None,
            "--relevant: expected --queries beside it, got none; the bank's own queries have no "
            "right items in the gallery",
        ),
        (
            not 0 < rate < 1,
            f"--false-alarm-rate: expected a share between 0 and 1, got {rate:g}; 0.002 is 0.2 %",
        ),
    )


def _method(request: Request) -> Method:
    one_file = request.demo or request.query_bank is None  # a set, which may hold pairs
    asked = evaluate.Request(
        files=("",) if one_file else ("", ""),
        bank_pairs=request.bank_pairs,
        similarity=request.similarity,
        beta_query=request.beta_query,
        beta_gallery=request.beta_gallery,
        methods=request.method or "is",
        methods_option="--method",
    )
    chosen = [one for one in evaluate.chosen_methods(asked) if one.kind != "raw"]
    names = ", ".join(one.name for one in chosen)
    check(
        (
            len(chosen) != 1,
            f"--method: expected one correction, got {names or 'raw'}; name one, for instance "
            f"--method is",
        ),
        (
            any(one.about.transductive for one in chosen),
            f"--method: expected a correction learnt from banks, got {names}; name another, for "
            f"instance --method is",
        ),
    )
    return chosen[0]


def _read(request: Request) -> EvaluationSet:
    """The set to inspect, with the labels given."""
    if request.demo:
        return emoji_names()
    assert request.file is not None
    named = {
        "gallery": ("GALLERY", request.file),
        "query_bank": ("--query-bank", request.query_bank),
        "gallery_bank": ("--gallery-bank", request.gallery_bank),
        "queries": ("--queries", request.queries),
    }
    test = evaluate.read_files(request, request.file, named)
    if request.own_queries and test.query_labels is None:
        return dataclasses.replace(test, query_labels=test.query_bank_labels)
    return test
