"""`dbnorm evaluate`: the same comparison on the user's files. All checks come before any work."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from dbnorm_jax._cli.measuring.methods import (
    DEFAULT,
    DEFAULT_BETAS,
    KINDS,
    Method,
    Wish,
    checked_beta,
    make_method,
    parse,
)
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
from dbnorm_jax._cli.reading.arrays import (
    labels_given,
    read_embeddings,
    read_relevant,
    read_set,
    read_together,
    with_labels,
)
from dbnorm_jax._cli.reading.sets import EvaluationSet, SimilaritySet
from dbnorm_jax._cli.showing.output import Sink
from dbnorm_jax._cli.showing.progress import Progress
from dbnorm_jax._cli.showing.report import FILES, contents, print_paths, require
from dbnorm_jax._cli.showing.table import Report, show, to_json
from dbnorm_jax._src.corrections import table


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, by their names."""

    files: tuple[str, ...] = ()
    query_bank: str | None = None
    gallery_bank: str | None = None
    relevant: str | None = None
    bank_pairs: str | None = None
    labels: str | None = None
    bank_labels: str | None = None
    query_labels: str | None = None
    similarity: str | None = None
    beta_query: float | None = None
    beta_gallery: float | None = None
    methods: str | None = None
    methods_option: str = "--methods"
    published: bool = False
    reverse: bool = False
    similarities: str | None = None
    query_bank_similarities: str | None = None
    gallery_bank_similarities: str | None = None
    output: Path | None = None
    force: bool = False
    as_json: bool = False

    @property
    def measure(self) -> str:
        """The similarity function; None means the default."""
        return self.similarity or "cosine"


def run(request: Request) -> None:
    """Checks, reads, evaluates, prints and, with --output, writes."""
    require(*["rich"] * (not request.as_json), *["matplotlib"] * (request.output is not None))
    _check_combination(request)
    methods = chosen_methods(request)
    sink = None
    if request.output is not None:
        sink = Sink(request.output, names=FILES, force=request.force)
    with Progress(count_steps(methods) + (sink is not None) * NUM_STEPS) as progress:
        test = read(request)
        if request.methods is None and getattr(test, "bank_pairs", None) is None:
            methods = [method for method in methods if method.kind != "auto"]
        rows = evaluate(test, methods, progress)
        report = _report(request, test, methods, rows)
        paths = []
        if sink is not None:
            story = tell(test, rows, progress)
            paths = sink.write(contents(report, test, story, _command(request)))
    if request.as_json:
        print(to_json(report), end="")
    else:
        show(report)
    print_paths(paths, to_stderr=request.as_json)


def _command(request: Request) -> list[str]:
    """The command that was given, but for where it wrote."""
    command = ["dbnorm", "evaluate", *request.files]
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if value == field.default or field.name in ("files", "output", "force", "as_json"):
            continue
        command.append(f"--{field.name.replace('_', '-')}")
        if value is not True:
            command.append(f"{value:g}" if isinstance(value, float) else str(value))
    return command


def _check_combination(request: Request) -> None:
    """Which options go together, before any file is opened."""
    given = {
        "--query-bank": request.query_bank,
        "--gallery-bank": request.gallery_bank,
        "--relevant": request.relevant,
        "--bank-pairs": request.bank_pairs,
    }
    matrices = {
        "--query-bank-similarities": request.query_bank_similarities,
        "--gallery-bank-similarities": request.gallery_bank_similarities,
    }
    count = len(request.files)
    if request.similarities is not None:
        others = [
            name for name in ("--query-bank", "--gallery-bank", "--bank-pairs") if given[name]
        ]
        others += labels_given(request)
        others += ["--similarity"] * (request.similarity is not None)
        others += ["--reverse"] * request.reverse + ["QUERIES or GALLERY"] * bool(count)
        if others:
            _fail("--similarities: expected matrices alone", ", ".join(others), "leave that out")
        if request.query_bank_similarities is None:
            _fail(
                "--query-bank-similarities: expected the query bank x gallery matrix beside "
                "--similarities",
                "none",
                "name the file",
            )
        return
    lonely = [name for name, value in matrices.items() if value is not None]
    if lonely:
        _fail(
            f"{lonely[0]}: expected --similarities beside it",
            "none",
            "name the queries x gallery file",
        )
    if count == 1:
        others = [name for name, value in given.items() if value is not None]
        if others:
            _fail(
                "SET.npz: expected all arrays in the set",
                f"{', '.join(others)} beside it",
                "leave that out, or give QUERIES and GALLERY",
            )
    elif count != 2:
        _fail(
            "evaluate: expected SET.npz, or QUERIES and GALLERY, or --similarities",
            f"{count} files",
            "see dbnorm evaluate --help",
        )
    elif request.query_bank is None:
        _fail(
            "--query-bank: expected a file of other items like the queries",
            "none",
            "it is what hubs are learnt from; training queries serve well",
        )


def chosen_methods(request: Request) -> list[Method]:
    """The methods asked for with their parameters, checked."""
    text = ",".join(DEFAULT) if request.methods is None else request.methods
    wishes = parse(text, request.methods_option)
    if request.published:
        wishes.append(Wish("published", {}, by_name=True))
    methods = {Method("raw"): None}
    for wish in wishes:
        obstacle = _obstacle(request, wish)
        if obstacle is None:
            methods[_method(request, wish)] = None
        elif wish.by_name and (request.methods is not None or wish.kind == "published"):
            option = (
                "--published"
                if wish.kind == "published"
                else f"{request.methods_option} {wish.kind}"
            )
            _fail(f"{option}: expected {obstacle[0]}", obstacle[1], obstacle[2])
    return list(methods)


def _obstacle(request: Request, wish: Wish) -> tuple[str, str, str] | None:
    """What keeps a method from running on this input: expected, actual, remedy."""
    about = KINDS[wish.kind]
    matrices = request.similarities is not None
    # By name it runs and says why it declines; a set may hold pairs, which only reading shows.
    unpaired = request.bank_pairs is None and len(request.files) != 1
    if wish.kind == "auto" and unpaired and request.methods is None:
        return "--bank-pairs", "none", "leave it out"
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
    needed = [name for name in DEFAULT_BETAS if name in KINDS[wish.kind].defaults]
    betas = {
        name: _beta(request, name) for name in needed if name not in wish.parameters
    } | wish.parameters
    return make_method(wish.kind, betas, None, None)


def _beta(request: Request, name: str) -> float:
    given = request.beta_query if name == "beta_query" else request.beta_gallery
    measure = request.measure if request.similarities is None else "given"
    return checked_beta(name, given, measure)


def read(request: Request) -> EvaluationSet | SimilaritySet:
    """The set to evaluate: every file opened and its shape compared before values are read."""
    if request.similarities is not None:
        return _read_matrices(request)
    if len(request.files) == 1:
        test = read_set(request.files[0], request.measure)
    else:
        named = {
            "queries": ("QUERIES", request.files[0]),
            "gallery": ("GALLERY", request.files[1]),
            "query_bank": ("--query-bank", request.query_bank),
            "gallery_bank": ("--gallery-bank", request.gallery_bank),
        }
        test = read_embeddings(
            named, request.measure, relevant=request.relevant, bank_pairs=request.bank_pairs
        )
    test = with_labels(test, request)
    return sets.reversed_set(test) if request.reverse else test


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
    relevant = sets.rows_relevant(num_queries) if num_queries == num_gallery else None
    if request.relevant is not None:
        source = Source.parse("--relevant", request.relevant)
        relevant = read_relevant(source, num_queries, num_gallery)
    matrices = [sets.prepared(str(source), array, None) for source, array in found.values()]
    return SimilaritySet(
        name=first.title,
        similarities=matrices[0],
        query_bank=matrices[1],
        gallery_bank=matrices[2] if len(matrices) > 2 else None,
        relevant=relevant,
    )


def _report(
    request: Request,
    test: EvaluationSet | SimilaritySet,
    methods: Sequence[Method],
    rows: Sequence[ResultRow],
) -> Report:
    if isinstance(test, EvaluationSet):
        similarity, own_gallery_bank = request.measure, test.gallery_bank is None
    else:
        similarity, own_gallery_bank = "as given in matrices", False
    notes = [row.remark for row in rows if row.remark]
    if test.relevant is None:
        notes.append(
            "No right items are known, so the retrieval columns are empty: give --relevant."
        )
    return Report(
        name=test.name,
        similarity=similarity,
        sizes=test.sizes,
        beta_query=_common(method.beta_query for method in methods),
        beta_gallery=_common(method.beta_gallery for method in methods),
        own_gallery_bank=own_gallery_bank,
        num_equal_rows=num_transductive(test),
        k=min(NEIGHBORS, test.sizes["gallery"]),
        rows=rows,
        notes=tuple(notes),
    )


def _common(betas: Iterable[float | None]) -> float | None:
    """The beta of all methods that have one; None where they differ."""
    values = {beta for beta in betas if beta is not None}
    return values.pop() if len(values) == 1 else None


def _fail(expected: str, actual: str, remedy: str) -> NoReturn:
    raise ValueError(f"{expected}, got {actual}; {remedy}")
