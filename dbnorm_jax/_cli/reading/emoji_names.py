"""The embedded data set: names of emoji in two languages.

A cross-lingual stand-in for cross-modal retrieval, built from the `emoji` package in a moment and
without a download: the setting in which hubness was first found in retrieval across languages
(Dinu et al., 2015). Names are signed hashed character n-grams; a ridge map carries source names
into the target space, and mapped names query the target names.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from dbnorm_jax._cli.reading.sets import EvaluationSet, rows_relevant

EMOJI_VERSION = "2.16"

_DIM = 1024  # buckets: the ten low bits of the checksum; the eleventh is the sign
_NGRAMS = (2, 3, 4)
_RIDGE = 1.0
_SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
_FEWEST_PAIRS = 30

Matrix = npt.NDArray[np.float64]


def emoji_names(source: str = "en", target: str = "de", seed: int = 0) -> EvaluationSet:
    """The set for one pair of languages; the same arguments give the same set.

    Three equal parts: one to fit the map, one as the banks, one as the test.
    """
    names = _named_pairs(source, target)
    order = np.random.default_rng(seed).permutation(len(names))
    size = len(names) // 3
    mapped, banked, tested = (order[i * size : (i + 1) * size] for i in range(3))
    fitted = np.concatenate([mapped, banked])
    source_vectors, target_vectors = (
        _vectors([name[side] for name in names], fitted) for side in (0, 1)
    )

    # Ridge regression in its dual form: fewer names than buckets.
    gram = source_vectors[mapped] @ source_vectors[mapped].T
    weights = np.linalg.solve(gram + _RIDGE * np.eye(size), target_vectors[mapped])
    ridge_map = source_vectors[mapped].T @ weights
    return EvaluationSet(
        name=f"emoji names {source} -> {target}",
        queries=_unit(source_vectors[tested] @ ridge_map).astype(np.float32),
        gallery=target_vectors[tested].astype(np.float32),
        query_bank=_unit(source_vectors[banked] @ ridge_map).astype(np.float32),
        gallery_bank=target_vectors[banked].astype(np.float32),
        relevant=rows_relevant(size),
        bank_pairs=np.arange(size),
        query_labels=tuple(names[i][0] for i in tested),
        gallery_labels=tuple(names[i][1] for i in tested),
        query_bank_labels=tuple(names[i][0] for i in banked),
    )


def _named_pairs(source: str, target: str) -> list[tuple[str, str]]:
    """(source name, target name) of every emoji named once in both, sorted by character."""
    import emoji

    for option, language in (("--source", source), ("--target", target)):
        if language not in emoji.LANGUAGES:
            raise ValueError(
                f"{option}: expected one of {', '.join(sorted(emoji.LANGUAGES))}, got {language!r}"
            )
    if source == target:
        raise ValueError(
            f"--source and --target: expected two languages, got {source!r} twice; choose another"
        )
    # Both before the first look: names of a language are absent until it is loaded.
    emoji.config.load_language([source, target])

    pairs: dict[str, str] = {}
    taken: set[str] = set()
    for character in sorted(emoji.EMOJI_DATA):
        entry = emoji.EMOJI_DATA[character]
        if entry["status"] != emoji.STATUS["fully_qualified"] or _SKIN_TONES & set(character):
            continue
        if source not in entry or target not in entry:
            continue
        name, other = _text(entry[source]), _text(entry[target])
        if name not in pairs and other not in taken:
            pairs[name] = other
            taken.add(other)
    if len(pairs) < _FEWEST_PAIRS:
        raise ValueError(f"emoji names {source} -> {target}: only {len(pairs)} pairs; too few")
    return list(pairs.items())


def _text(name: str) -> str:
    return name.strip(":").replace("_", " ").lower()


def _vectors(names: Sequence[str], fitted: npt.NDArray[np.int64]) -> Matrix:
    """Unit rows of signed hashed n-grams, weighted by the document frequencies of `fitted`."""
    rows: list[int] = []
    hashes: list[int] = []
    for row, name in enumerate(names):
        padded = f" {name} "
        grams = [padded[i : i + n] for n in _NGRAMS for i in range(len(padded) - n + 1)]
        rows.extend([row] * len(grams))
        hashes.extend(crc32(gram.encode()) for gram in grams)
    codes = np.array(hashes, np.int64)
    counts = np.zeros((len(names), _DIM))
    np.add.at(counts, (np.array(rows), codes % _DIM), np.where(codes // _DIM % 2, 1.0, -1.0))

    damped = np.sign(counts) * np.log1p(np.abs(counts))
    frequency = (damped[fitted] != 0).sum(axis=0)
    return _unit(damped * (np.log((1 + len(fitted)) / (1 + frequency)) + 1))


def _unit(vectors: Matrix) -> Matrix:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Matrix = vectors / np.maximum(lengths, np.finfo(float).tiny)
    return unit
