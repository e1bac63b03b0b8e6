"""The streamed functions for embeddings that do not fit memory: read in blocks of rows.

Each takes an array, one memory-mapped by `numpy.load(path, mmap_mode="r")` (of any float dtype,
byte order and axis order), or an iterable of blocks of rows, and gives what its namesake gives for
the whole. A thread reads, converts and checks one block ahead of the computation. What is held is a
few blocks and vectors of gallery length, whatever the length of the files.

    bank_statistics  largest_similarities      as the streamed functions
    top_k  top_k_blocks  ranks                 likewise; results of a block of queries at a time
    fingerprint                                what a matrix is known by

An iterable that is passed over more than once must begin anew each time: a list does, a generator
does not. Everything here runs on the host: not inside jit, vmap or grad.

    >>> import numpy as np
    >>> import dbnorm_jax as dbn
    >>> random = np.random.default_rng(0)
    >>> gallery, bank = random.normal(size=(2, 100, 8)).astype("float32")
    >>> whole = dbn.stream_bank_statistics(bank, gallery, beta=2.0)
    >>> parts = dbn.out_of_core.bank_statistics(
    ...     np.split(bank, 4), gallery, beta=2.0, block_size=32)
    >>> print(f"{abs(whole.bias - parts.bias).max() < 1e-5}")
    True
"""

from dbnorm_jax._src.core.naming import publish
from dbnorm_jax._src.places.disk.out_of_core import (
    bank_statistics,
    fingerprint,
    largest_similarities,
    ranks,
    top_k,
    top_k_blocks,
)

__all__ = [
    "bank_statistics",
    "fingerprint",
    "largest_similarities",
    "ranks",
    "top_k",
    "top_k_blocks",
]

publish(__name__, *(globals()[name] for name in __all__))
