"""What a matrix of embeddings is known by: SHA-256 of all its rows, their dtype and their number.

Whole contents, because a file that changed in one place is another file. Hashed while the rows are
read anyway, by the thread that reads them: a GB/s or two, beside a pass that computes on each row.
"""

import hashlib
import json
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Fingerprint:
    """Takes the rows of a matrix block by block, in order, in the dtype that is computed with.

    The same for every way of cutting the rows into blocks, for C and Fortran order and for either
    byte order; another for another dtype.
    """

    def __init__(self, dtype: np.dtype[Any], dim: int) -> None:
        self._digest = hashlib.sha256()
        self._kind = {"dtype": dtype.name, "dim": dim}
        self._num_rows = 0

    def update(self, rows: Array) -> dict[str, Any]:
        """Adds rows [num_rows, dim], C order; returns the description of all so far."""
        plain: Any = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
        self._digest.update(plain.view(np.uint8))
        self._num_rows += len(rows)
        description = {"rows": self._num_rows, **self._kind}
        digest = self._digest.copy()
        digest.update(json.dumps(description, sort_keys=True).encode())
        return {"sha256": digest.hexdigest(), **description}
