"""The commands and their options. The work is imported when it begins."""

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
@click.option("--source", default="en", help="Language of the queries.")
@click.option("--target", default="de", help="Language of the gallery.")
@options.seed("Splits the names into map, banks, test.")
@options.output("FOLDER", "For the table, a page (HTML) and pictures.", default="dbnorm-demo")
@options.force("Overwrite earlier results in FOLDER.")
def demo(source: str, target: str, seed: int, output: Path, force: bool) -> None:
    """Show hubs and what corrects them, on built-in data.

    Names of emoji in one language query their names in another. Takes some seconds and downloads
    nothing. Prints a table and writes it with a page (HTML) and pictures.

    Example: dbnorm demo --source de --target en
    """
    from dbnorm_jax._cli.commands.demo import run

    run(source, target, seed, output, force=force)


@cli.command()
@click.argument("files", nargs=-1, type=options.FILE, metavar="[SET.npz | QUERIES GALLERY]")
@options.file("--query-bank", "Other items like the queries (required).")
@options.gallery_bank()
@options.file(
    "--relevant",
    "Right gallery rows: integers, one per query (-1: none), or an npz with gt_indptr and "
    "gt_indices; qrels with ids as labels; grades (docs/inputs.md). Left out: row i belongs to "
    "row i if the counts agree.",
)
@options.bank_pairs("What auto chooses by.")
@options.trust_banks()
@options.labels()
@options.similarity(default=None)
@options.betas()
@click.option(
    "--methods",
    metavar="LIST",
    help="Which to run: auto, or by name or group (all, paper, means, transport, rescaling, "
    "vectors, transductive; published: DualDIS as the released code scores it), with parameters as "
    "nnn:k=64:weight=0.5; raw is always there.  "
    "[default: auto,paper,csls,nnn with --bank-pairs, else csls]",
)
@click.option("--reverse", is_flag=True, help="Swap both sides: the gallery queries the queries.")
@options.file("--similarities", "Instead of embeddings: queries x gallery, higher=closer.")
@options.file("--query-bank-similarities", "With --similarities: query bank x gallery.")
@options.file(
    "--gallery-bank-similarities",
    "With --similarities: gallery bank x gallery. Left out: only IS and DIS run.",
)
@options.output("FOLDER", "Write a page (HTML), the table (CSV, JSON) and pictures there.")
@options.force("Overwrite earlier results in FOLDER.")
@options.as_json("Print JSON instead of the table.")
def evaluate(**values: Any) -> None:
    """Compare the corrections on your embeddings.

    With --bank-pairs the table sets raw retrieval beside `auto`, the correction that these pairs
    prove better (or raw), and IS, DIS, DualIS, DualDIS, CSLS and NNN; without them, beside CSLS.
    docs/methods.md has all methods.

    Files are .npy (memory-mapped) or .npz (FILE.npz:name picks an array), one row per item; a
    folder or a pattern ('emb_*.npy') stands for its files in natural order. A SET.npz holds query,
    gallery and query_bank, and possibly gallery_bank, gt_indptr with gt_indices, and bank_pair.

    \b
    Examples:
      dbnorm evaluate captions.npy images.npy --query-bank train_captions.npy \\
             --gallery-bank train_images.npy --bank-pairs rows --output results
      dbnorm evaluate set.npz --reverse
      dbnorm evaluate --similarities s.npy --query-bank-similarities b.npy
    """  # noqa: D301 - \b is click's mark for lines that are not to be refilled
    from dbnorm_jax._cli.commands.evaluate import Request, run

    run(Request(**values))


@cli.command()
@click.argument("query_bank", type=options.FILE)
@click.argument("gallery_bank", type=options.FILE)
@options.bank_pairs("Without them raw is kept.")
@options.file(
    "--gallery",
    "The items that will be searched: held-out queries are ranked among them.  [default: the "
    "gallery bank]",
)
@options.trust_banks()
@options.similarity()
@options.seed("Of folds and sign flips, with --bank-pairs.", default=None)
@options.output("FILE.npz", "Write the choice there, for dbnorm fit --choice and dbnorm_jax.load.")
@options.force()
@options.as_json()
def tune(**values: Any) -> None:
    """Choose the correction from the banks alone.

    Raw is kept unless another is proven better.

    QUERY_BANK holds other items like the queries, GALLERY_BANK other items like the gallery: .npy,
    or FILE.npz:name. Says what was chosen, on what evidence, and what looks wrong with the banks.

    \b
    Example:
      dbnorm tune train_captions.npy train_images.npy --bank-pairs rows --gallery images.npy
    """  # noqa: D301 - \b is click's mark for lines that are not to be refilled
    from dbnorm_jax._cli.commands.tune import Request, run

    run(Request(**values))


@cli.command()
@click.argument("file", required=False, type=options.FILE, metavar="[SET.npz | GALLERY]")
@options.file("--query-bank", "Items like the queries (with GALLERY).")
@options.gallery_bank(
    "Other items like the gallery, known to be clean. Left out: the gallery itself."
)
@options.file(
    "--queries", "Held-out queries whose retrieval is looked at. Left out: the query bank's own."
)
@options.file(
    "--relevant", "Right gallery rows of --queries, as for evaluate; of --results too, as qrels."
)
@options.labels()
@click.option("--demo", is_flag=True, help="Inspect the built-in data.")
@options.file(
    "--results",
    "Instead of embeddings: what a system returned, a TREC run, JSON lines or an npz with indices.",
)
@options.neighbors("With --results: the first places that count.")
@click.option(
    "--num-items",
    type=click.IntRange(min=1, max=2**31 - 1),
    metavar="COUNT",
    help="With --results: the size of the collection, of which a list names a part.",
)
@options.similarity(default=None)
@click.option("--method", help="The correction, written as for evaluate --methods.  [default: is]")
@options.betas()
@options.bank_pairs("For --method auto, and to screen corrected scores.")
@options.trust_banks()
@click.option("--top", default=10, type=click.IntRange(min=1), help="Hubs and others to list.")
@click.option(
    "--false-alarm-rate",
    type=float,
    metavar="SHARE",
    help="Of clean items that the screening for planted hubs may flag.  [default: 0.002]",
)
@options.output("FOLDER", "Write JSON, a CSV of all items and two pictures there.")
@options.force("Overwrite earlier results in FOLDER.")
@options.as_json()
def inspect(**values: Any) -> None:
    """Explain the hubs of a collection, and look for planted ones.

    Lists the hubs with their k-occurrence before and after a correction and the bank items that
    make them hubs; the items never retrieved that the correction rescues, and for whom; and the
    items that more of the query bank retrieves than it does clean ones: planted hubs, maybe.

    With --results it needs no embeddings: it lists the items that come up for everything, and says
    whether chance explains that. --labels then holds the ids of all items.

    \b
    Examples:
      dbnorm inspect images.npy --query-bank train_captions.npy --queries captions.npy \\
             --gallery-bank train_images.npy --labels image_names.txt
      dbnorm inspect set.npz --method dualis --output hubs
      dbnorm inspect --results run.trec --num-items 10000
      dbnorm inspect --demo
    """  # noqa: D301 - \b is click's mark for lines that are not to be refilled
    from dbnorm_jax._cli.commands.inspect import Request, run

    run(Request(**values))


@cli.command()
@click.option(
    "--queries",
    default=2048,
    type=click.IntRange(min=1),
    help="Rows that search, and rows of a bank.",
)
@click.option("--gallery", default=20480, type=click.IntRange(min=1), help="Rows searched.")
@click.option("--dim", default=512, type=click.IntRange(min=1), help="Embedding dimensions.")
@options.neighbors("Nearest items per query.")
@options.as_json("Print JSON instead of the table.")
def benchmark(**values: Any) -> None:
    """Time fitting and corrected search on this machine.

    Beside the similarities alone, which every exact search must compute: what is beyond 1.00 is
    the price. Random vectors; one process, everything in turn.

    Example: dbnorm benchmark --gallery 102400 --dim 768
    """
    from dbnorm_jax._cli.commands.benchmark import Request, run

    run(Request(**values))


@cli.command()
@click.argument("gallery", type=options.FILE)
@options.file("--query-bank", "Other items like the queries.")
@options.gallery_bank()
@options.file(
    "--query-statistics",
    "Instead of --query-bank: its statistics, for instance merged ones.",
    metavar="FILE.npz",
)
@click.option(
    "--method",
    type=_Methods(()),
    help="statistics: those of the query bank, for dbnorm merge.  [default: auto, with "
    "--bank-pairs]",
)
@options.file("--choice", "Instead of --method: what dbnorm tune wrote.", metavar="FILE.npz")
@options.betas()
@click.option(
    "-k",
    type=click.IntRange(min=0),
    metavar="K",
    help="Neighborhoods behind the gate (1), or similarities averaged (csls: 10, nnn: 128, or all "
    "rows of a smaller bank).",
)
@options.bank_pairs("What auto chooses by, and what a --choice leaves out by.")
@options.trust_banks()
@options.similarity()
@options.seed("Of --method auto.", default=None)
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

    Files are .npy, read in blocks (FILE.npz:name is read whole), one row per item, or folders and
    patterns of them. Work that was killed goes on where it was when the same command is given
    again, with the same result; work that is done returns at once.

    \b
    Examples:
      dbnorm fit images.npy --query-bank train_captions.npy --gallery-bank train_images.npy \\
             --bank-pairs rows --output correction.npz
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
@options.file(
    "--correction", "What dbnorm fit wrote. Left out: raw similarities.", metavar="FILE.npz"
)
@options.neighbors("Items per query.")
@options.similarity("[default: that of the correction, or cosine]", default=None)
@options.labels(bank=False)
@options.output(
    "FILE",
    "Write there: .npz (scores, indices, ids), .npy (indices), .csv, .jsonl, .trec (a run) or "
    ".json (as BEIR and mteb keep results).  [default: JSON lines on standard output]",
)
@options.block_size()
@options.force()
@options.as_json("Print what was written as JSON.")
def search(**values: Any) -> None:
    """Find the nearest gallery items of each query, exactly.

    Files may be of any size: .npy, read in blocks (FILE.npz:name is read whole), one row per
    item, or folders and patterns of them. QUERIES may be "-", an .npy on standard input.

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
