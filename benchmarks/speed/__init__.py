"""Time and memory, one topic per file: `python -m benchmarks.speed.fit`."""
