"""`dbnorm merge`: statistics of parts of a bank, made anywhere, as those of the whole."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading import large
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.corrections import read_state
from dbnorm_jax._cli.showing.output import Sink
from dbnorm_jax._cli.showing.terminal import say, say_json
from dbnorm_jax._cli.showing.verdict import FIT_HELP, Verdict, of_statistics, tell


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, by their names."""

    files: tuple[str, ...]
    output: Path
    allow_repeats: bool = False
    force: bool = False
    as_json: bool = False


class _Part(NamedTuple):
    label: str
    state: dbn.BankStatistics | dbn.LargestSimilarities
    provenance: Mapping[str, Any]
    similarity: str | None


def run(request: Request) -> None:
    """Reads, compares, merges, writes and says what was merged."""
    if len(request.files) < 2:
        raise ValueError("merge: expected two files or more, got fewer; see dbnorm merge --help")
    sink = Sink(request.output, suffixes=(".npz",), force=request.force)
    parts = [_read(name) for name in request.files]
    for part in parts[1:]:
        _compare(parts[0], part)
    if not request.allow_repeats:
        _check_repeats(parts)
    merged = functools.reduce(_merged, parts)
    provenance = merged.provenance
    sink.save(merged.state, provenance)
    beta = getattr(merged.state, "beta", None)
    summary: dict[str, Any] = {
        "output": str(request.output),
        "kind": type(merged.state).__name__,
        "num_gallery": merged.state.num_gallery,
        "k": merged.state.k,
        "beta": None if beta is None else beta.tolist(),
        "bank_rows": [part["rows"] for part in provenance["parts"]],
        "not_compared": [part.label for part in parts if "gallery" not in part.provenance],
    }
    for name in summary["not_compared"]:
        say(f"dbnorm: {name} does not say of what gallery: not compared", to_stderr=True)
    rows = " + ".join(f"{count:,}" for count in summary["bank_rows"]) or "unknown"
    betas = "" if beta is None else f"beta {beta.tolist()}, "
    text = (
        f"wrote {request.output}: {summary['kind']} of {rows} bank rows, {betas}k "
        f"{summary['k']}, {summary['num_gallery']:,} gallery items"
    )
    if request.as_json:
        say_json(summary)
    else:
        tell(Verdict(text, _next(merged, str(request.output))), apart=False)


def _next(merged: "_Part", output: str) -> tuple[tuple[str, ...], ...]:
    """A fit of the gallery that the parts name, where its file is found from here."""
    gallery = merged.provenance.get("gallery_file")
    found = isinstance(gallery, str) and Path(gallery).exists()
    if not found or not isinstance(merged.state, dbn.BankStatistics):
        return (FIT_HELP,)
    return of_statistics(str(gallery), output, merged.similarity or "cosine")


def _read(text: str) -> _Part:
    source, remedy = Source.parse("", text), "merge those, then fit with --query-statistics"
    kinds = (dbn.BankStatistics, dbn.LargestSimilarities)
    found = read_state(source, kinds, "statistics of a bank", remedy)
    return _Part(str(source), found.state, found.provenance, found.similarity)


def _compare(first: _Part, other: _Part) -> None:
    galleries = (_rows_of(part.provenance.get("gallery")) for part in (first, other))
    pairs = ("gallery", *galleries), ("similarity", first.similarity, other.similarity)
    for meaning, known, found in pairs:
        if known is not None and found is not None and known != found:
            raise ValueError(
                f"{other.label}: expected the {meaning} of {first.label}, {known}, got {found}; "
                f"only statistics of one {meaning} merge"
            )


def _rows_of(gallery: Mapping[str, Any] | None) -> str | None:
    """What tells one gallery from another."""
    return None if gallery is None else f"{gallery['rows']} rows with SHA-256 {gallery['sha256']}"


def _check_repeats(parts: Sequence[_Part]) -> None:
    seen: dict[str, str] = {}
    for part in parts:
        for bank in part.provenance.get("parts", ()):
            if bank["sha256"] in seen:
                raise ValueError(
                    f"{part.label}: expected bank rows that are not in {seen[bank['sha256']]} "
                    f"already, got the same {bank['rows']} rows; leave one out, or count them "
                    f"twice with --allow-repeats"
                )
            seen[bank["sha256"]] = part.label


def _merged(first: _Part, second: _Part) -> _Part:
    with large.errors_name({"first": first.label, "others[0]": second.label}):
        state: Any = dbn.merge(first.state, second.state)  # type: ignore[type-var]
    of_one = ("query_bank", "stamps")  # what one part alone was made from
    known = {**second.provenance, **first.provenance}
    known = {name: value for name, value in known.items() if name not in of_one}
    both = [*first.provenance.get("parts", ()), *second.provenance.get("parts", ())]
    similarity = first.similarity or second.similarity
    return _Part(first.label, state, known | {"parts": both}, similarity)
