"""The library beside independent implementations: `python -m benchmarks.agreement.table`.

Each comparison runs on random and hostile inputs and tells the largest difference in ulps: in units
of eps times the scale that its row names, eps that of float32 (also for bfloat16, which is summed
in float32) or float64. Peers that are not installed are named and left out.
`tests/benchmarks/test_agreement.py` holds every row to its bound.

    pip install POT scikit-learn==1.7.2 faiss-cpu
    pip install --no-deps kiez==0.5.0    # asks for NumPy < 2, and fails with scikit-learn 1.9

scikit-hubness (`skhubness`) is its main branch on PYTHONPATH, with numba: the release does not
install.
"""

import argparse
import importlib
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from benchmarks.agreement import methods, search
from benchmarks.agreement.inputs import COMPARISONS, Comparison, run
from benchmarks.support import environment

__all__ = ["COMPARISONS", "Comparison", "methods", "run", "search"]


PRECISIONS = ("float32", "float64", "bfloat16")


def _release(module: str) -> str | None:
    """Name and version of an installed peer."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        return None
    name = packages_distributions().get(module, [module])[0]
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} {getattr(found, '__version__', '')}"


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description="The library beside independent implementations.")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    peers = {peer: _release(peer) for peer in dict.fromkeys(row.peer for row in COMPARISONS)}
    print(f"{environment.summary()}; {options.seeds} seeds\n")
    print(f"| what | peer | an ulp is eps x | {' | '.join(PRECISIONS)} | bound |")
    print("|---|---|---|---|---|---|---|")
    for row in COMPARISONS:
        release = peers[row.peer]
        if release is None:
            continue
        largest = {
            dtype: max(max(run(row, dtype, seed).values()) for seed in range(options.seeds))
            for dtype in row.dtypes
        }
        cells = [f"{largest[name]:.2g}" if name in largest else "" for name in PRECISIONS]
        scale = row.scale.replace("|", "\\|")
        line = " | ".join([row.what, release, scale, *cells, f"{row.bound:g}"])
        print(f"| {line} |", flush=True)
    for peer, release in peers.items():
        if release is None:
            print(f"\nLeft out, not installed: {peer}")


if __name__ == "__main__":
    main()
