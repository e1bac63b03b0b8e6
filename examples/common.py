"""The data of the examples, and how well it is retrieved."""

import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from dbnorm_jax._cli.emoji_names import emoji_names
from dbnorm_jax._cli.sets import EvaluationSet


def load(seed: int = 0) -> EvaluationSet:
    """Names of emoji, English queries mapped into German: a test, and a bank of other pairs."""
    return emoji_names("en", "de", seed)


def recall_at_1(queries, gallery, correction=None) -> float:
    """R@1 in percent; query i asks for item i."""
    ranks = dbn.metrics.stream_ranks(queries, gallery, jnp.arange(len(queries)), correction)
    return 100 * float(dbn.metrics.recall_at(ranks, 1))


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
