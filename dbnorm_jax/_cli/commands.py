"""The commands and their options. The work is imported when it begins."""

from pathlib import Path
from typing import Any

import click

import dbnorm_jax

_SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "show_default": True,
}


@click.group(context_settings=_SETTINGS)
@click.version_option(dbnorm_jax.__version__, prog_name="dbnorm")
def cli() -> None:
    """See and correct hubs in embedding retrieval.

    A hub is a gallery item that turns up in the results of far too many queries. Dual Bank
    Normalization learns from a bank of other queries, and one of other gallery items, which items
    these are, and takes their advantage away.

    Start with: dbnorm demo
    """


@cli.command()
@click.option("--source", default="en", help="Language of the queries.")
@click.option("--target", default="de", help="Language of the gallery.")
@click.option(
    "--seed", default=0, type=click.IntRange(min=0), help="Splits the names into map, banks, test."
)
@click.option(
    "--output",
    default="dbnorm-demo",
    type=click.Path(path_type=Path),
    help="Folder for the table and pictures; earlier ones are overwritten.",
)
def demo(source: str, target: str, seed: int, output: Path) -> None:
    """Show hubs and what corrects them, on built-in data.

    Names of emoji in one language query their names in another. Takes some seconds and downloads
    nothing. Prints a table and writes it (CSV, JSON) with two pictures.

    Example: dbnorm demo --source de --target en
    """
    from dbnorm_jax._cli.demo import run

    run(source, target, seed, output)


@cli.command()
@click.argument("files", nargs=-1, metavar="[SET.npz | QUERIES GALLERY]")
@click.option("--query-bank", metavar="FILE", help="Other items like the queries (required).")
@click.option(
    "--gallery-bank",
    metavar="FILE",
    help="Other items like the gallery. Left out: the gallery itself, each item without itself.",
)
@click.option(
    "--relevant",
    metavar="FILE",
    help="Right gallery rows: integers, one per query (-1: none), or an npz with gt_indptr and "
    "gt_indices. Left out: row i belongs to row i if the counts agree.",
)
@click.option(
    "--bank-pairs",
    metavar="FILE|rows",
    help="Gallery-bank row of each query-bank row (integers, -1: none); 'rows': row i and row i. "
    "What `auto` chooses by; without them it keeps raw.",
)
@click.option(
    "--similarity",
    type=click.Choice(["cosine", "dot", "euclidean"]),
    help="cosine normalizes the rows; euclidean is the negative squared distance.  "
    "[default: cosine]",
)
@click.option(
    "--beta-query",
    type=float,
    metavar="BETA",
    help="Inverse temperature of the query bank, 1/[unit of similarity].  [default: 20 for cosine]",
)
@click.option(
    "--beta-gallery",
    type=float,
    metavar="BETA",
    help="The same for the gallery bank.  [default: 1 for cosine]",
)
@click.option(
    "--methods",
    metavar="LIST",
    help="Which to run: auto, or by name or group (all, paper, means, transport, rescaling, "
    "vectors, transductive), with parameters as nnn:k=64:weight=0.5; raw is always there.  "
    "[default: auto where there are pairs, paper,csls,nnn]",
)
@click.option("--published", is_flag=True, help="Add DualDIS as the released code scores it.")
@click.option("--reverse", is_flag=True, help="Swap both sides: the gallery queries the queries.")
@click.option(
    "--similarities",
    metavar="FILE",
    help="Instead of embeddings: queries x gallery, higher=closer.",
)
@click.option(
    "--query-bank-similarities", metavar="FILE", help="With --similarities: query bank x gallery."
)
@click.option(
    "--gallery-bank-similarities",
    metavar="FILE",
    help="With --similarities: gallery bank x gallery. Left out: only IS and DIS run.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the table (CSV, JSON) and two pictures there.",
)
@click.option("--force", is_flag=True, help="Overwrite earlier results in FOLDER.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def evaluate(**options: Any) -> None:
    """Compare the corrections on your embeddings.

    The table sets raw retrieval beside `auto`, the correction that the bank's own pairs prove
    better (or raw), and IS, DIS, DualIS, DualDIS, CSLS and NNN; docs/methods.md has all methods.

    Files are .npy (memory-mapped) or .npz (FILE.npz:name picks an array), one row per item. A
    SET.npz holds query, gallery and query_bank, and possibly gallery_bank, gt_indptr with
    gt_indices, and bank_pair.

    \b
    Examples:
      dbnorm evaluate captions.npy images.npy --query-bank train_captions.npy
             --gallery-bank train_images.npy --output results
      dbnorm evaluate set.npz --reverse
      dbnorm evaluate --similarities s.npy --query-bank-similarities b.npy --beta-query 20
    """  # noqa: D301 - \b is click's mark for lines that are not to be refilled
    from dbnorm_jax._cli.evaluate import Request, run

    options["files"] = tuple(options["files"])
    run(Request(**options))


@cli.command()
@click.argument("query_bank")
@click.argument("gallery_bank")
@click.option(
    "--bank-pairs",
    metavar="FILE|rows",
    help="Right gallery-bank row of each query-bank row (integers, -1: none); 'rows': row i and "
    "row i. Without them raw is kept.",
)
@click.option(
    "--gallery",
    metavar="FILE",
    help="The items that will be searched: held-out queries are ranked among them.  [default: the "
    "gallery bank]",
)
@click.option(
    "--similarity",
    type=click.Choice(["cosine", "dot", "euclidean"]),
    default="cosine",
    help="cosine normalizes the rows; euclidean is the negative squared distance.",
)
@click.option("--seed", default=0, type=click.IntRange(min=0), help="Of folds and sign flips.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Write the choice there, for dbnorm_jax.load and tuning.fit.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def tune(**options: Any) -> None:
    """Choose the correction from the banks alone; raw unless another is proven better.

    QUERY_BANK holds other items like the queries, GALLERY_BANK other items like the gallery: .npy,
    or FILE.npz:name. Says what was chosen, on what evidence, and what looks wrong with the banks.

    \b
    Example:
      dbnorm tune train_captions.npy train_images.npy --bank-pairs rows --gallery images.npy
    """  # noqa: D301 - \b is click's mark for lines that are not to be refilled
    from dbnorm_jax._cli.tune import Request, run

    run(Request(**options))
