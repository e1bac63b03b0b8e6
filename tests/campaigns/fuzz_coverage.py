"""Coverage-guided files for `fuzz_readers`, by atheris: what reaches new code is mutated on.

    python tests/campaigns/fuzz_readers.py --executions 200000 --seed 1 --coverage

Needs `pip install atheris`. Our own Python, NumPy's reader of headers and zipfile are watched; half
of the mutations are those of `fuzz_readers`, half libFuzzer's. Files that broke the contract are
printed in base64.
"""

import base64
import json
import pathlib
import random
import subprocess
import sys

WATCHED = [
    "dbnorm_jax._cli.reading.arrays",
    "dbnorm_jax._cli.reading.names",
    "dbnorm_jax._cli.reading.relevant",
    "dbnorm_jax._cli.reading.results",
    "dbnorm_jax._cli.reading.single",
    "dbnorm_jax._cli.reading.formats",
    "dbnorm_jax._cli.reading.argument",
    "dbnorm_jax._cli.reading.large",
    "dbnorm_jax._cli.reading.sets",
    "dbnorm_jax._src.files.archives",
    "dbnorm_jax._src.files.binary",
    "dbnorm_jax._src.places.disk.checkpoint",
    "dbnorm_jax._src.files.state",
    "numpy.lib.format",
    "numpy.lib._format_impl",
    "zipfile",
]
LARGEST = 2**16  # of a file
FLUSHED = 500  # executions


def run(folder: pathlib.Path, executions: int, seed: int) -> int:
    """How many executions broke the contract; a child that ends early is followed by another."""
    done = broken = 0
    while done < executions:
        place = folder / "coverage.json"
        place.write_text(json.dumps([0, 0]))
        command = [sys.executable, __file__, folder, executions - done, seed + done]
        code = subprocess.run([str(part) for part in command], check=False).returncode
        count, found = json.loads(place.read_text())
        done, broken = done + max(count, 1), broken + found
        if code:
            broken += 1
            artifacts = [base64.b85encode(p.read_bytes()) for p in folder.glob("crash-*")]
            print(f"the process ended with {code}: {artifacts}", flush=True)
            for path in folder.glob("crash-*"):
                path.unlink()
    return broken


def child(folder: pathlib.Path, executions: int, seed: int) -> None:
    import atheris

    with atheris.instrument_imports(include=WATCHED):
        import fuzz_readers
    if fuzz_readers.has_tables():
        fuzz_readers.READERS.update(fuzz_readers.table_readers())
    readers = list(fuzz_readers.READERS)
    suffixes = {
        name: [fuzz_readers.suffix_of(kind) for kind in reader.kinds]
        for name, reader in fuzz_readers.READERS.items()
    }

    def packed(name: str, suffix: str, data: bytes) -> bytes:
        return bytes([readers.index(name), suffixes[name].index(suffix)]) + data

    def unpacked(data: bytes) -> tuple[str, str, bytes]:
        name = readers[data[0] % len(readers)]
        return name, suffixes[name][data[1] % len(suffixes[name])], data[2:]

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    begun = [
        packed(name, fuzz_readers.suffix_of(kind), data)
        for name, reader in fuzz_readers.READERS.items()
        for kind in reader.kinds
        for data in fuzz_readers.good_files()[kind]
    ]
    for number, data in enumerate(begun):
        if len(data) < LARGEST:
            (corpus / str(number)).write_bytes(data)
    fuzz_readers.accepted()  # starts what threads there are
    counts = [0, 0]

    def one(data: bytes) -> None:
        counts[0] += 1
        if len(data) > 2:
            name, suffix, contents = unpacked(data)
            path = folder / f"{counts[0]}{suffix}"
            path.write_bytes(contents)
            try:
                # A mutated checksum may fit: `signed` is among the mutations.
                fuzz_readers.judge(name, path, forged=name in ("load", "checkpoint"))
            except AssertionError as error:
                counts[1] += 1
                fuzz_readers.forget()
                print(f"{error}; {suffix} in base85: {base64.b85encode(contents)!r}", flush=True)
        if counts[0] % FLUSHED == 0 or counts[0] >= executions:
            (folder / "coverage.json").write_text(json.dumps(counts))

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if len(data) < 3 or rng.random() < 0.5:
            return atheris.Mutate(data, most)
        name, suffix, contents = unpacked(data)
        change = fuzz_readers.bytewise
        if rng.random() < 0.5:
            if contents[:2] == b"PK":
                change = fuzz_readers.zipped
                if name in ("load", "checkpoint", "read_provenance") and rng.random() < 0.6:
                    change = fuzz_readers.signed
            elif contents[:1] == b"\x93":
                change = fuzz_readers.npy_header
            elif suffix == ".safetensors" and len(contents) > 8:
                change = fuzz_readers.safetensors_header
            elif suffix in (".parquet", ".arrow", ".feather"):
                contents = fuzz_readers.tables().unusual(rng, suffix) or contents
        return (data[:2] + change(rng, contents))[:most]

    options = [
        f"-runs={executions}",
        f"-seed={seed}",
        f"-max_len={LARGEST}",
        "-verbosity=0",
        f"-artifact_prefix={folder}/",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    place, count, first_seed = sys.argv[1:]
    child(pathlib.Path(place), int(count), int(first_seed))
