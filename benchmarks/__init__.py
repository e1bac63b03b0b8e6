"""Speed beside a bare tile scan and beside peers: `python -m benchmarks.run`."""
