"""Speed and memory beside a bare tile scan and beside peers: `python -m benchmarks.run`.

One file per topic, each a command of its own with its full sizes: `python -m benchmarks.speed.fit`;
`benchmarks.speed.on_my_accelerator` for GPUs and TPUs. Quality: `benchmarks.studies`.
"""
