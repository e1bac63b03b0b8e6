"""What other packages hand over, to metrics and corrections: big_vision, CLIP_benchmark, CLIP4Clip.

    python -m examples.places

A function for each place, of the arrays as they lie there; none of the packages is needed. Right
items are CSR pairs `(indptr, indices)`, the form in which a query may have any number of them.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import dbnorm_jax as dbn
from examples.common import load

BETA_QUERY, BETA_GALLERY = 20.0, 1.0  # in 1/cosine
CUTS = (1, 5, 10)


def one_each(items) -> tuple[np.ndarray, np.ndarray]:
    """Of texts that have one right image each, the row of which is given."""
    return np.arange(len(items) + 1), np.asarray(items)


def the_other_way(items, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Of images: the texts that they belong to, which may be several."""
    items = np.asarray(items)
    counts = np.bincount(items, minlength=num_items)
    return np.concatenate([[0], np.cumsum(counts)]), np.argsort(items, kind="stable")


def recalls(queries, gallery, relevant, bank=None) -> dict[int, float]:
    """Share of queries with any of their right items in their first k; `bank`: for IS."""
    correction = None
    if bank is not None:
        statistics = dbn.stream_bank_statistics(bank, gallery, beta=BETA_QUERY)
        correction = dbn.inverted_softmax(statistics)
    ranks = dbn.metrics.stream_ranks(queries, gallery, relevant, correction)
    return {cut: float(dbn.metrics.recall_at(ranks, cut)) for cut in CUTS}


def big_vision(
    results: Mapping[str, Mapping[str, np.ndarray]], text_bank=None, image_bank=None
) -> dict[str, dict[str, float]]:
    """The metrics of big_vision's retrieval evaluator, raw or corrected by banks.

    `results` is what its `Evaluator.evaluate` returns: under `images` and `texts` the `embeddings`
    and the `id`, a text having that of its image. Banks are embeddings of other texts and images.
    """
    images, texts = results["images"], results["texts"]
    row = {image: place for place, image in enumerate(np.asarray(images["id"]).tolist())}
    items = [row[image] for image in np.asarray(texts["id"]).tolist()]
    found = _both_ways(texts["embeddings"], images["embeddings"], items, text_bank, image_bank)
    return {
        name: {f"Recall@{cut}": share for cut, share in shares.items()}
        for name, shares in zip(("txt2img", "img2txt"), found, strict=True)
    }


def clip_benchmark(
    images_emb, texts_emb, texts_image_index: Sequence[int], text_bank=None, image_bank=None
) -> dict[str, float]:
    """The metrics of CLIP_benchmark's `zeroshot_retrieval`, raw or corrected by banks.

    The three arrays are its own; tensors become arrays by `tensor.numpy()`.
    """
    found = _both_ways(texts_emb, images_emb, texts_image_index, text_bank, image_bank)
    return {
        f"{name}_retrieval_recall@{cut}": share
        for name, shares in zip(("image", "text"), found, strict=True)
        for cut, share in shares.items()
    }


def _both_ways(texts, images, items, text_bank, image_bank) -> tuple[dict[int, float], ...]:
    # Banks ask as the queries do: texts for images, images for texts.
    return (
        recalls(texts, images, one_each(items), text_bank),
        recalls(images, texts, the_other_way(items, len(images)), image_bank),
    )


def clip4clip(
    sim_matrix, bank_matrix, video_matrix, cut_off_points=None, *, logit_scale: float = 100.0
) -> tuple[jax.Array, dict[int, float]]:
    """DualDIS of CLIP4Clip's matrix, [texts, videos]: corrected scores, and R@k.

    Its `sim_matrix`, before it is reshaped for several captions a video, holds logits: cosines
    times `logit_scale`, which divides the betas. `bank_matrix` holds those of training captions,
    [bank texts, videos], `video_matrix` those of training videos, [bank videos, videos].
    `cut_off_points` are those of the data set: how many texts there are up to each video.
    """
    query = dbn.bank_statistics(bank_matrix, beta=BETA_QUERY / logit_scale)
    gallery = dbn.bank_statistics(video_matrix, beta=BETA_GALLERY / logit_scale)
    correction = dbn.dual_dynamic_inverted_softmax(query, gallery)
    scores = dbn.apply_correction(sim_matrix, correction)
    counts = np.ones(scores.shape[1], int)
    if cut_off_points is not None:
        counts = np.diff(np.concatenate([[0], cut_off_points]))
    ranks = dbn.metrics.ranks(scores, one_each(np.repeat(np.arange(len(counts)), counts)))
    return scores, {cut: float(dbn.metrics.recall_at(ranks, cut)) for cut in CUTS}


def max_sim(dim: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A similarity of flattened rows: late interaction, as in ColBERT and ColPali.

    Each row is a query's or a document's vectors [tokens, dim] end to end, filled up with zeros:
    `vectors.reshape(len(vectors), -1)`. Each token of a query takes the nearest of the document,
    and the similarity is their sum, so that a beta of cosines is divided by the tokens of a query.
    All streamed functions take it as `similarity_fn`; make it once, or they compile again.
    """

    def similarity(queries: jax.Array, documents: jax.Array) -> jax.Array:
        asking = queries.reshape(len(queries), -1, dim)
        there = documents.reshape(len(documents), -1, dim)
        pairs = jnp.einsum("qid,gjd->qgij", asking, there)
        # What fills up is no token, not even one at right angles to all. Asking, it adds 0.
        filled = (there != 0).any(axis=-1)[None, :, None, :]
        return jnp.where(filled, pairs, -jnp.inf).max(axis=-1).sum(axis=-1)

    return similarity


def main() -> None:
    """Runs each on names of emoji, dressed as the place would hand them over."""
    test = load()
    texts, images = test.queries, test.gallery
    ids = np.arange(len(images)) + 1000  # ids are no rows
    results = {"images": {"embeddings": images, "id": ids}, "texts": {"embeddings": texts}}
    results["texts"]["id"] = ids
    banks = (test.query_bank, test.gallery_bank)
    for name, found in (("raw", big_vision(results)), ("IS", big_vision(results, *banks))):
        shares = [f"{key} {100 * found[key]['Recall@1']:.1f}" for key in ("txt2img", "img2txt")]
        print(f"big_vision, Recall@1, {name:4}{', '.join(shares)}")
    for name, chosen in (("raw", (None, None)), ("IS", banks)):
        found = clip_benchmark(images, texts, range(len(images)), *chosen)
        shares = [
            f"{key} {100 * found[f'{key}_retrieval_recall@5']:.1f}" for key in ("image", "text")
        ]
        print(f"CLIP_benchmark, recall@5, {name:4}{', '.join(shares)}")
    logits = [100 * rows @ images.T for rows in (texts, *banks)]
    _, found = clip4clip(*logits)
    print(f"CLIP4Clip, R@1, DualDIS {100 * found[1]:.1f}")


if __name__ == "__main__":
    main()
