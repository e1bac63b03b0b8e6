"""The commands from files to files of any size. The work is imported when it begins."""

from pathlib import Path
from typing import Any

import click

from dbnorm_jax._cli.commands import options
from dbnorm_jax._cli.commands.group import cli


class _Methods(click.Choice[str]):
    """Those of the table, which is imported when it is asked for."""

    @property
    def choices(self) -> Any:
        from dbnorm_jax._cli.measuring.methods import file_methods

        return file_methods()

    @choices.setter
    def choices(self, _: Any) -> None: ...


@cli.command()
@click.argument("gallery", type=options.FILE)
@options.file("--query-bank", "Other items like the queries.")
@options.gallery_bank()
@click.option(
    "--query-statistics",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Instead of --query-bank: its statistics, for instance merged ones.",
)
@click.option(
    "--gallery-statistics",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Instead of --gallery-bank: its statistics.",
)
@click.option(
    "--method",
    type=_Methods(()),
    default="dualdis",
    help="statistics: those of the query bank, for dbnorm merge.",
)
@options.betas("--beta")
@click.option(
    "-k",
    type=click.IntRange(min=0),
    metavar="K",
    help="Neighborhoods behind the gate (1), or similarities averaged (csls: 10, nnn: 128).",
)
@click.option("--weight", type=float, metavar="W", help="Of nnn.  [default: 0.75]")
@options.bank_pairs("What --method auto chooses by.")
@options.similarity()
@options.seed("Of auto.")
@options.output(
    "FILE.npz", "Write the correction there, for dbnorm search and dbnorm_jax.load.", required=True
)
@options.block_size()
@click.option(
    "--checkpoint-every",
    default=60.0,
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Keep the sums so far beside the output.",
)
@options.force("Begin anew and overwrite an earlier result.")
@options.as_json()
def fit(**values: Any) -> None:
    """Fit a correction to files of any size.

    Files are .npy, read in blocks (FILE.npz:name is read whole), one row per item. Work that was
    killed goes on where it was when the same command is given again, with the same result; work
    that is done returns at once.

    \b
    Examples:
      dbnorm fit images.npy --query-bank train_captions.npy --method dis --output correction.npz
      dbnorm fit images.npy --query-bank monday.npy --method statistics --output monday.npz
    """  # noqa: D301 - \b is click's mark for lines that are not to be refilled
    from dbnorm_jax._cli.commands.fit import Request, run

    run(Request(**values))


@cli.command()
@click.argument("files", nargs=-1, type=options.FILE, metavar="FILE.npz...")
@options.output("FILE.npz", "Write the statistics of the whole there.", required=True)
@click.option("--allow-repeats", is_flag=True, help="Count equal bank rows twice.")
@options.force()
@options.as_json()
def merge(**values: Any) -> None:
    """Merge statistics of parts of a bank into those of the whole.

    Statistics of different galleries, similarities, betas or k, and the same bank rows twice, are
    refused.

    \b
    Example:
      dbnorm merge monday.npz tuesday.npz --output both.npz
      dbnorm fit images.npy --query-statistics both.npz --method dis --output grown.npz
    """  # noqa: D301 - \b is click's mark for lines that are not to be refilled
    from dbnorm_jax._cli.commands.merge import Request, run

    run(Request(**values))


@cli.command()
@click.argument("queries", type=options.FILE)
@click.argument("gallery", type=options.FILE)
@click.option(
    "--correction",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="What dbnorm fit wrote. Left out: raw similarities.",
)
@options.neighbors("Items per query.")
@options.similarity("[default: that of the correction, or cosine]", default=None)
@options.file("--query-ids", "A name per query: lines of text, or .npy.")
@options.file("--gallery-ids", "A name per gallery item, likewise.")
@options.output(
    "FILE",
    "Write there: .npz (scores, indices), .npy (indices), .csv or .jsonl.  [default: JSON "
    "lines on standard output]",
)
@options.block_size()
@options.force()
@options.as_json("Print what was written as JSON.")
def search(**values: Any) -> None:
    """Find the nearest gallery items of each query, exactly.

    Files may be of any size: .npy, read in blocks (FILE.npz:name is read whole), one row per
    item. QUERIES may be "-", an .npy on standard input.

    \b
    Example:
      dbnorm search captions.npy images.npy --correction correction.npz -k 10 --output found.npz
    """  # noqa: D301 - \b is click's mark for lines that are not to be refilled
    from dbnorm_jax._cli.commands.search import Request, run

    run(Request(**values))


@cli.command()
@click.argument("gallery", type=options.FILE)
@click.option(
    "--correction",
    required=True,
    metavar="FILE.npz",
    help="What dbnorm_jax.save wrote: a correction fitted on this gallery.",
)
@options.output(
    "FOLDER",
    "Where the vectors, what queries need, and a README of how to query go.",
    required=True,
)
@options.similarity("[default: that of the correction, or cosine]", default=None)
@click.option(
    "--metric",
    type=click.Choice(["inner-product", "cosine"]),
    default="inner-product",
    help="What the index compares by: cosine, for stores that normalize, takes one dimension more.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", help="Of the vectors."
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["npy", "parquet"]),
    default="npy",
    help="Of the vectors; parquet has columns id and vector.",
)
@options.force("Overwrite an earlier export in FOLDER.")
@options.as_json()
def export(**values: Any) -> None:
    """Write corrected gallery vectors for any vector index.

    The correction becomes one more dimension per gated bank, or one in all, so that a plain
    inner-product search returns corrected results: faiss, Qdrant, Milvus, pgvector and others.
    GALLERY is read by blocks: a .npy file may be larger than memory.

    \b
    Example:
      dbnorm export images.npy --correction correction.npz --output index
    """  # noqa: D301 - \b is click's mark for lines that are not to be refilled
    from dbnorm_jax._cli.commands.export import Request, run

    run(Request(**values))
