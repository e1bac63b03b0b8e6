"""`dbnorm fit`: a correction from files of any size, in sittings of any length."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.commands.options import check
from dbnorm_jax._cli.measuring.choosing import choose, described, left_out
from dbnorm_jax._cli.measuring.methods import DEFAULT_BETAS, checked_beta, file_methods
from dbnorm_jax._cli.measuring.mistakes import mistakes_of_rows
from dbnorm_jax._cli.measuring.sources import in_memory
from dbnorm_jax._cli.reading import large, sets
from dbnorm_jax._cli.reading.argument import Source, neighbors
from dbnorm_jax._cli.reading.arrays import read_pairs
from dbnorm_jax._cli.reading.corrections import State, read_choice, read_state, read_statistics
from dbnorm_jax._cli.reading.large import Rows
from dbnorm_jax._cli.showing.output import Sink
from dbnorm_jax._cli.showing.progress import RowProgress
from dbnorm_jax._cli.showing.terminal import say, say_json, say_warnings
from dbnorm_jax._cli.showing.verdict import Inputs, of_fit, tell
from dbnorm_jax._src.core.similarity import SIMILARITY_FUNCTIONS
from dbnorm_jax._src.core.text import printable
from dbnorm_jax._src.corrections.streamed import Streamed
from dbnorm_jax._src.corrections.table import BETA_QUERY, GALLERY_BANK, TABLE, Row
from dbnorm_jax._src.files import binary
from dbnorm_jax._src.files import provenance as provenances
from dbnorm_jax._src.places.disk import fits
from dbnorm_jax._src.places.disk.checkpoint import Checkpoint, Fitted
from dbnorm_jax._src.places.disk.fits import Settings
from dbnorm_jax._src.places.disk.rows import DEFAULT_BLOCK_SIZE, Fingerprint
from dbnorm_jax._src.tuning.choice import RAW
from dbnorm_jax._src.tuning.mixture import fit_chosen, missing, needs_whole_banks

Parameters = dict[str, Any]

CHOICE = "choice"  # the method, where --choice names a file of it
_CHOOSING = ("auto", CHOICE)
# Each keeps a checkpoint of its own.
_PASSES = ("query-bank", "gallery-bank", "largest")


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, by their names."""

    gallery: str
    output: Path
    query_bank: str | None = None
    gallery_bank: str | None = None
    query_statistics: str | None = None
    method: str | None = None
    choice: str | None = None
    beta_query: float | None = None
    beta_gallery: float | None = None
    k: int | None = None
    bank_pairs: str | None = None
    trust_banks: bool = False
    similarity: str = "cosine"
    seed: int | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    checkpoint_every: float = 60.0
    force: bool = False
    as_json: bool = False

    def parameters(self, made: dbn.BankStatistics | None, sizes: Mapping[str, int]) -> Parameters:
        """Of the method, checked and with defaults: what the result depends on, but for files.

        `made`: the statistics of the query bank that are given; `sizes`: rows of the files.
        """
        row = self.row
        known: dict[str, Any] = (
            {BETA_QUERY.name: BETA_QUERY.default} if row is None else row.defaults
        )
        found: Parameters = {}
        for name in DEFAULT_BETAS:
            beta = getattr(self, name)
            given = name == BETA_QUERY.name and made is not None
            if self.method in _CHOOSING or name not in known or given:
                _refuse(self, name, beta)
            else:
                found[name] = checked_beta(name, beta, self.similarity)
        if self.method == "auto":
            _refuse(self, "k", self.k)
            found["seed"] = self.seed or 0
            found |= {"trust_banks": True} if self.trust_banks else {}
        elif self.method == CHOICE:
            _refuse(self, "k", self.k)
        elif "k" in known:
            rows = sizes["query_bank"]
            found["k"] = neighbors(self.k, rows, "query-bank rows", int(known["k"]))
        elif row is not None and not row.gated:
            _refuse(self, "k", self.k)
            found["k"] = 0
        elif made is None:
            found["k"] = neighbors(self.k, sizes["gallery"], default=1)
        else:
            found["k"] = made.k
            if self.k not in (None, made.k):
                raise ValueError(
                    f"-k: expected {made.k}, that of the statistics, got {self.k}; leave it out"
                )
        if self.method != "auto":
            _refuse(self, "seed", self.seed)
        if "weight" in known:
            found["weight"] = known["weight"]
        return found

    @property
    def row(self) -> Row | None:
        """Of the table; None for what stands beside it."""
        return TABLE.get(self.method or "")

    def resolved(self) -> "Request":
        """With the method that a choice or pairs stand for; raises where nothing names one."""
        if self.choice is not None:
            check(
                (
                    self.method is not None,
                    f"--method: expected none beside --choice, got {self.method}; leave one out",
                )
            )
            return dataclasses.replace(self, method=CHOICE)
        if self.method is None and self.bank_pairs is None:
            raise ValueError(
                "--method: expected one, or --bank-pairs for auto, got neither; without pairs "
                "--method csls is a start"
            )
        return dataclasses.replace(self, method=self.method or "auto")


def _refuse(request: Request, name: str, value: Any) -> None:
    if value is not None:
        option = "-k" if name == "k" else f"--{name.replace('_', '-')}"
        raise ValueError(
            f"{option}: expected a method that has it and no statistics that it "
            f"comes with, got {request.method}; leave it out"
        )


def run(request: Request) -> None:
    """Checks, returns at once where nothing is left to do, fits, writes."""
    request = request.resolved()
    _check_combination(request)
    sink = _sink(request, request.output)
    for made in _PASSES:
        _sink(request, _partial(request.output, made))
    with sink.alone("fits"):
        work = _Work(request)
        sink.check_apart({rows.label: rows.paths for rows in work.files.values()})
        if request.force:
            work.forget()
        elif (provenance := work.done()) is not None:
            work.forget()  # one that was killed may have come no further than its result
            _report(request, work, provenance, "is done already")
            return
        with RowProgress() as progress:
            state, made_from = work.result(progress)
        sink.save(state, made_from)
        work.forget()
        _report(request, work, made_from, "written")


def _sink(request: Request, path: Path) -> Sink:
    """What an earlier file holds is compared once the inputs are known."""
    replaceable = request.force or binary.found_at(path) == binary.FILE
    return Sink(path, suffixes=(".npz", ".partial"), force=replaceable)


def _report(request: Request, work: "_Work", provenance: Mapping[str, Any], what: str) -> None:
    content = {"output": str(request.output), "status": what, **provenance}
    values = ", ".join(f"{name} {value:g}" for name, value in work.parameters.items())
    gallery = len(work.files["gallery"].rows)
    made = f"{request.method}({values})" if values else request.method
    text = f"{request.output} {what}: {made} for {gallery:,} items"
    if request.as_json:
        say_json(content | {"warnings": work.warnings})
    else:
        for line in work.told:
            say(line)
    say_warnings(work.warnings)
    if not request.as_json:
        statistics = request.method == "statistics"
        verdict = of_fit(text, Inputs.of(request), str(request.output), statistics=statistics)
        tell(verdict, apart=bool(work.told))


def _check_combination(request: Request) -> None:
    row, rows = request.row, request.query_bank is not None
    dual = [
        name
        for name in (*file_methods(), CHOICE)
        if name in _CHOOSING or (name in TABLE and GALLERY_BANK in TABLE[name].needs)
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
            request.bank_pairs is not None and request.method not in _CHOOSING,
            f"--bank-pairs: expected --method auto or --choice, got another method; {see}",
        ),
        (
            request.trust_banks and request.method != "auto",
            f"--trust-banks: expected --method auto, got another; {see}",
        ),
    )


def _partial(output: Path, made: str) -> Path:
    """Where what a pass has made so far is kept until the result is written."""
    return output.with_name(f"{output.name}.{made}.partial")


class _Work:
    """What is asked for, with the files it is made from."""

    def __init__(self, request: Request) -> None:
        self.request = request
        arguments = {
            "GALLERY": request.gallery,
            "--query-bank": request.query_bank,
            "--gallery-bank": request.gallery_bank,
        }
        opened = large.open_rows(arguments)
        names = zip(("gallery", "query_bank", "gallery_bank"), arguments, strict=True)
        self.files = {name: opened[argument] for name, argument in names if argument in opened}
        similarity_fn = SIMILARITY_FUNCTIONS[request.similarity]
        self.settings = Settings(similarity_fn, block_size=request.block_size)
        self.stamps = {name: rows.stamp for name, rows in self.files.items()}
        self.found: dict[str, Any] = {}  # fingerprints, as they become known
        self.exclude: dict[str, Any] = {}  # per bank, what its rows do not enter
        self.told: tuple[str, ...] = ()  # of the choice: why, and what looks wrong with the banks
        self.warnings: tuple[str, ...] = ()  # what looks wrong with the files
        self.states: dict[str, tuple[str, State]] = {}
        made = None
        if request.query_statistics is not None:
            gated = request.row is not None and request.row.gated
            self.states["query"] = read_statistics(
                request.query_statistics, self.files["gallery"], request.similarity, gated=gated
            )
            made = self.states["query"][1].state
        sizes = {name: len(rows.rows) for name, rows in self.files.items()}
        self.parameters = request.parameters(made, sizes)
        self.pairs: sets.Integers | None = None
        if request.bank_pairs is not None:
            others = sizes.get("gallery_bank", sizes["gallery"])
            self.pairs = read_pairs(request.bank_pairs, sizes["query_bank"], others)
        if request.choice is not None:
            self.states[CHOICE] = read_choice(request.choice, request.similarity)
        for label, _ in self.states.values():  # what they were made from is written down with them
            with large.errors_name({"provenance": f"{label}: its provenance, written down again,"}):
                provenances.plain(self._asked())

    def forget(self) -> None:
        """Removes what is kept for resuming, and temporary files that killed fits left."""
        output = self.request.output
        binary.remove_cut_off(output)
        for path in (_partial(output, made) for made in _PASSES):
            path.unlink(missing_ok=True)
            binary.remove_cut_off(path)

    def _asked(self) -> dict[str, Any]:
        pairs = {}
        if self.pairs is not None:
            known = Fingerprint().update(self.pairs[:, None])
            pairs = {"bank_pairs": {"file": self.request.bank_pairs, "sha256": known["sha256"]}}
        return {
            "method": self.request.method,
            "parameters": self.parameters,
            "similarity": self.request.similarity,
            "block_size": self.request.block_size,
            "statistics": {
                bank: {"sha256": made.sha256, "made_from": made.provenance}
                for bank, (_, made) in self.states.items()
            },
            **pairs,
        }

    def done(self) -> Mapping[str, Any] | None:
        """The provenance of this very result where the output holds it; raises for another."""
        output = self.request.output
        if binary.found_at(output) is None:
            return None
        source = Source("--output", output)
        provenance = read_state(source, (object,), "fitted state", "name another").provenance
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
                f"--output '{printable(output)}': expected no earlier results of other work, got a "
                f"file; name another, or allow overwriting with --force"
            )
        return provenance

    def result(self, progress: RowProgress) -> tuple[Any, dict[str, Any]]:
        """The state and its provenance."""
        self.progress = progress
        method, row = self.request.method, self.request.row
        more: dict[str, Any] = {}
        if method in _CHOOSING:
            rows = self._rows()
            choice = self._choice(rows)
            about = {"why": choice.reason, "warnings": list(choice.warnings)}
            more = {"choice": {**described(choice), **about}}
            self.told = tuple(choice.summary().split("\n"))
            size = len(self.files["gallery"].rows)
            source = self._whole(rows) if needs_whole_banks(choice) else self
            # What was asked for: rows that are read whole are prepared for inner products.
            similarity_fn = self.settings.similarity_fn
            state: Any = fit_chosen(choice, source, size, jnp.float32, similarity_fn=similarity_fn)
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
        for label, made in self.states.values():  # a choice is of no gallery
            large.check_fingerprint(label, made.provenance.get("gallery"), self.found["gallery"])
        files = {  # what was read whole was not hashed meanwhile
            name: self.found.get(name) or dbn.out_of_core.fingerprint(rows.rows)
            for name, rows in self.files.items()
        }
        self.warnings = self._mistakes()
        named = {"gallery_file": self.request.gallery}
        return state, {**self._asked(), **files, "stamps": self.stamps, **named, **more}

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
        return self._passed(fits.fit_largest, "query", rows, report, made="largest", **options)

    def _passed(
        self,
        fit_pass: Callable[..., Fitted[Any]],
        bank: str,
        rows: Rows,
        report: tuple[str, int, int],
        *,
        made: str = "",
        **options: Any,
    ) -> Any:
        gallery, request = self.files["gallery"], self.request
        checkpoint = Checkpoint(
            _partial(request.output, made or f"{bank}-bank"),
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

    def _mistakes(self) -> tuple[str, ...]:
        """What looks wrong with the files, but for what the choice has told already."""
        similarity = self.request.similarity
        rows = {
            name: sets.LargeRows(file.label, file.rows, similarity)
            for name, file in self.files.items()
        }
        beta = self.parameters.get(BETA_QUERY.name)
        found = mistakes_of_rows(rows, similarity, beta_query=beta)
        return tuple(one for one in found if one not in self.told)

    def _rows(self) -> dict[str, Any]:
        """Those of the files, prepared; large ones are read again whenever they are needed."""
        return {
            name: sets.prepared(file.label, file.rows, self.request.similarity)
            for name, file in self.files.items()
        }

    def _choice(self, rows: Mapping[str, Any]) -> dbn.tuning.Choice:
        """That of --choice, or tuned on the banks and on a sample of a large gallery."""
        request, gallery, bank = self.request, rows["gallery"], rows.get("gallery_bank")
        if CHOICE in self.states:
            label, made = self.states[CHOICE]
            choice: dbn.tuning.Choice = made.state
            _check_banks(label, choice, rows)
            if choice.name != RAW:
                others = gallery if bank is None else bank
                with large.errors_name({"pairs": "--bank-pairs"}):
                    self.exclude = left_out(gallery, len(rows["query_bank"]), others, self.pairs)
            return choice
        choice, self.exclude = choose(
            gallery=gallery,
            query_bank=rows["query_bank"],
            gallery_bank=bank,
            pairs=self.pairs,
            similarity_fn=large.PREPARED_FUNCTIONS[request.similarity],
            seed=self.parameters["seed"],
            trust_banks=request.trust_banks,
        )
        return choice

    def _whole(self, rows: Mapping[str, Any]) -> Streamed:
        """The rows as a source for methods that need more than statistics: held in memory."""
        held = {name: in_memory(part) for name, part in rows.items()}
        return Streamed(
            held["gallery"],
            held["query_bank"],
            held.get("gallery_bank"),
            self.exclude,
            large.PREPARED_FUNCTIONS[self.request.similarity],
        )


def _check_banks(label: str, choice: dbn.tuning.Choice, rows: Mapping[str, Any]) -> None:
    """Raises where a choice cannot be fitted to these rows."""
    if choice.num_gallery_bank and "gallery_bank" not in rows:
        raise ValueError(
            f"--gallery-bank: expected one, as {label} was chosen with one of "
            f"{choice.num_gallery_bank} rows, got none; name the file"
        )
    for name in missing(choice, {}):
        raise ValueError(
            f"{label}: expected a choice by the banks alone, got one that needs {name}; fit it in "
            f"Python, with tuning.fit(..., {name}=...)"
        )
    whole = needs_whole_banks(choice)
    if whole and any(isinstance(one, sets.LargeRows) for one in rows.values()):
        raise ValueError(
            f"{label}: expected a choice that statistics alone fit, as files of more than 1 GiB "
            f"are read in blocks, got {', '.join(whole)}; leave --choice out for --method auto"
        )
