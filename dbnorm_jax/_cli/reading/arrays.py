"""Sets of several inputs that belong together."""

from collections.abc import Mapping
from typing import Any

from dbnorm_jax._cli.reading import sets
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.names import read_labels
from dbnorm_jax._cli.reading.relevant import CSR, read_relevant
from dbnorm_jax._cli.reading.sets import Array, EvaluationSet
from dbnorm_jax._cli.reading.single import member_of, names_of, read_floats, read_integers


def read_pairs(given: str | Source, num_query_bank: int, num_gallery_bank: int) -> sets.Integers:
    """The gallery-bank row of each query-bank row (-1: none), of a file or as --bank-pairs says."""
    if given == "rows":
        if num_query_bank != num_gallery_bank:
            raise ValueError(
                f"--bank-pairs rows: expected banks of equal length, got {num_query_bank} and "
                f"{num_gallery_bank} rows; give a file of gallery-bank rows"
            )
        return sets.rows_relevant(num_query_bank)[1]
    source = given if isinstance(given, Source) else Source.parse("--bank-pairs", given)
    return sets.checked_pairs(str(source), read_integers(source), num_query_bank, num_gallery_bank)


def read_together(
    named: Mapping[str, str | Source | None], meaning: str = "embedding dimensions"
) -> dict[str, tuple[Source, Array]]:
    """The rows of those arguments that are given, of as many columns each; no values are read."""
    sources = {
        argument: given if isinstance(given, Source) else Source.parse(argument, given)
        for argument, given in named.items()
        if given is not None
    }
    found = {argument: (source, read_floats(source)) for argument, source in sources.items()}
    sets.check_same_columns({str(source): rows for source, rows in found.values()}, meaning)
    return found


def read_embeddings(
    named: Mapping[str, tuple[str, str | None]],
    similarity: str,
    *,
    relevant: str | None,
    bank_pairs: str | None,
    labels: Mapping[str, str],
) -> EvaluationSet:
    """A set from files apart: `named` maps a field of it to its argument and what that says."""
    read = read_together(dict(named.values()))
    parts = {field: read[argument] for field, (argument, _) in named.items() if argument in read}
    titles = [parts[field][0].title for field in ("queries", "gallery") if field in parts]
    source = None if relevant is None else Source.parse("--relevant", relevant)
    return _prepared(" -> ".join(titles), parts, similarity, source, bank_pairs, labels)


def read_set(text: str, similarity: str, labels: Mapping[str, str] | None = None) -> EvaluationSet:
    """A whole set from one file.

    It holds query, gallery and query_bank, and possibly gallery_bank, bank_pair, and gt_indptr
    with gt_indices.
    """
    source = Source.parse("SET.npz", text)
    names = names_of(source)
    if source.member is not None or names is None:
        remedy = "give a set, or the files of its parts one by one as --help says"
        raise source.fail("an npz with query, gallery and query_bank", "one array", remedy)
    members = {"queries": "query", "gallery": "gallery", "query_bank": "query_bank"}
    if "gallery_bank" in names:
        members["gallery_bank"] = "gallery_bank"
    parts = read_together(
        {field: member_of(source, name, names) for field, name in members.items()}
    )
    paired = "bank_pair" in names and "gallery_bank" in names
    pairs = member_of(source, "bank_pair", names) if paired else None
    # Many sets are folders with one data.npz each: the folder is the name.
    title = source.path.resolve().parent.name if source.title == "data" else source.title
    relevant = source if {*CSR} & {*names} else None
    return _prepared(title, parts, similarity, relevant, pairs, labels or {})


def _prepared(
    name: str,
    parts: Mapping[str, tuple[Source, Array]],
    similarity: str,
    relevant: Source | None,
    bank_pairs: str | Source | None,
    labels: Mapping[str, str],
) -> EvaluationSet:
    """A set of these parts; values are read last.

    Without queries the query bank asks, without a gallery bank the gallery stands in for it.
    Where nothing says what is relevant, row i belongs to row i if the counts agree.
    """
    sizes = {field: len(rows) for field, (_, rows) in parts.items()}
    found = read_labels(labels, {"queries": sizes["query_bank"], **sizes})
    truth = pairs = None
    if relevant is not None:
        ids = found.get("query_labels"), found.get("gallery_labels")
        truth = read_relevant(relevant, sizes["queries"], sizes["gallery"], *ids)
    elif sizes.get("queries") == sizes["gallery"]:
        truth = sets.Relevance(sets.rows_relevant(sizes["gallery"]))
    if bank_pairs is not None:
        others = sizes.get("gallery_bank", sizes["gallery"])
        pairs = read_pairs(bank_pairs, sizes["query_bank"], others)
    called: dict[str, Any] = {field: tuple(map(str, one.names)) for field, one in found.items()}
    embeddings = {
        field: sets.prepared(str(source), rows, similarity)
        for field, (source, rows) in parts.items()
    }
    return EvaluationSet(
        name,
        embeddings.get("queries", embeddings["query_bank"]),
        embeddings["gallery"],
        embeddings["query_bank"],
        embeddings.get("gallery_bank"),
        bank_pairs=pairs,
        similarity=similarity,
        **sets.told(truth),
        **called,
    )
