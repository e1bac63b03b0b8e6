"""How long tests may take."""

import pytest

# Seconds for a process that a test has started: many, as others may want the processors.
HUNG = 1800


def slow_but(quick, cases):
    """The cases of a parametrized test, of which `quick` alone are no slow tests."""
    cases = list(cases)
    assert all(case in cases for case in quick)

    def slow(case):
        several = case if type(case) is tuple else (case,)
        return pytest.param(*several, marks=pytest.mark.slow)

    return [case if case in quick else slow(case) for case in cases]
