"""Text to image: names of characters ask for their pictures, and the hubs can be looked at.

    python -m examples.glyphs [--output glyphs.png]

Every character of the font that matplotlib brings has a name (Unicode's) and a picture (the
font's): two modalities, and nothing to download. A ridge map carries names, as counts of words and
parts of words, into the space of blurred pictures, where mapped names ask. Such a map shrinks what
it is unsure of towards the middle, where some pictures are near to everything: hubs. One third of
the characters fits the map, one third is the banks, one third the test. `auto` chooses the
correction from the banks' own pairs; the test is looked at once.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from zlib import crc32

import matplotlib as mpl
import numpy as np
from matplotlib import ft2font
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading.sets import EvaluationSet, rows_relevant
from examples.common import arguments, gain, ranks, ridge_map, unit

SIDE = 32  # pixels of a picture
WORD_BUCKETS = 4096
RIDGES = (0.01, 0.1, 1.0)
K = 10
NUM_HUBS = 15
NUM_EXAMPLES = 6


def characters() -> tuple[list[str], np.ndarray]:
    """Names, and [count, SIDE, SIDE] pictures; of characters that look alike, the first."""
    font = ft2font.FT2Font(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))
    font.set_size(24, 72)
    found: dict[bytes, tuple[str, np.ndarray]] = {}
    for code in sorted(font.get_charmap()):
        name = unicodedata.name(chr(code), "")
        if not name or unicodedata.category(chr(code))[0] not in "LNPS":
            continue
        font.set_text(chr(code), 0)
        font.draw_glyphs_to_bitmap(antialiased=True)
        ink = np.asarray(font.get_image(), np.float64) / 255
        if not ink.any() or max(ink.shape) > SIDE:
            continue
        picture = np.zeros((SIDE, SIDE))
        top, left = ((SIDE - size) // 2 for size in ink.shape)
        picture[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
        found.setdefault(picture.tobytes(), (name.lower(), picture))
    names, pictures = zip(*found.values(), strict=True)
    return list(names), np.array(pictures)


def text_vectors(names: Sequence[str]) -> np.ndarray:
    """Unit rows: damped counts of words and of their parts, rare ones heavier."""
    counts = np.zeros((len(names), WORD_BUCKETS))
    for row, name in enumerate(names):
        padded = f" {name} "
        parts = [padded[i : i + n] for n in (3, 4) for i in range(len(padded) - n + 1)]
        for part, weight in [(word, 1.0) for word in name.split()] + [(p, 0.3) for p in parts]:
            counts[row, crc32(part.encode()) % WORD_BUCKETS] += weight
    frequency = (counts > 0).sum(axis=0)
    return unit(np.log1p(counts) * np.log((1 + len(names)) / (1 + frequency)))


def image_vectors(pictures: np.ndarray) -> np.ndarray:
    """Unit rows: the pictures, blurred by a pixel so that near strokes overlap, half as fine."""
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / 2)
    offsets = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    blur = np.where(np.abs(offsets) <= 3, kernel[np.clip(offsets + 3, 0, 6)], 0) / kernel.sum()
    return unit((blur @ pictures @ blur.T)[:, ::2, ::2].reshape(len(pictures), -1))


def load(seed: int = 0) -> tuple[EvaluationSet, np.ndarray]:
    """Names as queries and pictures as gallery: vectors of thirds, and the test's pictures."""
    names, pictures = characters()
    texts, images = text_vectors(names), image_vectors(pictures)
    order = np.random.default_rng(seed).permutation(len(names))
    fitted, banked, tested = np.split(order[: len(names) // 3 * 3], 3)
    images = unit(images - images[fitted].mean(axis=0)).astype(np.float32)
    mapped = {}
    for ridge in RIDGES:
        rows = texts @ ridge_map(texts[fitted], images[fitted], ridge)
        mapped[ridge] = unit(rows).astype(np.float32)
    # The map that retrieves best without any correction: no weak one is set up to be rescued.
    best = min(RIDGES, key=lambda r: np.median(ranks(mapped[r][banked], images[banked])))
    test = EvaluationSet(
        name="names -> pictures of characters",
        queries=mapped[best][tested],
        gallery=images[tested],
        query_bank=mapped[best][banked],
        gallery_bank=images[banked],
        relevant=rows_relevant(len(tested)),
        bank_pairs=np.arange(len(banked)),
        query_labels=tuple(names[i] for i in tested),
    )
    return test, pictures[tested]


def draw(pictures, names, hubs, counts, examples, found) -> Figure:
    """The greatest hubs; beside them, what some names find before and after."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.5), wspace=0.04)
    left.suptitle(
        f"Greatest hubs: names (of {len(names):,}) with it\nin their top {K}, raw → corrected"
    )
    for axes, hub in zip(left.subplots(NUM_HUBS // 5, 5).flat, hubs, strict=True):
        show(axes, pictures[hub])
        axes.set_title(f"{counts[0][hub]} → {counts[1][hub]}", fontsize=10)
    right.suptitle("Names right only when corrected: top 4 raw, top 4 corrected (framed: right)")
    rows = right.subplots(len(examples), 10, width_ratios=[3.4, *[1] * 4, 0.4, *[1] * 4])
    for row, query in zip(rows, examples, strict=True):
        row[0].text(1, 0.5, "\n".join(wrap(names[query], 20)), ha="right", va="center", fontsize=10)
        row[0].axis("off")
        row[5].axis("off")
        for nearest, places in zip(found, (row[1:5], row[6:]), strict=True):
            for axes, item in zip(places, nearest[query], strict=False):
                show(axes, pictures[item], framed=item == query)
    return figure


def show(axes: Axes, picture: np.ndarray, *, framed: bool = False) -> None:
    """One picture, black on white."""
    axes.imshow(1 - picture, cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(color="#0072B2" if framed else "#D0D0D0", linewidth=3 if framed else 0.8)


def main() -> None:
    """Tells the story and draws the hubs."""
    output = arguments("glyphs").output
    test, pictures = load()
    names, size = test.query_labels, len(test.gallery)
    known = {
        "gallery": test.gallery,
        "query_bank": test.query_bank,
        "gallery_bank": test.gallery_bank,
        "pairs": test.bank_pairs,
    }
    choice = dbn.tuning.tune(**known)
    correction = dbn.tuning.fit(choice, **known)
    num_pairs = len(test.query_bank)
    print(f"{size:,} names ask for {size:,} pictures. auto, from {num_pairs:,} other pairs:")
    print(choice.summary().splitlines()[0])
    print("\n             R@1   R@10   skewness of N_10   most   never retrieved")
    found, counts, places = [], [], []
    for label, given in (("raw", None), ("corrected", correction)):
        found.append(np.asarray(dbn.stream_top_k(test.queries, test.gallery, K, given).indices))
        counts.append(np.asarray(dbn.hubness.k_occurrence(found[-1], size)))
        places.append(ranks(test.queries, test.gallery, given))
        print(
            f"{label:10}{100 * (places[-1] <= 1).mean():6.1f} {100 * (places[-1] <= K).mean():6.1f}"
            f"{dbn.hubness.skewness(counts[-1]):19.2f}{counts[-1].max():7}"
            f"{100 * (counts[-1] == 0).mean():16.1f} %"
        )
    hubs = np.argsort(-counts[0], kind="stable")[:NUM_HUBS]
    print("\nN_10 of the greatest hubs, before and after:")
    for hub in hubs[:5]:
        print(f"  {counts[0][hub]:3} -> {counts[1][hub]:3}  {names[hub]}")
    won = np.flatnonzero((places[0] > 1) & (places[1] <= 1))
    lost = np.flatnonzero((places[0] <= 1) & (places[1] > 1))
    change, width = gain(places[0] <= 1, 1.0 * (places[1] <= 1))
    examples = sorted(won, key=lambda row: len(names[row]))[:NUM_EXAMPLES]
    draw(pictures, names, hubs, counts, examples, found).savefig(output, dpi=110)
    print(
        f"\n{len(won)} names find their picture first only when corrected, {len(lost)} only raw: "
        f"{change:+.1f} ± {width:.1f} points. Drawn: {output}"
    )


if __name__ == "__main__":
    main()
