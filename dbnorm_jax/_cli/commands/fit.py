"""`dbnorm fit`: a correction from files of any size, in sittings of any length."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.commands.options import check
from dbnorm_jax._cli.measuring.choosing import choose
from dbnorm_jax._cli.measuring.methods import DEFAULT_BETAS, checked_beta, file_methods
from dbnorm_jax._cli.reading import large, sets
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.arrays import read_pairs
from dbnorm_jax._cli.reading.corrections import State, read_state
from dbnorm_jax._cli.reading.large import Rows
from dbnorm_jax._cli.showing.output import Sink
from dbnorm_jax._cli.showing.progress import RowProgress
from dbnorm_jax._src.corrections.table import BETA_QUERY, GALLERY_BANK, TABLE, Row
from dbnorm_jax._src.files import binary
from dbnorm_jax._src.places.disk import fits
from dbnorm_jax._src.places.disk.checkpoint import Checkpoint, Fitted
from dbnorm_jax._src.places.disk.fits import Settings
from dbnorm_jax._src.places.disk.rows import DEFAULT_BLOCK_SIZE
from dbnorm_jax._src.tuning import grid


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, by their names."""

    gallery: str
    output: Path
    query_bank: str | None = None
    gallery_bank: str | None = None
    query_statistics: str | None = None
    method: str = "dualdis"
    beta_query: float | None = None
    beta_gallery: float | None = None
    k: int | None = None
    bank_pairs: str | None = None
    similarity: str = "cosine"
    seed: int = 0
    block_size: int = DEFAULT_BLOCK_SIZE
    checkpoint_every: float = 60.0
    force: bool = False
    as_json: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the method, checked and with defaults: what the result depends on, but for files."""
        row = self.row
        known: dict[str, Any] = (
            {BETA_QUERY.name: BETA_QUERY.default} if row is None else row.defaults
        )
        found: dict[str, Any] = {}
        for name in DEFAULT_BETAS:
            beta = getattr(self, name)
            made = name == BETA_QUERY.name and self.query_statistics is not None
            if self.method == "auto" or name not in known or made:
                _refuse(self, name, beta)
            else:
                found[name] = checked_beta(name, beta, self.similarity)
        if self.method == "auto":
            _refuse(self, "k", self.k)
            found["seed"] = self.seed
        elif "k" in known:
            found["k"] = self.k or int(known["k"])
        else:  # of the gates
            default = 1 if row is None or row.gated else 0
            found["k"] = default if self.k is None else self.k
            if default and not found["k"]:
                raise ValueError(f"-k: expected 1 or more with {self.method}, got 0; leave it out")
        if "weight" in known:
            found["weight"] = known["weight"]
        return found

    @property
    def row(self) -> Row | None:
        """Of the table; None for what stands beside it."""
        return TABLE.get(self.method)


def _refuse(request: Request, name: str, value: Any) -> None:
    if value is not None:
        raise ValueError(
            f"--{name.replace('_', '-')}: expected a method that has it and no statistics that it "
            f"comes with, got {request.method}; leave it out"
        )


def run(request: Request) -> None:
    """Checks, returns at once where nothing is left to do, fits, writes."""
    _check_combination(request)
    sink = _sink(request, request.output)
    for bank in ("query", "gallery"):
        _sink(request, _partial(request.output, bank))
    with sink.alone("fits"):
        work = _Work(request)
        sink.check_apart({rows.label: rows.path for rows in work.files.values()})
        if request.force:
            work.forget()
        elif work.is_done():
            _report(request, dbn.read_provenance(request.output) or {}, "is done already")
            return
        with RowProgress() as progress:
            state, provenance = work.result(progress)
        sink.save(state, provenance)
        work.forget()
        _report(request, provenance, "written")


def _sink(request: Request, path: Path) -> Sink:
    """What an earlier file holds is compared once the inputs are known."""
    replaceable = request.force or binary.found_at(path) == binary.FILE
    return Sink(path, suffixes=(".npz", ".partial"), force=replaceable)


def _report(request: Request, provenance: dict[str, Any], what: str) -> None:
    content = {"output": str(request.output), "status": what, **provenance}
    values = ", ".join(f"{name} {value:g}" for name, value in provenance["parameters"].items())
    gallery = provenance["gallery"]["rows"]
    text = f"{request.output} {what}: {provenance['method']}({values}) for {gallery:,} items"
    print(json.dumps(content, indent=2) if request.as_json else text)


def _check_combination(request: Request) -> None:
    row, rows = request.row, request.query_bank is not None
    dual = [
        name
        for name in file_methods()
        if name == "auto" or (name in TABLE and GALLERY_BANK in TABLE[name].needs)
    ]
    merged = request.query_statistics is not None
    by_rows = row is None or BETA_QUERY.name not in row.defaults
    see = "see dbnorm fit --help"
    check(
        (
            rows == merged,
            f"--query-bank: expected a file of other items like the queries, or "
            f"--query-statistics, got {'both' if rows else 'neither'}; {see}",
        ),
        (
            merged and by_rows,
            f"--method {request.method}: expected --query-bank, got --query-statistics; {see}",
        ),
        (
            request.gallery_bank is not None and request.method not in dual,
            f"--gallery-bank: expected a method with one ({', '.join(dual)}), got "
            f"{request.method}; {see}",
        ),
        (
            request.bank_pairs is not None and request.method != "auto",
            f"--bank-pairs: expected --method auto, got another; {see}",
        ),
    )


def _partial(output: Path, bank: str) -> Path:
    """Where the sums of a bank are kept until the result is written."""
    return output.with_name(f"{output.name}.{bank}-bank.partial")


class _Work:
    """What is asked for, with the files it is made from."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.parameters = request.parameters
        arguments = {
            "GALLERY": request.gallery,
            "--query-bank": request.query_bank,
            "--gallery-bank": request.gallery_bank,
        }
        opened = large.open_rows(arguments)
        names = zip(("gallery", "query_bank", "gallery_bank"), arguments, strict=True)
        self.files = {name: opened[argument] for name, argument in names if argument in opened}
        similarity_fn = large.SIMILARITY_FUNCTIONS[request.similarity]
        self.settings = Settings(similarity_fn, block_size=request.block_size)
        self.stamps = {name: rows.stamp for name, rows in self.files.items()}
        self.found: dict[str, Any] = {}  # fingerprints, as they become known
        self.exclude: dict[str, Any] = {}  # per bank, what its rows do not enter
        self.states: dict[str, tuple[str, State]] = {}
        if request.query_statistics is not None:
            self.states["query"] = _statistics_file(self.files["gallery"], request)

    def forget(self) -> None:
        """Removes what is kept for resuming."""
        for path in (_partial(self.request.output, bank) for bank in ("query", "gallery")):
            path.unlink(missing_ok=True)
            binary.remove_cut_off(path)

    def _asked(self) -> dict[str, Any]:
        pairs = self.request.bank_pairs
        return {
            "method": self.request.method,
            "parameters": self.parameters,
            "similarity": self.request.similarity,
            "block_size": self.request.block_size,
            "statistics": {bank: made.provenance for bank, (_, made) in self.states.items()},
            **({} if pairs is None else {"bank_pairs": pairs}),
        }

    def is_done(self) -> bool:
        """Whether the output holds this very result; raises where it holds another."""
        output = self.request.output
        if binary.found_at(output) is None:
            return False
        provenance = dbn.read_provenance(output) or {}
        known = {name: provenance.get(name) for name in self._asked()}
        stamps = provenance.get("stamps")
        stamped = isinstance(stamps, dict) and stamps.keys() == self.stamps.keys()
        same = known == self._asked() and stamped
        if same and stamps != self.stamps:
            same = all(
                dbn.out_of_core.fingerprint(rows.rows) == provenance.get(name)
                for name, rows in self.files.items()
            )
        if not same:
            raise ValueError(
                f"--output '{output}': expected no earlier results of other work, got a file; name "
                f"another, or allow overwriting with --force"
            )
        return True

    def result(self, progress: RowProgress) -> tuple[Any, dict[str, Any]]:
        """The state and its provenance."""
        self.progress = progress
        method, row = self.request.method, self.request.row
        more: dict[str, Any] = {}
        if method == "auto":
            choice = self._choice()
            more = {"choice": {"method": choice.name, **choice.parameters, "why": choice.reason}}
            state: Any = dbn.Correction(jnp.zeros((1, len(self.files["gallery"].rows))), None)
            if choice.name != "raw":
                state = grid.fit_chosen(choice, self)
        elif row is None:
            beta = self.parameters["beta_query"]
            state = self.statistics("query", beta, self.parameters["k"])
            more = {"parts": [self.found["query_bank"]], "beta": beta}
        else:
            # Statistics that are given have betas of their own.
            given = dict.fromkeys(DEFAULT_BETAS, 0.0) | self.parameters
            state = row.fit(
                self, **{name: given.get(name, row.defaults[name]) for name in row.defaults}
            )
        if "gallery" not in self.found:
            self.found["gallery"] = dbn.out_of_core.fingerprint(self.files["gallery"].rows)
        for label, made in self.states.values():
            large.check_fingerprint(label, made.provenance.get("gallery"), self.found["gallery"])
        files = {name: self.found.get(name) for name in self.files}
        return state, {**self._asked(), **files, "stamps": self.stamps, **more}

    def statistics(self, bank: str, beta: float, k: int) -> dbn.BankStatistics:
        """Of a bank, in one pass over its file, or those given."""
        row = self.request.row
        if row is None or "k" not in row.defaults:  # -k is of the gates
            k = self.parameters.get("k", k)
        if bank in self.states:
            return self.states[bank][1].state
        gallery = self.files["gallery"]
        rows, exclude = self.files.get(f"{bank}_bank", gallery), self.exclude.get(bank)
        if rows is gallery and exclude is None:  # each item is left out of its own sum
            exclude = np.arange(len(gallery.rows))
        report = f"{bank} bank", len(rows.rows), len(gallery.rows)
        return self._passed(fits.fit_bank, bank, rows, report, beta=beta, k=k, exclude=exclude)

    def largest(self, k: int) -> dbn.LargestSimilarities:
        """Of the query bank, in one pass over the gallery's file."""
        rows, gallery = self.files["query_bank"], self.files["gallery"]
        report = "gallery", len(gallery.rows), len(rows.rows)
        options = {"k": min(k, len(rows.rows)), "exclude": self.exclude.get("query")}
        return self._passed(fits.fit_largest, "query", rows, report, **options)

    def _passed(
        self,
        fit_pass: Callable[..., Fitted[Any]],
        bank: str,
        rows: Rows,
        report: tuple[str, int, int],
        **options: Any,
    ) -> Any:
        gallery, request = self.files["gallery"], self.request
        checkpoint = Checkpoint(
            _partial(request.output, bank),
            request.checkpoint_every,
            stamps=[rows.stamp, gallery.stamp],
        )
        with large.errors_name({"bank": rows.label, "gallery": gallery.label}):
            fitted = fit_pass(
                rows.rows,
                gallery.rows,
                self.settings,
                checkpoint=checkpoint,
                progress=self.progress.of(*report, request.block_size),
                **options,
            )
        self.found["gallery"] = fitted.gallery
        if rows is not gallery:
            self.found[f"{bank}_bank"] = fitted.bank
        return fitted.state

    def _choice(self) -> dbn.tuning.Choice:
        """Tuned on the banks, which are read whole, and on a sample of a large gallery."""
        request, pairs = self.request, None
        rows = {
            name: sets.LargeRows(file.label, file.rows, request.similarity)
            for name, file in self.files.items()
        }
        query_bank, gallery_bank = rows["query_bank"], rows.get("gallery_bank")
        if request.bank_pairs is not None:
            bank = rows["gallery"] if gallery_bank is None else gallery_bank
            pairs = read_pairs(request.bank_pairs, len(query_bank), len(bank))
        choice, self.exclude = choose(
            gallery=rows["gallery"],
            query_bank=query_bank,
            gallery_bank=gallery_bank,
            pairs=pairs,
            similarity_fn=large.PREPARED_FUNCTIONS[request.similarity],
            seed=request.seed,
        )
        return choice


def _statistics_file(gallery: Rows, request: Request) -> tuple[str, State]:
    """What names the file in errors, and what it holds."""
    source = Source.parse("--query-statistics", request.query_statistics or "")
    remedy = "make them with dbnorm fit --method statistics"
    made = read_state(source, (dbn.BankStatistics,), "BankStatistics", remedy)
    known = made.provenance.get("gallery")
    known = known or {"rows": made.state.num_gallery, "dim": gallery.rows.shape[1]}
    large.check_gallery(str(source), known, *gallery.rows.shape)
    if request.row is not None and request.row.gated and not made.state.k:
        raise source.fail("statistics with k of 1 or more", "0", "fit it anew")
    if made.similarity not in (None, request.similarity):
        expected = f"statistics under {request.similarity} similarity"
        raise source.fail(expected, made.similarity, f"give --similarity {made.similarity}")
    return str(source), made
