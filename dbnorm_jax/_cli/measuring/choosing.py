"""What `auto` chooses, for galleries of any size: tuned in memory, on a sample of many items."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.sources import blocks, in_memory
from dbnorm_jax._cli.reading.sets import LargeRows
from dbnorm_jax._src.core.similarity import SimilarityFn
from dbnorm_jax._src.tuning import split

# Gallery rows among which held-out queries are ranked.
_MOST_RANKED = 2**14


class Chosen(NamedTuple):
    """A choice, and by bank the gallery rows that its rows do not enter, as it was judged."""

    choice: dbn.tuning.Choice
    exclude: dict[str, Any]


def choose(
    *,
    gallery: Any,
    query_bank: Any,
    gallery_bank: Any,
    pairs: Any,
    similarity_fn: SimilarityFn,
    seed: int = 0,
    trust_banks: bool = False,
    mergeable: bool = False,
) -> Chosen:
    """Tuned on the banks, which are held in memory, and on at most _MOST_RANKED gallery rows.

    Without a gallery bank the gallery is it, and held too. What is chosen for LargeRows, or where
    `mergeable` asks for it, is fitted from statistics alone.
    """
    mergeable = mergeable or any(
        isinstance(rows, LargeRows) for rows in (gallery, query_bank, gallery_bank)
    )
    query_bank, exclude = in_memory(query_bank), dict[str, Any]()
    bank = gallery = in_memory(gallery) if gallery_bank is None else gallery
    if gallery_bank is not None:
        bank = in_memory(gallery_bank)
    known: npt.NDArray[Any] = np.zeros(0, np.int32)
    if pairs is not None:
        exclude = left_out(gallery, len(query_bank), bank, pairs)
        if exclude:
            known = exclude["gallery"][exclude["gallery"] >= 0]
    if gallery_bank is not None and len(gallery) > _MOST_RANKED:
        rows = np.random.default_rng(seed).choice(len(gallery), _MOST_RANKED, replace=False)
        # The partners tell tuning which items are asked for again.
        gallery = in_memory(gallery[np.union1d(rows, known)])
    choice = dbn.tuning.tune(
        query_bank=query_bank,
        gallery_bank=None if gallery_bank is None else bank,
        pairs=pairs,
        gallery=in_memory(gallery),
        similarity_fn=similarity_fn,
        seed=seed,
        trust_banks=trust_banks,
        mergeable=mergeable,
    )
    return Chosen(choice, exclude)


def left_out(gallery: Any, num_query_bank: int, bank: Any, pairs: Any) -> dict[str, Any]:
    """By bank, the gallery rows that its rows do not enter; `bank` is that of the gallery.

    Raises:
      ValueError: gallery-bank rows are gallery items, and no pairs say whose.
    """
    right = None
    if pairs is not None:
        right = split.right_rows("--bank-pairs", pairs, num_query_bank, len(bank))
    columns = (np.asarray(rows) for (rows,) in blocks(gallery))
    partners = split.partners(np.asarray(bank), right, columns)
    return {} if partners is None else partners._asdict()


def described(choice: dbn.tuning.Choice) -> dict[str, Any]:
    """What is served and what is proven of it, for JSON and provenance."""
    return {
        "method": choice.name,
        "mixture": [
            {"method": part.method, **part.parameters, "frequency": part.frequency}
            for part in choice.mixture
        ],
        "guarantee": choice.guarantee._asdict(),
    }
