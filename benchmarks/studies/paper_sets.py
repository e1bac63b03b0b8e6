"""The data sets of the paper: their splits, the R@1 published for them, and their files.

The format of the files is described in `benchmarks.studies.paper`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dbnorm_jax._cli.reading import sets
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.sets import Array, Csr, EvaluationSet, SimilaritySet
from dbnorm_jax._cli.reading.single import read_floats, read_integers

TEXT_TO_VISUAL = "text-to-visual"
VISUAL_TO_TEXT = "visual-to-text"
DIRECTIONS = (TEXT_TO_VISUAL, VISUAL_TO_TEXT)

ITEM = "test_text_item"
# Rows are the queries of the direction asked for, columns its gallery.
MATRICES = ("test_similarities", "query_bank_similarities", "gallery_bank_similarities")

_PLURALS = {"image": "images", "video": "videos", "audio": "audio clips"}


@dataclasses.dataclass(frozen=True)
class Published:
    """R@1 in percent that someone reported.

    Attributes:
      features: the encoder they come from; only its features can be expected to repeat them.
      source: where they stand.
      recall_at_1: by method.
      digits: decimals reported.
      betas: in the words of the source; empty where nothing there needs one or none is told.
      direction: which side asks.
    """

    features: str
    source: str
    recall_at_1: Mapping[str, float]
    digits: int = 2
    betas: str = ""
    direction: str = TEXT_TO_VISUAL

    @property
    def told(self) -> str:
        """Features, betas and source, as a line."""
        return "; ".join(filter(None, [self.features, self.betas, self.source]))


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set, its standard test split and what is published for it.

    Attributes:
      name: with the split, as in the field's tables.
      modality: "image", "video" or "audio", what the captions describe.
      split: the test split.
      num_items: images, videos or audio clips in it.
      num_texts: captions in it, the first being the standard; empty where counts vary.
      bank_split: where both banks come from.
      published: the first is compared with, others are mentioned.
    """

    name: str
    modality: str
    split: str
    num_items: int
    num_texts: tuple[int, ...]
    bank_split: str
    published: tuple[Published, ...] = ()

    @property
    def side(self) -> str:
        """What the files of the other modality than text are named after."""
        return "audio" if self.modality == "audio" else "visual"

    @property
    def items(self) -> str:
        """Plural of the modality: images."""
        return _PLURALS[self.modality]

    @property
    def pairs(self) -> bool:
        """Whether the standard split has one caption per item."""
        return self.num_texts == (self.num_items,)

    def published_for(self, direction: str) -> tuple[Published, ...]:
        """What is published for a direction."""
        return tuple(one for one in self.published if one.direction == direction)

    def direction(self, direction: str) -> str:
        """In the words of the data set: text-to-video."""
        return direction.replace("visual", self.modality)

    def deviation(self, num_texts: int, num_items: int) -> str:
        """How the sizes differ from the standard split; empty where they do not."""
        parts = []
        if num_items != self.num_items:
            parts.append(f"{num_items:,} instead of {self.num_items:,} {self.items}")
        if self.num_texts and num_texts not in self.num_texts:
            parts.append(f"{num_texts:,} instead of {self.num_texts[0]:,} captions")
        return f"non-standard split: {', '.join(parts)}" if parts else ""


def _as_cited(features: str, *recalls: float) -> Published:
    """Balance Act's own table was not at hand; later work cites it."""
    kinds: tuple[str, ...] = ("raw", "is", "dis", "dualis", "dualdis")
    return Published(
        features, "Balance Act, as cited by later work", dict(zip(kinds, recalls, strict=True))
    )


def _qb_norm(features: str, raw: float, dis: float, betas: str = "beta 20") -> Published:
    recalls = {"raw": raw, "dis": dis}
    return Published(features, "QB-Norm README", recalls, digits=1, betas=betas)


# CLIP2Video's similarities are 100 cosines: in cosines this beta is about 50.
_OF_LOGITS = "beta 1/1.99 of logits"


def _internvideo2(to_visual: float, to_text: float) -> tuple[Published, ...]:
    """Zero-shot, of its own scores."""
    return tuple(
        Published(
            "InternVideo2-s2 1B scores",
            "InternVideo2 MODEL_ZOO.md",
            {"raw": recall},
            1,
            "",
            direction,
        )
        for direction, recall in zip(DIRECTIONS, (to_visual, to_text), strict=True)
    )


DATASETS = {
    "coco": DataSet(
        name="COCO 5k",
        modality="image",
        split="Karpathy test",
        num_items=5_000,
        num_texts=(25_010, 25_000),  # all captions, or the first five of each image
        bank_split="Karpathy training split",
        published=(
            _as_cited("CLIP", 30.31, 35.15, 35.16, 37.93, 37.92),
            _qb_norm("CLIP", 30.3, 34.8),
            _qb_norm("MMT-Oscar", 52.2, 53.9),
        ),
    ),
    "flickr30k": DataSet(
        name="Flickr30k 1k",
        modality="image",
        split="Karpathy test",
        num_items=1_000,
        num_texts=(5_000,),
        bank_split="Karpathy training split",
        published=(_as_cited("Oscar", 71.60, 72.26, 72.26, 73.00, 73.00),),
    ),
    "msrvtt": DataSet(
        name="MSR-VTT 1k-A",
        modality="video",
        split="1k-A test",
        num_items=1_000,
        num_texts=(1_000,),
        bank_split="training split (the videos outside 1k-A)",
        published=(
            _as_cited("CLIP4Clip", 44.10, 44.20, 44.20, 45.00, 45.00),
            _qb_norm("TT-CE+ on the full split, not 1k-A", 14.9, 17.3),
            _qb_norm("CE+ on the full split, not 1k-A", 14.4, 16.4),
            *_internvideo2(51.9, 50.9),
        ),
    ),
    "msvd": DataSet(
        name="MSVD",
        modality="video",
        split="test",
        num_items=670,
        num_texts=(),  # about 40 per video
        bank_split="training split",
        # Some versions of that README have 26.6 for DIS of TT-CE+.
        published=(
            _qb_norm("TT-CE+", 25.4, 28.9),
            _qb_norm("CLIP2Video", 47.0, 47.6, _OF_LOGITS),
            *_internvideo2(58.1, 83.3),
        ),
    ),
    "activitynet": DataSet(
        name="ActivityNet val1",
        modality="video",
        split="val1, one paragraph per video",
        num_items=4_917,
        num_texts=(4_917,),
        bank_split="training split",
        published=_internvideo2(60.4, 54.8),
    ),
    "didemo": DataSet(
        name="DiDeMo",
        modality="video",
        split="test, one paragraph per video",
        num_items=1_004,
        num_texts=(1_004,),
        bank_split="training split (8,392 videos)",
        published=(
            _qb_norm("TT-CE+", 21.6, 24.2),
            _qb_norm("CLIP4Clip", 43.0, 43.5),
            *_internvideo2(57.0, 54.3),
        ),
    ),
    "lsmdc": DataSet(
        name="LSMDC",
        modality="video",
        split="public test of 1,000 clips",
        num_items=1_000,
        num_texts=(1_000,),
        bank_split="training split (101,079 clips)",
        published=(
            _qb_norm("TT-CE+", 17.2, 17.8),
            _qb_norm("CLIP4Clip", 21.3, 22.3, "temperature 0.8"),
            *_internvideo2(32.0, 27.3),
        ),
    ),
    "vatex": DataSet(
        name="VaTeX",
        modality="video",
        split="test of 1,500 videos taken out of the validation split, English",
        num_items=1_500,
        num_texts=(15_000,),
        bank_split="training split (25,991 videos)",
        published=(
            _qb_norm("TT-CE+", 53.2, 54.8),
            _qb_norm("CLIP2Video", 57.4, 58.8, _OF_LOGITS),
            *_internvideo2(70.4, 85.4),
        ),
    ),
    "queryd": DataSet(
        name="QuerYD",
        modality="video",
        split="test, whole videos",
        num_items=386,
        num_texts=(),  # the lists of the split count videos
        bank_split="training split (1,796 videos)",
        published=(_qb_norm("TT-CE+", 14.4, 15.1), _qb_norm("CE+", 13.2, 14.1)),
    ),
    "audiocaps": DataSet(
        name="AudioCaps",
        modality="audio",
        split="test",
        num_items=816,
        num_texts=(4_080,),
        bank_split="training split",
        published=(_qb_norm("AR-CE", 23.1, 23.9),),
    ),
    "clotho": DataSet(
        name="Clotho",
        modality="audio",
        split="evaluation",
        num_items=1_045,
        num_texts=(5_225,),
        bank_split="development (training) split",
    ),
}


class NoDataError(ValueError):
    """The folder holds no file of either layout."""


def read(folder: Path, dataset: DataSet, direction: str) -> EvaluationSet | SimilaritySet:
    """The test and its banks from a folder of either layout, checked."""
    names = _embedding_names(dataset)
    embeddings, matrices = _present(folder, names), _present(folder, MATRICES)
    if embeddings and matrices:
        raise ValueError(
            f"--features: expected embeddings or similarity matrices in '{folder}', got both "
            f"({embeddings[0]}.npy and {matrices[0]}.npy); move one kind elsewhere"
        )
    wanted = MATRICES if matrices else names
    _check_complete(folder, dataset, direction, wanted)
    if matrices:
        return _read_matrices(folder, dataset, direction)
    return _read_embeddings(folder, dataset, direction)


def sizes(test: EvaluationSet | SimilaritySet, direction: str) -> tuple[int, int]:
    """Number of captions and of images, videos or audio clips in the test."""
    if isinstance(test, SimilaritySet):
        num_queries, num_gallery = test.similarities.shape
    else:
        num_queries, num_gallery = len(test.queries), len(test.gallery)
    ordered = (num_queries, num_gallery)
    return ordered if direction == TEXT_TO_VISUAL else ordered[::-1]


def _embedding_names(dataset: DataSet) -> tuple[str, ...]:
    return "test_text", f"test_{dataset.side}", "bank_text", f"bank_{dataset.side}"


def _present(folder: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (folder / f"{name}.npy").exists()]


def _source(folder: Path, name: str) -> Source:
    return Source("--features", folder / f"{name}.npy")


def _check_complete(
    folder: Path, dataset: DataSet, direction: str, wanted: tuple[str, ...]
) -> None:
    """Names every missing file with its shape at once, before any is opened."""
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise NoDataError(f"--features: expected a folder at '{folder}', got {what}")
    names = wanted if dataset.pairs else (*wanted, ITEM)
    shapes = _expected_shapes(dataset, direction)
    missing = [
        f"{name}.npy {shapes[name]}" for name in names if not (folder / f"{name}.npy").exists()
    ]
    if missing:
        kind = ValueError if _present(folder, wanted) else NoDataError
        raise kind(
            f"--features: '{folder}' lacks {', '.join(missing)}; see python -m "
            "benchmarks.studies.paper "
            "--help"
        )


def _expected_shapes(dataset: DataSet, direction: str) -> dict[str, str]:
    """The standard shape of each file, in words."""
    num_texts = str(dataset.num_texts[0]) if dataset.num_texts else "number of captions"
    num_items, items = str(dataset.num_items), dataset.items
    banks = ["number of bank captions", f"number of bank {items}"]
    queries, gallery = num_texts, num_items
    if direction == VISUAL_TO_TEXT:
        queries, gallery = gallery, queries
        banks.reverse()
    rows = dict(zip(MATRICES, (queries, *banks), strict=True))
    return {
        "test_text": f"of shape [{num_texts}, dim]",
        f"test_{dataset.side}": f"of shape [{num_items}, dim]",
        "bank_text": "of shape [number of bank captions, dim]",
        f"bank_{dataset.side}": f"of shape [number of bank {items}, dim]",
        ITEM: f"of shape [{num_texts}], integers",
    } | {name: f"of shape [{count}, {gallery}]" for name, count in rows.items()}


def _read_embeddings(folder: Path, dataset: DataSet, direction: str) -> EvaluationSet:
    sources = [_source(folder, name) for name in _embedding_names(dataset)]
    arrays = [read_floats(source) for source in sources]
    by_name = {str(source): array for source, array in zip(sources, arrays, strict=True)}
    sets.check_same_columns(by_name, "embedding dimensions")
    relevant = _read_relevant(folder, dataset, direction, len(arrays[0]), len(arrays[1]))
    text, items, text_bank, item_bank = (
        sets.prepared(name, array, "cosine") for name, array in by_name.items()
    )
    forward = direction == TEXT_TO_VISUAL
    return EvaluationSet(
        name=dataset.name,
        queries=text if forward else items,
        gallery=items if forward else text,
        query_bank=text_bank if forward else item_bank,
        gallery_bank=item_bank if forward else text_bank,
        relevant=relevant,
        similarity="cosine",
    )


def _read_matrices(folder: Path, dataset: DataSet, direction: str) -> SimilaritySet:
    sources = [_source(folder, name) for name in MATRICES]
    arrays = [read_floats(source) for source in sources]
    by_name = {str(source): array for source, array in zip(sources, arrays, strict=True)}
    sets.check_same_columns(by_name, "gallery items")
    shape = arrays[0].shape
    num_texts, num_items = shape if direction == TEXT_TO_VISUAL else shape[::-1]
    relevant = _read_relevant(folder, dataset, direction, num_texts, num_items)
    test, query_bank, gallery_bank = (
        sets.prepared_matrix(name, array) for name, array in by_name.items()
    )
    return SimilaritySet(dataset.name, test, query_bank, gallery_bank, relevant)


def _read_relevant(
    folder: Path, dataset: DataSet, direction: str, num_texts: int, num_items: int
) -> Csr:
    """The right gallery rows of each query of the direction."""
    source = _source(folder, ITEM)
    if not source.path.exists():
        # Only sets of pairs come here: row i belongs to row i.
        if num_texts != num_items:
            raise source.fail(
                f"the file beside {num_texts} captions and {num_items} {dataset.items}",
                "none",
                "save the row that each caption belongs to",
            )
        return sets.rows_relevant(num_items)
    items = read_integers(source)
    if items.shape != (num_texts,):
        remedy = "give one row per caption"
        if items.shape == (num_items,):
            remedy += "; or are the matrices those of the other direction"
        raise source.fail(f"shape ({num_texts},), one per caption", f"{items.shape}", remedy)
    by_text = sets.relevant_from_indices(str(source), items, num_texts, num_items)
    if direction == TEXT_TO_VISUAL:
        return by_text
    return _texts_of_items(items.astype(np.int64), num_items)


def _texts_of_items(items: Array, num_items: int) -> Csr:
    """The captions of each image, video or audio clip, from the item of each caption."""
    texts = np.argsort(items, kind="stable")
    texts = texts[items[texts] >= 0]  # captions of nothing in the gallery
    counts = np.bincount(items[texts], minlength=num_items)
    return np.concatenate([[0], np.cumsum(counts)]), texts
