"""How long tests may take."""

import pytest

# Seconds for a process that a test has started: many, as others may want the processors.
HUNG = 1800


def slow_but(quick, cases):
    """The cases of a parametrized test, of which `quick` alone are no slow tests."""
    cases = list(cases)
    assert all(case in cases for case in quick)
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
