"""The setting of Balance Act (EMNLP 2023) on features of your own: published R@1 beside ours.

    python -m benchmarks.studies.paper --dataset msvd --features DIR [--direction visual-to-text]

Without --features it prints what is published. DIR holds one of two layouts, of .npy files.

Embeddings, for both directions (floats; rows need no normalization, similarity is cosine):

    test_text.npy       [captions, dim]       captions of the test split
    test_visual.npy     [items, dim]          its images or videos (test_audio.npy: audio clips)
    bank_text.npy       [bank captions, dim]  captions of the training split, or a sample of them
    bank_visual.npy     [bank items, dim]     its images or videos (bank_audio.npy: audio clips)
    test_text_item.npy  [captions] integers   row in test_visual.npy that a caption belongs to,
                                              counted from 0; -1: to none

Matrices, for one direction (floats; higher is closer; columns are the gallery of the direction):

    test_similarities.npy          [queries, gallery]             text-to-visual: [captions, items]
    query_bank_similarities.npy    [query bank items, gallery]    text-to-visual: bank captions
    gallery_bank_similarities.npy  [gallery bank items, gallery]  text-to-visual: bank items
    test_text_item.npy             as above, for either direction

Data sets of pairs (msrvtt, activitynet, didemo, lsmdc) may go without test_text_item.npy: then row
i belongs to row i. Both banks come from the training split; bank rows that equal test rows are
counted and make the title say "transductive".

From a CLIP-style model, each image or video once and each caption once:

    np.save("test_visual.npy", torch.cat([model.encode_image(x) for x in batches]).float().cpu())
    np.save("test_text.npy", torch.cat([model.encode_text(t) for t in tokens]).float().cpu())
    np.save("test_text_item.npy", np.repeat(np.arange(len(captions)), [len(c) for c in captions]))

where captions[i] lists the captions of item i, and the rows of test_text.npy follow them in that
order; a video is the mean of the unit features of its frames, an ActivityNet text the paragraph of
all captions of the video, and so with DiDeMo. The same for the training split gives the banks.

Where features or similarities can be had, and how they become these files: docs/places.md.

The numbers are R@1 in percent; a query with several right items counts by the best of them.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.studies import paper_sets
from benchmarks.studies.paper_sets import DATASETS, DIRECTIONS, TEXT_TO_VISUAL, DataSet, Published
from dbnorm_jax._cli.measuring.methods import DEFAULT_BETAS, Method, choose_methods
from dbnorm_jax._cli.measuring.methods import KINDS as ALL_KINDS
from dbnorm_jax._cli.measuring.table_rows import evaluate, num_transductive
from dbnorm_jax._cli.reading.sets import EvaluationSet, SimilaritySet

KINDS: tuple[str, ...] = ("raw", "is", "dis", "dualis", "dualdis", "published")
BETAS = {name.removeprefix("beta_"): beta for name, beta in DEFAULT_BETAS.items()}
NOT_RUN = "not run here"

_NOTHING = Published("", "-", {})


def title(dataset: DataSet, direction: str, test: EvaluationSet | SimilaritySet) -> str:
    """What was evaluated, how the banks stand to the test, and how the split differs."""
    num_bank = len(test.query_bank) + (0 if test.gallery_bank is None else len(test.gallery_bank))
    num_equal = num_transductive(test)
    kind = "inductive"
    if num_equal:
        kind = f"transductive ({num_equal:,} of {num_bank:,} bank rows equal test rows)"
    deviation = dataset.deviation(*paper_sets.sizes(test, direction))
    return "; ".join(filter(None, [f"{_standard(dataset, direction)}: {kind}", deviation]))


def _standard(dataset: DataSet, direction: str) -> str:
    return f"{dataset.name}, {dataset.direction(direction)}"


def details(
    dataset: DataSet, direction: str, test: EvaluationSet | SimilaritySet, methods: Sequence[Method]
) -> list[str]:
    """The lines below the title: sizes and betas."""
    num_texts, num_items = paper_sets.sizes(test, direction)
    banks = f"query bank {len(test.query_bank):,}"
    if test.gallery_bank is not None:
        banks += f", gallery bank {len(test.gallery_bank):,}"
    measure = "given" if isinstance(test, SimilaritySet) else test.similarity
    dual = next(method for method in methods if method.beta_gallery is not None)
    lines = [
        f"{num_texts:,} captions, {num_items:,} {dataset.items}, {banks} (expected: "
        f"{dataset.bank_split})",
        f"similarity {measure}, beta {dual.beta_query:g} (query bank), {dual.beta_gallery:g} "
        "(gallery bank)",
    ]
    if isinstance(test, SimilaritySet):
        lines.append("matrices do not show whether gallery bank items are test items")
    return lines


def standard_details(dataset: DataSet) -> list[str]:
    """What to extract, where nothing was given."""
    texts = f"{dataset.num_texts[0]:,}" if dataset.num_texts else "all"
    return [
        f"standard split: {dataset.split}, {texts} captions, {dataset.num_items:,} "
        f"{dataset.items}; banks: {dataset.bank_split}"
    ]


def table(dataset: DataSet, direction: str, ours: Mapping[str, float]) -> list[str]:
    """One line per method: published R@1, ours, the difference and the source of the former.

    `ours` is R@1 in percent by method; methods that are not in it were not run.
    """
    published = dataset.published_for(direction)
    first = published[0] if published else _NOTHING
    header = ("R@1 in %", "published", "ours", "difference")
    lines = [_line(header, "source"), "-" * len(_line(header, "source"))]
    for kind in KINDS:
        theirs, mine = _recall(first, kind), ours.get(kind, math.nan)
        cells = (
            ALL_KINDS[kind].name,
            _number(theirs, f".{first.digits}f"),
            NOT_RUN if kind not in ours else _number(mine, ".2f"),
            _number(mine - theirs, "+.2f"),
        )
        source = "-" if math.isnan(theirs) else first.told
        lines.append(_line(cells, source))
    lines += ["", f"{ALL_KINDS['published'].name}: scores in the released code's form."]
    if not published:
        lines.append("No published numbers known here for this direction of this data set.")
    else:
        lines.append(f"The difference means something with features of {first.features} only.")
    lines += [_mention(other) for other in published[1:]]
    return lines


def _line(cells: Sequence[str], source: str) -> str:
    name, *numbers = cells
    return f"{name:<20}" + "".join(f"{cell:>14}" for cell in numbers) + f"   {source}"


def _recall(published: Published, kind: str) -> float:
    # The number published for DualDIS stands beside both forms: the released code has its own.
    return published.recall_at_1.get("dualdis" if kind == "published" else kind, math.nan)


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _mention(published: Published) -> str:
    numbers = ", ".join(
        f"{ALL_KINDS[kind].name} {value:.{published.digits}f}"
        for kind, value in published.recall_at_1.items()
    )
    return f"Also published: {numbers} ({published.told})."


def _methods(test: EvaluationSet | SimilaritySet, options: argparse.Namespace) -> list[Method]:
    """All methods with their betas; only cosines have a default."""
    betas = {bank: getattr(options, f"beta_{bank}") for bank in BETAS}
    for bank, beta in betas.items():
        if beta is None and isinstance(test, SimilaritySet):
            raise ValueError(
                f"--beta-{bank}: expected a number with similarity matrices, got none; beta has "
                "the unit 1/similarity, so only cosines have a default"
            )
    chosen = {bank: BETAS[bank] if beta is None else beta for bank, beta in betas.items()}
    return choose_methods(KINDS, chosen["query"], chosen["gallery"])


def _beta(text: str) -> float:
    with np.errstate(over="ignore", under="ignore"):
        value = float(np.float32(text))  # the precision it is used in
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return float(text)


def _parser() -> argparse.ArgumentParser:
    summary, _, manual = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.paper",
        description=summary,
        epilog=manual,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--features", type=Path, metavar="DIR", help="folder of the layout below")
    parser.add_argument("--direction", choices=DIRECTIONS, default=TEXT_TO_VISUAL)
    for bank, default in BETAS.items():
        parser.add_argument(
            f"--beta-{bank}",
            type=_beta,
            metavar="B",
            help=f"inverse temperature of the {bank} bank; {default:g} for embeddings",
        )
    return parser


def _show_published(dataset: DataSet, direction: str) -> None:
    print(_standard(dataset, direction))
    print(*standard_details(dataset), "", *table(dataset, direction, {}), sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 0, or 2 where the features cannot be used."""
    options = _parser().parse_args(arguments)
    dataset, direction = DATASETS[options.dataset], options.direction
    if options.features is None:
        _show_published(dataset, direction)
        return 0
    try:
        test = paper_sets.read(options.features, dataset, direction)
        methods = _methods(test, options)
    except (ValueError, OSError) as error:
        if isinstance(error, paper_sets.NoDataError):
            _show_published(dataset, direction)
        print("paper: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    # The training split of COCO takes minutes on a CPU.
    rows = evaluate(test, methods, lambda step: print("paper:", step, file=sys.stderr))
    ours = {row.method.kind: row.recall_at_1 for row in rows}
    print(title(dataset, direction, test), *details(dataset, direction, test, methods), sep="\n")
    print("", *table(dataset, direction, ours), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
