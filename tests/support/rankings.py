"""Whether scores follow a ranking."""

import numpy as np


def assert_same_ranking(scores, expected, tolerance):
    """Down the expected ranking the scores never rise: exactly the same order without ties."""
    scores, order = np.asarray(scores), np.argsort(-expected, axis=1, kind="stable")
    assert np.diff(np.take_along_axis(scores, order, axis=1), axis=1).max() <= tolerance
