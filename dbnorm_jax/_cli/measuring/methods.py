"""The methods a comparison can hold: the library's table, what stands beside it, and wishes."""

import dataclasses
import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

import dbnorm_jax as dbn
from dbnorm_jax._cli.measuring.choosing import choose
from dbnorm_jax._src.corrections import table
from dbnorm_jax._src.corrections.table import Row, WholeSource
from dbnorm_jax._src.tuning.mixture import fit_chosen

# Inverse temperatures for cosines; other similarities have no default.
DEFAULT_BETAS = {beta.name: beta.default or 0.0 for beta in (table.BETA_QUERY, table.BETA_GALLERY)}
# What comes of `auto`: a Correction and why.
CHOICE = "choice"


def _published(source: WholeSource, *, beta_query: float, beta_gallery: float) -> table.Rescore:
    query = source.statistics("query", beta_query, 1)
    gallery = source.statistics("gallery", beta_gallery, 1)
    return lambda rows, _: dbn.published_scores(rows, query, gallery)


def _auto(source: Any) -> tuple[dbn.Correction, dbn.tuning.Choice]:
    choice, exclude = choose(
        gallery=source.gallery,
        query_bank=source.query_bank,
        gallery_bank=source.gallery_bank,
        pairs=source.bank_pairs,
        similarity_fn=source.similarity_fn,
        trust_banks=source.test.trust_banks,
    )
    streamed = source.streamed(source.gallery, exclude)
    size, similarity_fn = len(source.gallery), source.similarity_fn
    return fit_chosen(choice, streamed, size, jnp.float32, similarity_fn=similarity_fn), choice


_OTHERS = {
    "raw": Row("raw", "", "", "", lambda _: None, needs=()),
    "auto": Row("auto", "auto", "this library", "", _auto, needs=(table.VECTORS,), gives=CHOICE),
    "published": Row(
        "DualDIS (published)",
        "published_scores",
        "the released code",
        "",
        _published,
        (table.BETA_QUERY, table.BETA_GALLERY),
        (table.QUERY_BANK, table.GALLERY_BANK),
        table.SCORES,
        gated=True,
    ),
}
KINDS: Mapping[str, Row] = ChainMap(table.TABLE, _OTHERS)


def groups() -> dict[str, tuple[str, ...]]:
    """The names that stand for several methods, and theirs."""
    members: dict[str, tuple[str, ...]] = {}
    for name, row in table.TABLE.items():
        if row.group:
            members[row.group] = (*members.get(row.group, ()), name)
    return members


def everything() -> tuple[str, ...]:
    """All methods, group by group."""
    return tuple(name for names in groups().values() for name in names)


def file_methods() -> tuple[str, ...]:
    """What `dbnorm fit` makes of files of any size, `auto` and statistics beside the table's."""
    rows = (name for name in everything() if table.TABLE[name].by_statistics)
    return (*rows, "auto", "statistics")


def checked_beta(
    name: str, given: float | None, measure: str, why: str = "only cosines have a default"
) -> float:
    """What an option says of a beta, or its default for cosines; `measure`: "given" by matrices."""
    option = f"--{name.replace('_', '-')}"
    if given is None:
        if measure == "cosine":
            return DEFAULT_BETAS[name]
        kind = "similarity matrices" if measure == "given" else f"{measure} similarity"
        raise ValueError(
            f"{option}: expected a number with {kind}, got none; beta has the unit 1/similarity, "
            f"so {why}"
        )
    if not (math.isfinite(given) and given > 0):
        raise ValueError(
            f"{option}: expected a positive number, got {given:g}; for cosines, 20 and 1 "
            f"are a start"
        )
    return given


DEFAULT = ("auto", *groups()["paper"], "csls", "nnn")
# Of those, what runs where no pairs can choose: it has no parameter that needs a choice.
WITHOUT_PAIRS = ("csls",)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method with its parameters; betas are in 1/[unit of similarity]."""

    kind: str
    beta_query: float | None = None
    beta_gallery: float | None = None
    options: tuple[tuple[str, float], ...] = ()

    @property
    def about(self) -> Row:
        """What is known of its kind."""
        return KINDS[self.kind]

    @property
    def name(self) -> str:
        """As in the papers: DualIS."""
        return self.about.name

    @property
    def betas(self) -> dict[str, float]:
        """By bank, those that it has."""
        betas = {"query": self.beta_query, "gallery": self.beta_gallery}
        return {bank: beta for bank, beta in betas.items() if beta is not None}

    @property
    def label(self) -> str:
        """With its parameters: DualIS(20, 1)."""
        if self.kind == "published":
            return self.name
        values = [f"{value:g}" for value in (*self.betas.values(), *dict(self.options).values())]
        return f"{self.name}({', '.join(values)})" if values else self.name

    def fit(self, source: Any) -> Any:
        """What comes of it; `about.gives` says what that is."""
        whole = {one.name for one in self.about.parameters if one.whole}
        options = {name: int(value) if name in whole else value for name, value in self.options}
        betas = {f"beta_{bank}": beta for bank, beta in self.betas.items()}
        return self.about.fit(source, **betas, **options)


def choose_methods(
    kinds: Sequence[str], beta_query: float | None, beta_gallery: float | None
) -> list[Method]:
    """The methods of these kinds with default parameters, raw always first."""
    others = [kind for kind in dict.fromkeys(kinds) if kind != "raw"]
    return [Method("raw"), *(make_method(kind, {}, beta_query, beta_gallery) for kind in others)]


def make_method(
    kind: str, parameters: Mapping[str, float], beta_query: float | None, beta_gallery: float | None
) -> Method:
    """One method; `parameters` stand before the betas given for all."""
    given: dict[str, Any] = {"beta_query": beta_query, "beta_gallery": beta_gallery, **parameters}
    values = {name: given.get(name, value) for name, value in KINDS[kind].defaults.items()}
    query, gallery = (values.pop(name, None) for name in DEFAULT_BETAS)
    return Method(kind, query, gallery, tuple(values.items()))


def with_rows_for(method: Method, sizes: Mapping[str, int], option: str) -> Method:
    """The method with as many neighbors as there are rows: a default is lowered, more is refused.

    `option` names in an error what asked for it.
    """
    options = dict(method.options)
    if "k" not in options:
        return method
    sides = ("query_bank", "gallery") if table.DISTANCES in method.about.needs else ("query_bank",)
    k, most = options["k"], min(sizes[side] for side in sides)
    if k > most and k != method.about.defaults["k"]:
        raise ValueError(
            f"{option} {method.kind}:k={k:g}: expected at most {most}, rows of the "
            f"{' and of the '.join(sides).replace('_', ' ')}, got {k:g}; lower it"
        )
    return dataclasses.replace(method, options=tuple((options | {"k": min(k, most)}).items()))


class Wish(NamedTuple):
    """One entry of --methods."""

    kind: str
    parameters: dict[str, float]
    by_name: bool  # named itself, not through its group


def parse(text: str, option: str) -> list[Wish]:
    """`is,nnn:k=64:weight=0.5,transport`, given for an option -> methods with their parameters."""
    chosen: list[Wish] = []
    members_of = {"all": everything(), **groups()}
    for item in text.split(","):
        name, *pairs = item.strip().lower().split(":")
        members = members_of.get(name, (name,))
        if not KINDS.keys() >= {*members}:
            raise ValueError(
                f"{option}: expected a list of {', '.join(('auto', *members_of['all']))}, or "
                f"groups {', '.join(members_of)}, got {name!r}; write for instance {option} "
                f"is,dualis"
            )
        if name in members_of and pairs:
            raise ValueError(
                f"{option}: expected parameters after one method, got them after the group "
                f"{name}; write them after its methods"
            )
        parameters = dict(_parameter(option, members[0], pair) for pair in pairs)
        chosen += [Wish(kind, parameters, name not in members_of) for kind in members]
    return chosen


def _parameter(option: str, kind: str, pair: str) -> tuple[str, float]:
    name, equals, text = pair.partition("=")
    known = KINDS[kind].defaults
    if name not in known or not equals:
        offered = f"{kind}:name=value with {', '.join(known)}" if known else f"{kind} alone"
        raise ValueError(f"{option}: expected {offered}, got {kind}:{pair}; correct it")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    whole = any(one.whole for one in KINDS[kind].parameters if one.name == name)
    if not 0 < value < math.inf or (whole and not value.is_integer()):
        what = "a whole number" if whole else "a number"
        raise ValueError(
            f"{option}: expected {what} above 0 for {kind}:{name}, got {text!r}; correct it"
        )
    return name, value
