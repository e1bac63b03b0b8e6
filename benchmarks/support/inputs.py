"""Synthetic embeddings, in NumPy alone: peers are measured in processes without JAX."""

import numpy as np

_SLAB = 4096  # rows made at once, so that making inputs needs no memory to speak of


def unit_rows(seed: int, num_rows: int, dim: int) -> np.ndarray:
    """Random unit vectors, [num_rows, dim] float32."""
    random = np.random.default_rng(seed)
    rows = np.empty((num_rows, dim), np.float32)
    for start in range(0, num_rows, _SLAB):
        slab = rows[start : start + _SLAB]
        random.standard_normal(out=slab, dtype=np.float32)
        slab /= np.linalg.norm(slab, axis=1, keepdims=True)
    return rows


def near(seed: int, centers: np.ndarray, num_rows: int, noise: float) -> np.ndarray:
    """Unit vectors around the centers in turn; `noise` is the length of what is added to each."""
    rows = unit_rows(seed, num_rows, centers.shape[1])
    for start in range(0, num_rows, _SLAB):
        slab = rows[start : start + _SLAB]
        slab *= np.float32(noise)
        slab += centers[np.arange(start, start + len(slab)) % len(centers)]
        slab /= np.linalg.norm(slab, axis=1, keepdims=True)
    return rows


def clustered(
    seed: int, num_queries: int, num_gallery: int, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Queries and a gallery that lie in the same 100 clusters, in random order."""
    centers = unit_rows(seed, 100, dim)
    random = np.random.default_rng(seed + 1)
    gallery = near(seed + 2, centers, num_gallery, 0.7)[random.permutation(num_gallery)]
    return near(seed + 3, centers, num_queries, 0.7), gallery


def anisotropic(
    seed: int, num_queries: int, num_gallery: int, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Queries and a gallery in a cone: 0.8 of each row is common, coordinates fall as 1 / sqrt."""
    common = unit_rows(seed, 1, dim)
    spectrum = np.arange(1, dim + 1, dtype=np.float32) ** -0.5

    def rows(seed: int, num_rows: int) -> np.ndarray:
        found = unit_rows(seed, num_rows, dim) * spectrum
        found *= 0.6 / np.linalg.norm(found, axis=1, keepdims=True)
        found += 0.8 * common
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found

    return rows(seed + 1, num_queries), rows(seed + 2, num_gallery)


def duplicated(
    seed: int, num_queries: int, num_gallery: int, dim: int, share: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Random rows; a share of the queries lies near an item of which there are 64 copies.

    With a share of 1 every item has so many, else one item.
    """
    queries, gallery = unit_rows(seed, num_queries, dim), unit_rows(seed + 1, num_gallery, dim)
    if share == 1:
        gallery = np.repeat(gallery[: -(-num_gallery // 64)], 64, axis=0)[:num_gallery]
        return queries, gallery
    gallery[:: max(1, num_gallery // 64)] = gallery[0]
    chosen = np.random.default_rng(seed + 2).permutation(num_queries)[: round(share * num_queries)]
    queries[chosen] = near(seed + 3, gallery[:1], len(chosen), 0.5)
    return queries, gallery


def ascending(seed: int, num_queries: int, num_gallery: int, dim: int) -> tuple[np.ndarray, ...]:
    """Queries near one direction and a gallery ordered along it, the best items last.

    The worst order for a search that keeps the best so far: every block beats what was seen.
    """
    direction = unit_rows(seed, 1, dim)
    gallery = unit_rows(seed + 1, num_gallery, dim)
    gallery = gallery[np.argsort(gallery @ direction[0], kind="stable")]
    return near(seed + 2, direction, num_queries, 0.3), gallery
