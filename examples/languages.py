"""Across languages: hubs in every pair of them, and what `auto` makes of each.

    python -m examples.languages [SET.npz ...] [--output languages.png]

Retrieval across languages by a map of word vectors is where hubs were first seen to do harm (Dinu
et al., 2015). Here English names of emoji ask for those of twelve other languages; the data come
with the package `emoji`. A set of your own (as for `dbnorm evaluate`: query, gallery, query_bank,
gallery_bank, bank_pair) is one more line. `auto` chooses from the banks' pairs, raw where nothing
is proven better; the test is looked at once, and each gain has its 95 % interval over queries.
"""

import jax.numpy as jnp
from matplotlib.figure import Figure

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading.arrays import read_set
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet
from examples.common import arguments, gain, hits, skewness

LANGUAGES = {
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "id": "Indonesian",
    "fa": "Persian",
    "ar": "Arabic",
    "ko": "Korean",
    "ja": "Japanese",
}
RAW, CORRECTED = "#D55E00", "#0072B2"


def measured(test: EvaluationSet) -> dict[str, tuple[float, float]]:
    """Pairs: raw and corrected R@1 and skewness; gain and half its interval; won and lost."""
    correction = dbn.auto(
        gallery=test.gallery,
        query_bank=test.query_bank,
        gallery_bank=test.gallery_bank,
        pairs=jnp.asarray(test.bank_pairs, jnp.int32),
    )
    before, after = hits(test), hits(test, correction)
    return {
        "R@1": (100 * before.mean(), 100 * after.mean()),
        "skewness": tuple(skewness(test.queries, test.gallery, c) for c in (None, correction)),
        "gain": gain(before, after),
        "moved": (int((after > before).sum()), int((after < before).sum())),
    }


def draw(results: dict[str, dict[str, tuple[float, float]]]) -> Figure:
    """An arrow from raw to corrected for each pair of languages, in R@1 and in skewness."""
    figure = Figure(figsize=(10, 1.6 + 0.34 * len(results)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"R@1": "R@1 (% of queries)", "skewness": "Skewness of $N_{10}$ (lower: fewer hubs)"}
    for axes, (number, title) in zip(panels, titles.items(), strict=True):
        for row, result in enumerate(results.values()):
            before, after = result[number]
            axes.plot([before, after], [row, row], color="#B5B5B5", linewidth=2, zorder=1)
            axes.scatter(before, row, color=RAW, marker="D", s=34, label="raw" if not row else None)
            label = "corrected (auto)" if not row else None
            axes.scatter(after, row, color=CORRECTED, s=44, label=label)
        axes.set_xlabel(title)
        axes.set_xlim(left=0)
        axes.grid(color="#E4E4E4", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(results)), list(results))
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def main() -> None:
    """Prints a line for each pair of languages and draws them."""
    given = arguments("languages", "files of more sets of embeddings")
    tests = {name: emoji_names("en", code) for code, name in LANGUAGES.items()}
    tests |= {test.name: test for test in (read_set(path, "cosine") for path in given.sets)}
    print(f"{'English to':12}raw R@1  corrected         gain   won  lost  skewness of N_10")
    results = {}
    for name, test in tests.items():
        results[name] = measured(test)
        recall, skew, change, moved = (
            results[name][key] for key in ("R@1", "skewness", "gain", "moved")
        )
        print(
            f"{name:12}{recall[0]:7.1f}{recall[1]:11.1f}{change[0]:+7.1f} ± {change[1]:.1f}"
            f"{moved[0]:6}{moved[1]:6}{skew[0]:10.2f} -> {skew[1]:.2f}",
            flush=True,
        )
    gains = [result["gain"] for result in results.values()]
    proven = sum(change > width for change, width in gains)
    worst = min(change for change, _ in gains)
    draw(results).savefig(given.output, dpi=110)
    print(
        f"\nThe correction gains beyond its interval in {proven} of {len(gains)}; the worst is "
        f"{worst:+.1f} points. Drawn: {given.output}"
    )


if __name__ == "__main__":
    main()
