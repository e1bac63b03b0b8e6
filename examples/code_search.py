"""Code search: sentences ask for the functions they describe, in Python's own library.

    python -m examples.code_search [--output code_search.png]

The first paragraph of a docstring asks; its function, without the docstring, is to be found: real
text, real code, nothing to download. Both are counts of words, `parseHeader` being two. A search by
words alone is the first row; the second adds to a query the words that such sentences tend to go
with in code, by a ridge map. One third of the modules fits the map, one third is the banks, one
third the test, so that no module is in two. Short functions tend to be the hubs: a word that they
share with a query is much of all they are. `auto` chooses from the banks; the test is looked at
once. Figures change with the version of Python.
"""

import ast
import dataclasses
import re
import sys
import sysconfig
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import jax
import numpy as np
from matplotlib.figure import Figure

import dbnorm_jax as dbn
from examples.common import arguments, gain, ranks, ridge_map, unit

BUCKETS = 4096
RIDGE = 1.0
K = 10
NUM_HUBS = 12
FEWEST_WORDS = 3
LENGTHS = (0, 20, 40, 80, 160)  # words of code
SKIPPED = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "turtledemo"}
RAW, CORRECTED = "#D55E00", "#0072B2"


@dataclasses.dataclass(frozen=True)
class Function:
    """A function and the sentence that describes it."""

    module: str
    name: str
    sentence: str
    code: str


def words(text: str) -> list[str]:
    """Words in lower case; those of `parseHeader` and `parse_header` are the same two."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)]


def functions(root: Path) -> list[Function]:
    """All described functions below a folder; of those with equal sentences or code, the first."""
    found = []
    seen: set[object] = set()
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if SKIPPED & set(place.parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            sentence = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            asked = tuple(words(sentence))
            node.body = node.body[1:]
            body = "\n".join(map(ast.unparse, node.body))
            if len(asked) < FEWEST_WORDS or not body or {asked, body} & seen:
                continue
            seen |= {asked, body}
            name = f"{path.parent.name if path.stem == '__init__' else path.stem}.{node.name}"
            found.append(Function(str(place), name, sentence, ast.unparse(node)))
    return found


def thirds(modules: Sequence[str], seed: int = 0) -> list[np.ndarray]:
    """Rows of three parts, as equal as whole modules allow."""
    names, counts = np.unique(modules, return_counts=True)
    sizes = np.zeros(3, int)
    part = np.zeros(len(names), int)
    for module in np.random.default_rng(seed).permutation(len(names)):
        part[module] = sizes.argmin()
        sizes[part[module]] += counts[module]
    rows = part[np.searchsorted(names, modules)]
    return [np.flatnonzero(rows == index) for index in range(3)]


def vectors(texts: Sequence[str], fitted: np.ndarray) -> np.ndarray:
    """Unit rows: damped counts of words, those that are rare among the fitted texts heavier."""
    counts = np.zeros((len(texts), BUCKETS))
    for row, text in enumerate(texts):
        for word in words(text):
            counts[row, crc32(word.encode()) % BUCKETS] += 1
    frequency = (counts[fitted] > 0).sum(axis=0)
    return unit(np.log1p(counts) * np.log((1 + len(fitted)) / (1 + frequency)))


def sides(found: Sequence[Function], fitted: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
    """(queries, gallery) of all functions, by words alone and with words that go with them."""
    queries = vectors([function.sentence for function in found], fitted)
    gallery = vectors([function.code for function in found], fitted)
    centred = unit(gallery - gallery[fitted].mean(axis=0))
    added = unit(queries @ ridge_map(queries[fitted], centred[fitted], RIDGE))
    both = {"words": (queries, gallery), "words and learned": (unit(queries + added), centred)}
    return {name: tuple(rows.astype(np.float32) for rows in pair) for name, pair in both.items()}


def by_length(counts: np.ndarray, lengths: np.ndarray) -> list[float]:
    """Mean N_10 of functions of each class of length."""
    kind = np.searchsorted(LENGTHS, lengths, "right") - 1
    return [float(counts[kind == index].mean()) for index in range(len(LENGTHS))]


def draw(names: Sequence[str], counts: Sequence[np.ndarray], lengths: np.ndarray) -> Figure:
    """The greatest hubs, and who is a hub: N_10 by length; raw and corrected."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    hubs = np.argsort(-counts[0], kind="stable")[:NUM_HUBS]
    styles = ({"color": RAW, "marker": "D"}, {"color": CORRECTED, "marker": "o"})
    left.hlines(range(NUM_HUBS), counts[0][hubs], counts[1][hubs], color="#B5B5B5", linewidth=2)
    for label, count, style in zip(("raw", "corrected (auto)"), counts, styles, strict=True):
        left.plot(count[hubs], range(NUM_HUBS), linestyle="", label=label, **style)
        right.plot(by_length(count, lengths), linestyle="-", **style)
    left.set_yticks(range(NUM_HUBS), [names[hub] for hub in hubs], fontsize=9)
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set_xlabel(f"Sentences (of {len(names):,}) with it in their top {K}")
    left.set_title("The greatest hubs", fontsize=11)
    ends = [f"{low}-{high - 1}" for low, high in pairwise(LENGTHS)]
    right.set_xticks(range(len(LENGTHS)), [*ends, f"{LENGTHS[-1]}+"])
    right.axhline(K, color="#666666", linestyle=":")
    right.set_ylim(bottom=0)
    right.set_xlabel("Words of code")
    right.set_ylabel(f"Mean of $N_{{{K}}}$ (fair: {K})")
    right.set_title("By length of the function", fontsize=11)
    for axes in (left, right):
        axes.grid(color="#E4E4E4", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def main() -> None:
    """Prints what is found by both queries, raw and corrected, and draws the hubs of the second."""
    output = arguments("code_search").output
    found = functions(Path(sysconfig.get_path("stdlib")))
    fitted, banked, tested = thirds([function.module for function in found])
    print(
        f"{len(found):,} functions of Python {sys.version_info.major}.{sys.version_info.minor}: "
        f"{len(tested):,} sentences ask for {len(tested):,};\n{len(banked):,} of other modules are "
        f"the banks.\n\n{'':31}R@1         gain   R@10   skewness   most"
    )
    chosen = []
    for label, (queries, gallery) in sides(found, fitted).items():
        known = {
            "gallery": gallery[tested],
            "query_bank": queries[banked],
            "gallery_bank": gallery[banked],
            "pairs": np.arange(len(banked)),
        }
        choice = dbn.tuning.tune(**known)
        correction = dbn.tuning.fit(choice, **known)
        said = choice.summary().splitlines()
        chosen.append(f"{label}: {said[0]}\n    {said[-1]}")
        places, counts = [], []
        for kind, given in (("raw", None), ("corrected", correction)):
            nearest = dbn.stream_top_k(queries[tested], gallery[tested], K, given).indices
            counts.append(np.asarray(dbn.hubness.k_occurrence(nearest, len(tested))))
            places.append(ranks(queries[tested], gallery[tested], given))
            change, width = gain(places[0] <= 1, 1.0 * (places[-1] <= 1))
            told = "" if given is None else f"{change:+.1f} ± {width:.1f}"
            print(
                f"{label + ', ' + kind:29}{100 * (places[-1] <= 1).mean():5.1f}{told:>13}"
                f"{100 * (places[-1] <= K).mean():7.1f}"
                f"{dbn.hubness.skewness(counts[-1]):11.2f}{counts[-1].max():7}",
                flush=True,
            )
        jax.clear_caches()
    names = [found[row].name for row in tested]
    lengths = np.array([len(words(found[row].code)) for row in tested])
    print("\nauto chose, from the banks alone:\n  " + "\n  ".join(chosen))
    print(
        f"\nMean N_10 of functions of {', '.join(map(str, LENGTHS))} and more words (second row):"
    )
    for kind, count in zip(("raw", "corrected"), counts, strict=True):
        print(f"  {kind:10}" + "".join(f"{mean:6.1f}" for mean in by_length(count, lengths)))
    draw(names, counts, lengths).savefig(output, dpi=110)
    won, lost = ((first <= 1) & (other > 1) for first, other in (places[::-1], places))
    print(
        f"\n{won.sum()} sentences find their function first only when corrected, {lost.sum()} only "
        f"raw (second row). Drawn: {output}"
    )


if __name__ == "__main__":
    main()
