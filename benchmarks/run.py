"""All benchmarks, one after the other: `python -m benchmarks.run`."""

from benchmarks import memory, streaming


def main() -> None:
    """Prints every table."""
    streaming.main()
    print()
    memory.main()


if __name__ == "__main__":
    main()
