"""Every row of the table of agreement keeps its bound, with the peers that are installed."""

import numpy as np
import pytest

from benchmarks.agreement import inputs, search, table

ROWS = [
    pytest.param(
        row,
        dtype,
        id=f"{row.what}, {row.peer}, {dtype}",
        marks=() if (row.peer, dtype) == ("scipy", "float32") else pytest.mark.slow,
    )
    for row in table.COMPARISONS
    for dtype in row.dtypes
]


@pytest.mark.usefixtures("compile_fast")
@pytest.mark.parametrize(("row", "dtype"), ROWS)
def test_agreement(row, dtype):
    pytest.importorskip(row.peer)
    errors = table.run(row, dtype, seed=0)
    assert errors
    assert {name: error for name, error in errors.items() if not error <= row.bound} == {}


def test_an_ulp_is_one_ulp():
    one = np.float32(1)
    assert inputs.ulps(np.nextafter(one, 2, dtype=np.float32), one, 1, "float32") == 1
    assert inputs.ulps(np.nextafter(1.0, 2), 1.0, 1, "float64") == 1
    assert inputs.ulps([np.inf, -np.inf], [np.inf, -np.inf], 1, "float32") == 0
    for wrong in (np.nan, np.inf):
        assert inputs.ulps([1.0, wrong], [1.0, 1.0], 1, "float32") == np.inf


def test_a_worse_item_or_order_is_noticed():
    scores = np.array([[3.0, 2.0, 2.0, 1.0]])
    lost = search.lost(scores, [[0, 3]], [[0, 2]])
    np.testing.assert_array_equal(lost, [[0, 1]])
    assert search.in_order(scores, [[0, 1, 2]])
    assert not search.in_order(scores, [[0, 2, 1]])
