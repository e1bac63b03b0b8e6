"""Beside other implementations, in ulps: `python -m benchmarks.agreement.table`."""
