"""`dbnorm tune`: the choice from the banks alone, and the evidence for it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.commands.options import given
from dbnorm_jax._cli.measuring.choosing import described
from dbnorm_jax._cli.measuring.mistakes import mistakes_of_rows
from dbnorm_jax._cli.measuring.sources import in_memory
from dbnorm_jax._cli.reading import large, sets
from dbnorm_jax._cli.reading.argument import parts
from dbnorm_jax._cli.reading.arrays import read_pairs, read_together
from dbnorm_jax._cli.showing.output import sink_of
from dbnorm_jax._cli.showing.terminal import say, say_json, say_warnings
from dbnorm_jax._cli.showing.verdict import Inputs, of_choice, tell
from dbnorm_jax._src.tuning.choice import COLUMNS

_MOST_LINES = 8
_FIGURES = ("frequency", "gain", "standard_error", "p_value", "recall_gain")
_COUNTS = ("num_held_out", "num_columns", "num_folds", "num_wrong_pairs")
_BANKS = ("spread", "own_share", "num_equal_rows")


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, by their names."""

    query_bank: str
    gallery_bank: str
    bank_pairs: str | None = None
    gallery: str | None = None
    similarity: str = "cosine"
    seed: int | None = None
    trust_banks: bool = False
    output: Path | None = None
    force: bool = False
    as_json: bool = False


def run(request: Request) -> None:
    """Checks, reads, chooses, prints and, with --output, writes."""
    for option in given(request, "seed", "trust_banks"):
        if request.bank_pairs is None:
            raise ValueError(
                f"{option}: expected --bank-pairs, which are held out, got none; leave it out"
            )
    sink = sink_of(request, suffixes=(".npz",))
    found = read_together(
        {
            "QUERY_BANK": request.query_bank,
            "GALLERY_BANK": request.gallery_bank,
            "--gallery": request.gallery,
        }
    )
    if sink is not None:
        sink.check_apart(
            {str(source): [part.path for part in parts(source)] for source, _ in found.values()}
        )
    sizes = [len(array) for _, array in found.values()]
    asked = request.bank_pairs
    pairs = None if asked is None else read_pairs(asked, *sizes[:2])
    rows = [
        in_memory(sets.prepared(str(source), array, request.similarity))
        for source, array in found.values()
    ]
    similarity_fn = large.PREPARED_FUNCTIONS[request.similarity]
    choice = dbn.tuning.tune(
        query_bank=rows[0],
        gallery_bank=rows[1],
        pairs=pairs,
        gallery=rows[2] if len(rows) > 2 else None,
        similarity_fn=similarity_fn,
        seed=request.seed or 0,
        trust_banks=request.trust_banks,
    )
    names = ("query_bank", "gallery_bank", "gallery")
    warnings = mistakes_of_rows(dict(zip(names, rows, strict=False)), request.similarity)
    warnings = tuple(one for one in warnings if one not in choice.warnings)
    if sink is not None:
        sink.save(choice, {"similarity": request.similarity})
    if request.as_json:
        found = content(choice)
        say_json(found | {"warnings": [*found["warnings"], *warnings]})
    else:
        for line in to_lines(choice):
            say(line)
    say_warnings(warnings)
    if not request.as_json:
        written = None if request.output is None else str(request.output)
        tell(of_choice(choice, Inputs.of(request), written))


def to_lines(choice: dbn.tuning.Choice) -> list[str]:
    """The summary, the banks, and the candidates of the highest gain."""
    lines = [*choice.summary().split("\n"), ""]
    if choice.num_held_out:
        lines.append(f"spread of similarities within a row: {choice.spread:.4g}")
    lines.append(
        f"own share of nearest neighbors (alike: 0.50): query bank {choice.own_share[0]:.2f}, "
        f"gallery bank {choice.own_share[1]:.2f}"
    )
    if not choice.num_held_out:
        return lines
    lines += ["", f"{'gain':>8} {'error':>7} {'p':>6} {'R@1':>6} {'share':>6}  candidate"]
    for place in _by_gain(choice)[:_MOST_LINES]:
        gain, error, p_value, recall, share = (
            float(getattr(choice, name)[place])
            for name in ("gain", "standard_error", "p_value", "recall_gain", "frequency")
        )
        lines.append(
            f"{gain:+8.3f} {error:7.3f} {p_value:6.3f} {100 * recall:+6.1f} {100 * share:4.0f} %  "
            f"{choice.part(place)}"
        )
    return lines


def _by_gain(choice: dbn.tuning.Choice) -> list[int]:
    return np.argsort(-np.asarray(choice.gain), kind="stable").tolist()


def table(choice: dbn.tuning.Choice) -> list[dict[str, Any]]:
    """All candidates, the highest gain first."""
    columns = {name: np.asarray(getattr(choice, name)).tolist() for name in COLUMNS + _FIGURES}
    return [
        {"method": choice.part(row).method}
        | {name: values[row] for name, values in columns.items()}
        for row in _by_gain(choice)
    ]


def content(choice: dbn.tuning.Choice) -> dict[str, Any]:
    """All of it."""
    return {
        "schema": "dbnorm choice 2",
        **described(choice),
        "reason": choice.reason,
        "warnings": list(choice.warnings),
        **{name: np.asarray(getattr(choice, name)).tolist() for name in _COUNTS + _BANKS},
        "candidates": table(choice),
    }
