"""Speed and memory beside a bare tile scan and beside peers: `python -m benchmarks.run`.

One file per topic, each a command of its own with its full sizes: fit, search, ranks, peers, small,
memory, scaling, authors; accelerator for GPUs and TPUs. Quality: quality, shift, paper.
"""
