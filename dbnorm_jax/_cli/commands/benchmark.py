"""`dbnorm benchmark`: what a correction costs on this machine, beside the similarities alone."""

import dataclasses
from typing import Any, NamedTuple

from dbnorm_jax._cli.reading.argument import neighbors
from dbnorm_jax._cli.showing.progress import Progress
from dbnorm_jax._cli.showing.report import require
from dbnorm_jax._cli.showing.table import grid, versions
from dbnorm_jax._cli.showing.terminal import say_json, wide_console

SCHEMA = "dbnorm benchmark 1"
BASE, FIT = "similarities alone", "fit"
_REPETITIONS = 5


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of the command, by their names."""

    queries: int = 2048
    gallery: int = 20480
    dim: int = 512
    k: int | None = None
    as_json: bool = False


class Line(NamedTuple):
    """One line of the table."""

    work: str  # what was done
    seconds: float  # of the fastest repetition
    gflops: float  # of its inner products, in that time
    base: str  # what it is compared with
    ratio: float  # median over repetitions of its time over the base's


def run(request: Request) -> None:
    """Checks, measures and prints."""
    require(*["rich"] * (not request.as_json))
    from dbnorm_jax._cli.measuring.timing import TILE

    for option in ("queries", "gallery"):
        rows = getattr(request, option)
        if rows > TILE and rows % TILE:
            raise ValueError(
                f"--{option}: expected at most {TILE} rows or a multiple, which the comparison is "
                f"tiled by, got {rows}; take {-(-rows // TILE) * TILE}"
            )
    request = dataclasses.replace(request, k=neighbors(request.k, request.gallery))
    lines = measure(request)
    if request.as_json:
        say_json(_content(request, lines))
    else:
        _show(request, lines)


def measure(request: Request) -> list[Line]:
    """Times everything, interleaved."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import dbnorm_jax as dbn
    from dbnorm_jax._cli.measuring.timing import bare_scan, interleaved

    def rows(seed: int, count: int) -> jax.Array:
        vectors = np.random.default_rng(seed).standard_normal((count, request.dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return jnp.asarray(vectors)

    counts = (request.queries, request.gallery, request.queries, request.queries)
    queries, gallery, query_bank, gallery_bank = (rows(*given) for given in enumerate(counts))
    query, items = (
        dbn.stream_bank_statistics(bank, gallery, beta=beta)
        for bank, beta in ((query_bank, 20.0), (gallery_bank, 1.0))
    )
    k = neighbors(request.k, request.gallery)
    fits, searches = f"{BASE}, bank", f"{BASE}, queries"
    corrections = {
        "raw": None,
        "DualIS": dbn.dual_inverted_softmax(query, items),
        "DualDIS": dbn.dual_dynamic_inverted_softmax(query, items),
    }
    contenders = {
        fits: lambda: bare_scan(query_bank, gallery),
        f"{FIT}, one bank": lambda: dbn.stream_bank_statistics(query_bank, gallery, beta=20.0),
        searches: lambda: bare_scan(queries, gallery),
    } | {
        f"search, {name}, k={k}": lambda correction=correction: dbn.stream_top_k(
            queries, gallery, k, correction
        )
        for name, correction in corrections.items()
    }
    with Progress(len(contenders) + _REPETITIONS) as progress:
        timings = interleaved(contenders, _REPETITIONS, progress)
    lines = []
    for work, timing in timings.items():
        of_bank = work == fits or work.startswith(FIT)
        base = fits if of_bank else searches
        seconds = float(timing.seconds.min())
        flops = 2 * request.queries * request.gallery * request.dim
        ratio = float(np.median(timing.seconds / timings[base].seconds))
        lines.append(Line(work, seconds, flops / seconds / 1e9, base, ratio))
    return lines


def _where() -> dict[str, str]:
    import jax

    device = jax.devices()[0]
    return {"platform": device.platform, "device": device.device_kind, **versions()}


def _show(request: Request, lines: list[Line]) -> None:
    where, console = _where(), wide_console()
    console.print(
        f"{request.queries:,} queries, as many bank items, {request.gallery:,} gallery "
        f"items, {request.dim} dimensions; {where['device']} "
        f"({where['platform']}), jax {where['jax']}"
    )
    rows = (
        (line.work, f"{line.seconds:.4f}", f"{line.gflops:.0f}", f"{line.ratio:.2f}")
        for line in lines
    )
    console.print()
    console.print(grid(("Work", "Seconds", "GFLOP/s", "Ratio"), rows))
    console.print()
    console.print(
        f"Ratio: time over that of the similarities alone, computed tile by tile and thrown away; "
        f"median of {_REPETITIONS} repetitions, compilation left out.",
        style="dim",
    )


def _content(request: Request, lines: list[Line]) -> dict[str, Any]:
    sizes = dataclasses.asdict(request) | {"bank": request.queries, "repetitions": _REPETITIONS}
    del sizes["as_json"]
    return {
        "schema": SCHEMA,
        "sizes": sizes,
        "where": _where(),
        "units": {"seconds": "of the fastest repetition", "ratio": "median, time over base"},
        "lines": [line._asdict() for line in lines],
    }
