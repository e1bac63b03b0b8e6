"""What all benchmarks share: the machine, inputs, timings and records."""
