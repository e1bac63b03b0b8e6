"""`dbnorm evaluate`: the same comparison on the user's files. All checks come before any work."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dbnorm_jax._cli.commands.options import check, given
from dbnorm_jax._cli.measuring.methods import (
    DEFAULT,
    DEFAULT_BETAS,
    KINDS,
    WITHOUT_PAIRS,
    Method,
    Wish,
    checked_beta,
    make_method,
    parse,
    with_rows_for,
)
from dbnorm_jax._cli.measuring.mistakes import mistakes_of
from dbnorm_jax._cli.measuring.story import NUM_STEPS, tell
from dbnorm_jax._cli.measuring.table_rows import (
    NEIGHBORS,
    ResultRow,
    count_steps,
    evaluate,
    num_transductive,
)
from dbnorm_jax._cli.reading import sets
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.arrays import read_embeddings, read_set, read_together
from dbnorm_jax._cli.reading.names import labels_given
from dbnorm_jax._cli.reading.relevant import read_relevant
from dbnorm_jax._cli.reading.sets import EvaluationSet, SimilaritySet, Test
from dbnorm_jax._cli.showing.output import sink_of
from dbnorm_jax._cli.showing.progress import Progress
from dbnorm_jax._cli.showing.report import FILES, contents, print_paths, require
from dbnorm_jax._cli.showing.table import Report, content, show
from dbnorm_jax._cli.showing.terminal import say_json, say_warnings
from dbnorm_jax._cli.showing.verdict import Inputs, of_table
from dbnorm_jax._cli.showing.verdict import tell as tell_verdict
from dbnorm_jax._src.corrections import table


@dataclasses.dataclass(frozen=True)
class Shared:
    """The options that `inspect` has too, by their names."""

    query_bank: str | None = None
    gallery_bank: str | None = None
    relevant: str | None = None
    bank_pairs: str | None = None
    trust_banks: bool = False
    labels: str | None = None
    bank_labels: str | None = None
    query_labels: str | None = None
    similarity: str | None = None
    beta_query: float | None = None
    beta_gallery: float | None = None
    output: Path | None = None
    force: bool = False
    as_json: bool = False

    @property
    def measure(self) -> str:
        """The similarity function; None means the default."""
        return self.similarity or "cosine"


@dataclasses.dataclass(frozen=True)
class Request(Shared):
    """All options, by their names."""

    files: tuple[str, ...] = ()
    methods: str | None = None
    methods_option: str = "--methods"
    reverse: bool = False
    similarities: str | None = None
    query_bank_similarities: str | None = None
    gallery_bank_similarities: str | None = None


def run(request: Request) -> None:
    """Checks, reads, evaluates, prints and, with --output, writes."""
    require(*["rich"] * (not request.as_json), *["matplotlib"] * (request.output is not None))
    _check_combination(request)
    methods = chosen_methods(request)
    for name in given(request, *DEFAULT_BETAS):
        check_taken(request, name, methods)
    check_trust(request, methods)
    sink = sink_of(request, names=FILES)
    with Progress(count_steps(methods) + (sink is not None) * NUM_STEPS) as progress:
        test = _read(request)
        methods = _without_pairs(request, test, methods)
        methods = [with_rows_for(method, test.sizes, "--methods") for method in methods]
        rows = evaluate(test, methods, progress)
        unknown = "No right items are known, so the retrieval columns are empty: give --relevant."
        report = report_of(test, rows, *remarks(test), *[unknown] * (test.relevant is None))
        verdict = of_table(rows, _inputs(request, test))
        paths: list[Path] = []
        if sink is not None:
            story = tell(test, rows, progress)
            paths = sink.write(contents(report, test, story, _command(request), verdict))
    if request.as_json:
        say_json(content(report))
    else:
        show(report)
    say_warnings(report.warnings)
    print_paths(paths, to_stderr=request.as_json)
    if not request.as_json:
        tell_verdict(verdict)


def inputs_of_set(file: str, test: EvaluationSet) -> Inputs:
    """The members of a set as files, under the similarity it was read for."""
    return Inputs(
        gallery=f"{file}:gallery",
        query_bank=f"{file}:query_bank",
        gallery_bank=None if test.gallery_bank is None else f"{file}:gallery_bank",
        bank_pairs=None if test.bank_pairs is None else f"{file}:bank_pair",
        queries=f"{file}:query",
        similarity=test.similarity,
        trust_banks=test.trust_banks,
    )


def _inputs(request: Request, test: Test) -> Inputs:
    """What a next command can name: nothing of matrices."""
    if not isinstance(test, EvaluationSet):
        return Inputs()
    if len(request.files) == 1:
        found = inputs_of_set(request.files[0], test)
    else:
        queries, gallery = request.files
        found = Inputs.of(request, queries=queries, gallery=gallery, similarity=request.measure)
    if not request.reverse:
        return found
    return dataclasses.replace(
        found,
        gallery=found.queries,
        query_bank=found.gallery_bank,
        gallery_bank=found.query_bank,
        queries=found.gallery,
        relevant=None,
        # A file of pairs says it of the other bank.
        bank_pairs=found.bank_pairs if found.bank_pairs == "rows" else None,
    )


def _command(request: Request) -> list[str]:
    """The command that was given, but for where it wrote."""
    command = ["dbnorm", "evaluate", *request.files]
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if value == field.default or field.name in ("files", "output", "force", "as_json"):
            continue
        command.append(f"--{field.name.replace('_', '-')}")
        if value is not True:
            text = str(value)
            command.append(text.removesuffix(".0") if isinstance(value, float) else text)
    return command


def _check_combination(request: Request) -> None:
    """Which options go together, before any file is opened."""
    count, matrices = len(request.files), request.similarities is not None
    beside = given(request, "query_bank", "gallery_bank", "bank_pairs")
    beside += given(request, "labels", "bank_labels", "query_labels", "similarity", "reverse")
    beside += ["QUERIES or GALLERY"] * bool(count)
    lonely = given(request, "query_bank_similarities", "gallery_bank_similarities")[:1]
    apart = given(request, "query_bank", "gallery_bank", "relevant", "bank_pairs")
    check(
        (
            matrices and beside,
            f"--similarities: expected matrices alone, got {', '.join(beside)}; leave that out",
        ),
        (
            matrices and request.query_bank_similarities is None,
            "--query-bank-similarities: expected the query bank x gallery matrix beside "
            "--similarities, got none; name the file",
        ),
        (
            not matrices and lonely,
            f"{''.join(lonely)}: expected --similarities beside it, got none; name the queries x "
            f"gallery file",
        ),
        (
            count == 1 and apart,
            f"SET.npz: expected all arrays in the set, got {', '.join(apart)} beside it; leave "
            f"that out, or give QUERIES and GALLERY",
        ),
        (
            not matrices and count not in (1, 2),
            f"evaluate: expected SET.npz, or QUERIES and GALLERY, or --similarities, got {count} "
            f"files; see dbnorm evaluate --help",
        ),
        (
            request.reverse and request.bank_labels is not None,
            "--bank-labels: expected no --reverse, under which another bank is the query bank, got "
            "both; leave one out",
        ),
        (
            count == 2 and request.query_bank is None,
            "--query-bank: expected a file of other items like the queries, got none; it is what "
            "hubs are learnt from; training queries serve well",
        ),
    )


def check_taken(request: Shared, option: str, methods: Sequence[Method]) -> None:
    """Raises where a beta is given that no method takes."""
    name = option[2:].replace("-", "_")
    if all(getattr(method, name) != getattr(request, name) for method in methods):
        found = ", ".join(method.label for method in methods)
        raise ValueError(
            f"{option}: expected a method that takes it, got {found}; leave it out, or name one"
        )


def check_trust(request: Shared, methods: Sequence[Method]) -> None:
    """Raises where banks are to be trusted and `auto`, which alone asks, is not there."""
    if request.trust_banks and all(method.kind != "auto" for method in methods):
        found = ", ".join(method.label for method in methods)
        raise ValueError(f"--trust-banks: expected auto among the methods, got {found}; name it")


def chosen_methods(request: Request) -> list[Method]:
    """The methods asked for with their parameters, checked."""
    unpaired = request.bank_pairs is None and len(request.files) != 1
    default = WITHOUT_PAIRS if unpaired else DEFAULT
    text = ",".join(default) if request.methods is None else request.methods
    wishes = parse(text, request.methods_option)
    methods = {Method("raw"): None}
    for wish in wishes:
        obstacle = _obstacle(request, wish)
        if obstacle is None:
            methods[_method(request, wish)] = None
        elif wish.by_name and request.methods is not None:
            option = f"{request.methods_option} {wish.kind}"
            expected, actual, remedy = obstacle
            raise ValueError(f"{option}: expected {expected}, got {actual}; {remedy}")
    return list(methods)


def _without_pairs(request: Request, test: Test, methods: list[Method]) -> list[Method]:
    """Of the default methods of a set, which only reading shows to hold no pairs, those left."""
    if request.methods is not None or getattr(test, "bank_pairs", None) is not None:
        return methods
    left = [method for method in methods if method.kind in ("raw", *WITHOUT_PAIRS)]
    for name in given(request, *DEFAULT_BETAS):
        check_taken(request, name, left)
    check_trust(request, left)
    return left


def _obstacle(request: Request, wish: Wish) -> tuple[str, str, str] | None:
    """What keeps a method from running on this input: expected, actual, remedy."""
    about = KINDS[wish.kind]
    matrices = request.similarities is not None
    if table.VECTORS in about.needs and matrices:
        return "embeddings", "matrices", "leave it out"
    if table.GALLERY_BANK in about.needs and matrices and not request.gallery_bank_similarities:
        remedy = "name the file, or leave it out"
        return "--gallery-bank-similarities, a gallery bank x gallery matrix", "none", remedy
    if table.INNER_PRODUCTS in about.needs and request.measure == "euclidean":
        return "cosine or dot similarity", "euclidean", "leave it out"
    if table.DISTANCES in about.needs and request.measure == "dot":
        return "cosine or euclidean similarity", "dot", "leave it out"
    for one in about.parameters:
        known = one.unit != table.SIMILARITY or one.name in wish.parameters
        if not known and (matrices or request.measure != "cosine"):
            remedy = f"write {wish.kind}:{one.name}=T, in the unit of similarity"
            return f"a {one.name}, which only cosines have a default for", "none", remedy
    return None


def _method(request: Request, wish: Wish) -> Method:
    measure = request.measure if request.similarities is None else "given"
    betas = {
        name: checked_beta(name, getattr(request, name), measure)
        for name in DEFAULT_BETAS
        if name in KINDS[wish.kind].defaults and name not in wish.parameters
    }
    return make_method(wish.kind, betas | wish.parameters, None, None)


def _read(request: Request) -> EvaluationSet | SimilaritySet:
    """The set to evaluate: every file opened and its shape compared before values are read."""
    if request.similarities is not None:
        return _read_matrices(request)
    named = {
        "queries": ("QUERIES", request.files[0]),
        "gallery": ("GALLERY", request.files[-1]),
        "query_bank": ("--query-bank", request.query_bank),
        "gallery_bank": ("--gallery-bank", request.gallery_bank),
    }
    test = read_files(request, request.files[0], named)
    return sets.reversed_set(test) if request.reverse else test


def read_files(
    request: Shared, file: str, named: Mapping[str, tuple[str, str | None]]
) -> EvaluationSet:
    """A set in one file, where there is no query bank, or those named; with the labels given."""
    labels = labels_given(request)
    if request.query_bank is None:
        test = read_set(file, request.measure, labels)
    else:
        test = read_embeddings(
            named,
            request.measure,
            relevant=request.relevant,
            bank_pairs=request.bank_pairs,
            labels=labels,
        )
    return dataclasses.replace(test, trust_banks=request.trust_banks)


def _read_matrices(request: Request) -> SimilaritySet:
    found = read_together(
        {
            "--similarities": request.similarities,
            "--query-bank-similarities": request.query_bank_similarities,
            "--gallery-bank-similarities": request.gallery_bank_similarities,
        },
        "gallery items",
    )
    (first, array), *_ = found.values()
    num_queries, num_gallery = array.shape
    relevant = None
    if num_queries == num_gallery:
        relevant = sets.Relevance(sets.rows_relevant(num_queries))
    if request.relevant is not None:
        source = Source.parse("--relevant", request.relevant)
        relevant = read_relevant(source, num_queries, num_gallery)
    matrices = [sets.prepared_matrix(str(source), array) for source, array in found.values()]
    return SimilaritySet(
        name=first.title,
        similarities=matrices[0],
        query_bank=matrices[1],
        gallery_bank=matrices[2] if len(matrices) > 2 else None,
        **sets.told(relevant),
    )


def report_of(
    test: EvaluationSet | SimilaritySet, rows: Sequence[ResultRow], *notes: str
) -> Report:
    """What there is to say of a set, after the remarks of the methods the notes."""
    similarity, own_gallery_bank = "as given in matrices", False
    if isinstance(test, EvaluationSet):
        similarity, own_gallery_bank = test.similarity, test.gallery_bank is None
    beta = _common(row.method.beta_query for row in rows)
    return Report(
        name=test.name,
        similarity=similarity,
        sizes=test.sizes,
        beta_query=beta,
        beta_gallery=_common(row.method.beta_gallery for row in rows),
        own_gallery_bank=own_gallery_bank,
        num_equal_rows=num_transductive(test),
        k=min(NEIGHBORS, test.sizes["gallery"]),
        rows=rows,
        notes=(*(row.remark for row in rows if row.remark), *notes),
        warnings=mistakes_of(test, rows, beta),
    )


def remarks(test: EvaluationSet | SimilaritySet) -> list[str]:
    """What was passed over of the right items, and the queries without any."""
    said = [*test.remarks]
    if test.relevant is not None:
        counts = np.diff(test.relevant[0])
        if left_out := int((counts == 0).sum()):
            said.append(
                f"{left_out:,} of {len(counts):,} queries have no right item and are left out."
            )
    return said


def _common(betas: Iterable[float | None]) -> float | None:
    """The beta of all methods that have one; None where they differ."""
    values = {beta for beta in betas if beta is not None}
    return values.pop() if len(values) == 1 else None
