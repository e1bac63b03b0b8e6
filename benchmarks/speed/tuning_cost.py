"""Time of the whole of `tuning.tune` and `fit` beside a bare scan of the same similarities.

    python -m benchmarks.speed.tuning_cost [--size 10240] [--dim 512]

The bare scan computes query bank x gallery bank once and keeps nothing. The first call of `tune` is
timed too, less a later one: what it compiles.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np

import dbnorm_jax as dbn
from benchmarks.support.common import bare_scan, interleaved, machine, ratio, unit_rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Times and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=10240)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args(arguments)
    print(machine())
    items, other = (unit_rows(seed, options.size, options.dim) for seed in (0, 2))
    noise = unit_rows(1, options.size, options.dim)
    # All queries lean one way: there are hubs, and with them something to choose.
    query_bank = 0.3 * items + noise + 0.5 * unit_rows(3, 1, options.dim)
    pairs = np.arange(options.size)
    contenders = {
        "bare": lambda: bare_scan(query_bank, items),
        "tune": lambda: dbn.tuning.tune(query_bank=query_bank, gallery_bank=items, pairs=pairs),
        "tune, gallery": lambda: dbn.tuning.tune(
            query_bank=query_bank, gallery_bank=items, pairs=pairs, gallery=other
        ),
    }
    known = {"query_bank": query_bank, "gallery_bank": items, "gallery": other}
    started = time.perf_counter()
    choice = dbn.tuning.tune(**known, pairs=pairs)
    first = time.perf_counter() - started
    contenders["fit"] = lambda: dbn.tuning.fit(choice, **known)
    contenders["tune, mergeable"] = lambda: dbn.tuning.tune(**known, pairs=pairs, mergeable=True)
    print(choice.summary())
    print(f"banks {options.size} x {options.size} x dim {options.dim}")
    timings = interleaved(contenders, options.repetitions)
    for name, timing in timings.items():
        figure = ratio(name, timing, timings["bare"])
        print(
            f"{name:16}{figure.seconds:8.2f} s{figure.value:8.2f} x bare "
            f"[{figure.low:.2f}, {figure.high:.2f}]"
        )
        if name == "tune, gallery":
            print(f"compiled in its first call: {first - figure.seconds:.1f} s")


if __name__ == "__main__":
    main()
