"""The methods a table can hold: names, groups, parameters and what each needs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Inverse temperatures for cosines; other similarities have no default.
DEFAULT_BETAS = {"beta_query": 20.0, "beta_gallery": 1.0}
_BETAS = tuple(DEFAULT_BETAS)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is known of a method before it runs.

    Attributes:
      name: as in the field's papers.
      group: a name that stands for all its methods in --methods.
      defaults: parameters and their defaults; betas are filled in by `choose_methods`.
      gated: acts on a query only where a gate is open.
      transductive: reads the other test queries.
      gallery_bank: needs a gallery bank.
      embeddings: cannot run on similarity matrices.
      unit: which parameters have the unit of similarity, or its inverse, and no default but for
        cosines.
    """

    name: str
    group: str
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    gated: bool = False
    transductive: bool = False
    gallery_bank: bool = False
    embeddings: bool = False
    unit: tuple[str, ...] = ()


_ONE, _TWO = _BETAS[:1], _BETAS
_INVGC = {"query_rate": 0.3, "gallery_rate": 0.1}
_SINKHORN = {"temperature": 0.05, "iterations": 10}

KINDS: dict[str, Kind] = {
    "raw": Kind("raw", "raw"),
    "auto": Kind("auto", "auto", embeddings=True),
    "is": Kind("IS", "paper", unit=_ONE),
    "dis": Kind("DIS", "paper", gated=True, unit=_ONE),
    "dualis": Kind("DualIS", "paper", gallery_bank=True, unit=_TWO),
    "dualdis": Kind("DualDIS", "paper", gated=True, gallery_bank=True, unit=_TWO),
    "published": Kind("DualDIS (published)", "published", gated=True, gallery_bank=True, unit=_TWO),
    "csls": Kind("CSLS", "means", {"k": 10}),
    "nnn": Kind("NNN", "means", {"k": 128, "weight": 0.75}),
    "dn": Kind("DN", "means", {"weight": 0.5}, embeddings=True),
    "sn": Kind("SN", "transport", _SINKHORN, unit=("temperature",)),
    "dbsn": Kind(
        "DBSN",
        "transport",
        _SINKHORN,
        gallery_bank=True,
        embeddings=True,
        unit=("temperature",),
    ),
    "hnn": Kind(
        "HNN", "transport", {"temperature": 0.05, "iterations": 100}, unit=("temperature",)
    ),
    "gc": Kind("GC", "rescaling"),
    "mp": Kind("MP", "rescaling", embeddings=True),
    "mp-empiric": Kind("MP empiric", "rescaling", embeddings=True),
    "ls": Kind("LS", "rescaling", {"k": 10}, embeddings=True),
    "nicdm": Kind("NICDM", "rescaling", {"k": 10}, embeddings=True),
    "dissim": Kind("DisSimLocal", "vectors", {"k": 10}, embeddings=True),
    "invgc": Kind("InvGC", "vectors", _INVGC, gallery_bank=True, embeddings=True),
    "invgc-local": Kind(
        "InvGC local", "vectors", {**_INVGC, "pool": 0.1}, gallery_bank=True, embeddings=True
    ),
    "dsl": Kind(
        "DSL", "transductive", {"temperature": 0.05}, transductive=True, unit=("temperature",)
    ),
}
GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(name for name, kind in KINDS.items() if kind.group == group)
    for group in ("paper", "means", "transport", "rescaling", "vectors", "transductive")
}
ALL = tuple(name for names in GROUPS.values() for name in names)
DEFAULT = ("auto", *GROUPS["paper"], "csls", "nnn")
_WHOLE = ("k", "iterations")


@dataclasses.dataclass(frozen=True)
class Method:
    """A method with its parameters; betas are in 1/[unit of similarity]."""

    kind: str
    beta_query: float | None = None
    beta_gallery: float | None = None
    options: tuple[tuple[str, float], ...] = ()

    @property
    def about(self) -> Kind:
        """What is known of its kind."""
        return KINDS[self.kind]

    @property
    def name(self) -> str:
        """As in the papers: DualIS."""
        return self.about.name

    @property
    def gated(self) -> bool:
        """Whether it acts on a query only where the gate is open."""
        return self.about.gated

    @property
    def label(self) -> str:
        """With its parameters: DualIS(20, 1)."""
        if self.kind == "published":
            return self.name
        betas = [beta for beta in (self.beta_query, self.beta_gallery) if beta is not None]
        values = [f"{value:g}" for value in (*betas, *dict(self.options).values())]
        return f"{self.name}({', '.join(values)})" if values else self.name

    def option(self, name: str) -> float:
        """One of its parameters."""
        return dict(self.options)[name]


def choose_methods(
    kinds: Sequence[str], beta_query: float | None, beta_gallery: float | None
) -> list[Method]:
    """The methods of these kinds with default parameters, raw always first."""
    others = [kind for kind in dict.fromkeys(kinds) if kind != "raw"]
    return [Method("raw"), *(make_method(kind, {}, beta_query, beta_gallery) for kind in others)]


def make_method(
    kind: str,
    parameters: Mapping[str, float],
    beta_query: float | None,
    beta_gallery: float | None,
) -> Method:
    """One method; `parameters` stand before the betas given for all."""
    about = KINDS[kind]
    betas = {
        name: parameters.get(name, beta) if name in about.unit else None
        for name, beta in zip(_BETAS, (beta_query, beta_gallery), strict=True)
    }
    options = tuple((name, parameters.get(name, value)) for name, value in about.defaults.items())
    return Method(kind, betas["beta_query"], betas["beta_gallery"], options)


class Wish(NamedTuple):
    """One entry of --methods.

    Attributes:
      kind: of the method.
      parameters: given with it.
      by_name: named itself, not through its group.
    """

    kind: str
    parameters: dict[str, float]
    by_name: bool


def parse(text: str) -> list[Wish]:
    """`is,nnn:k=64:weight=0.5,transport` -> methods with their parameters."""
    chosen: list[Wish] = []
    for item in text.split(","):
        name, *pairs = item.strip().lower().split(":")
        group = ALL if name == "all" else GROUPS.get(name)
        members = (name,) if group is None else group
        for kind in members:
            if kind not in KINDS:
                raise ValueError(
                    f"--methods: expected a list of {', '.join(('auto', *ALL))}, or groups "
                    f"{', '.join(('all', *GROUPS))}, got {name!r}; write for instance "
                    f"--methods is,dualis"
                )
        if group is not None and pairs:
            raise ValueError(
                f"--methods: expected parameters after one method, got them after the group "
                f"{name}; write them after its methods"
            )
        parameters = dict(_parameter(members[0], pair) for pair in pairs)
        chosen += [Wish(kind, parameters, group is None) for kind in members]
    return chosen


def _parameter(kind: str, pair: str) -> tuple[str, float]:
    name, equals, text = pair.partition("=")
    about = KINDS[kind]
    known = [*(beta for beta in _BETAS if beta in about.unit), *about.defaults]
    if name not in known or not equals:
        offered = f"{kind}:name=value with {', '.join(known)}" if known else f"{kind} alone"
        raise ValueError(f"--methods: expected {offered}, got {kind}:{pair}; correct it")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    whole = name in _WHOLE and not value.is_integer()
    if not math.isfinite(value) or value <= 0 or whole:
        what = "a whole number" if name in _WHOLE else "a number"
        raise ValueError(
            f"--methods: expected {what} above 0 for {kind}:{name}, got {text!r}; correct it"
        )
    return name, value
