"""The data of the examples, and how well it is retrieved."""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.reading.emoji_names import emoji_names
from dbnorm_jax._cli.reading.sets import EvaluationSet


def load(seed: int = 0) -> EvaluationSet:
    """Names of emoji, English queries mapped into German: a test, and a bank of other pairs."""
    return emoji_names("en", "de", seed)


def ranks(queries, gallery, correction=None) -> np.ndarray:
    """Of item i for query i."""
    right = jnp.arange(len(queries))
    return np.asarray(dbn.metrics.stream_ranks(queries, gallery, right, correction))


def recall_at_1(queries, gallery, correction=None) -> float:
    """R@1 in percent; query i asks for item i."""
    return 100 * float(dbn.metrics.recall_at(ranks(queries, gallery, correction), 1))


def hits(test: EvaluationSet, correction=None) -> np.ndarray:
    """[num_queries] 1 where the first item is right, else 0."""
    relevant = tuple(jnp.asarray(part, jnp.int32) for part in test.relevant)
    return np.asarray(
        dbn.metrics.stream_ranks(test.queries, test.gallery, relevant, correction) <= 1, float
    )


def gain(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Points of percent that paired hits rose by, and half the width of the 95 % interval."""
    changes = 100 * (after - before)
    return float(changes.mean()), float(1.96 * changes.std(ddof=1) / np.sqrt(len(changes)))


def skewness(queries, gallery, correction=None) -> float:
    """Skewness of N_10."""
    found = dbn.stream_top_k(queries, gallery, 10, correction).indices
    return float(dbn.hubness.skewness(dbn.hubness.k_occurrence(found, len(gallery))))


def halves(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of a bank's pairs, at random."""
    order = np.random.default_rng(seed).permutation(size)
    return order[: size // 2], order[size // 2 :]


def summary(values) -> str:
    """Mean and standard error."""
    values = np.asarray(values)
    return f"{values.mean():6.1f} ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}"


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def ridge_map(sources: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """[source dim, target dim], fitted on pairs; fewer pairs than dimensions."""
    gram = sources @ sources.T + ridge * np.eye(len(sources))
    return sources.T @ np.linalg.solve(gram, targets)


def arguments(name: str, sets: str | None = None) -> argparse.Namespace:
    """Where the picture goes and, with `sets` saying what for, files of embeddings."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}")
    if sets is not None:
        parser.add_argument("sets", nargs="*", metavar="SET.npz", help=sets)
    parser.add_argument(
        "--output", type=Path, default=Path(f"{name}.png"), help="the picture (%(default)s)"
    )
    return parser.parse_args()
