"""What `boundaries.py` draws: sizes at the edges of tiles, and values hard to compute with."""

import dataclasses

import jax.numpy as jnp
import numpy as np

PLACES = ("matrix", "streamed", "mesh", "files", "index")
METHODS = ("raw", "raw", "is", "dis", "dualis", "dualdis", "dualdis", "csls", "nnn")
SMALL = (1, 2, 3, 5, 8)
EDGES = (
    *(31, 32, 33, 63, 64, 65, 170, 171, 341, 342),
    *(511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049),
)
MESHES = ((2, 4), (8, 1), (1, 8), (3, 2))
DTYPES = ("float32", "float32", "float64", "bfloat16", "float16")
EXACT = ("lattice", "zeros", "constant")  # products and their sums are exact in float32
KINDS = ("normal", "copies", "offset", "wide", "far", "denormal", *EXACT, "lattice")
WEIGHTS = ("counts", "shares", "extreme", "few", "none")
MOST_PAIRS = 2**16  # bank items x gallery items of a bout, and four times as many of one in 16


@dataclasses.dataclass(frozen=True)
class Bout:
    """What programs are compiled for."""

    place: str
    method: str
    bank: int
    gallery: int
    queries: int
    dim: int
    k: int
    dtypes: tuple[str, str]  # of the gallery, of all that is compared with it
    x64: bool
    similarity: str
    weighted: bool
    masked: bool
    chunk: int
    block: int
    mesh: tuple[int, int]
    cut: int  # bank items of the first part

    @property
    def result(self):
        """The dtype of results."""
        return np.dtype("float64" if self.x64 and "float64" in self.dtypes else "float32")

    @property
    def wide(self):
        """The dtype that the oracle computes in."""
        return np.longdouble if self.result == np.float64 else np.float64

    def __str__(self):
        sizes = f"{self.bank} x {self.gallery}, {self.queries} queries, dim {self.dim}, k {self.k}"
        return f"{self.place} {self.method} {sizes} {'/'.join(self.dtypes)} x64={self.x64:d}"


def bout_of(seed, number):
    random = np.random.default_rng([seed, number])

    def pick(choices):
        return choices[random.integers(len(choices))]

    most = MOST_PAIRS * (4 if random.random() < 1 / 16 else 1)
    place = PLACES[number % len(PLACES)]
    while True:
        sizes = {name: int(pick(SMALL)) for name in ("bank", "gallery", "queries", "dim")}
        for name in random.permutation(list(sizes))[: random.integers(1, 4)]:
            sizes[str(name)] = int(pick(EDGES))
        rows = sizes["bank"] + sizes["queries"]
        if rows * sizes["gallery"] <= most and rows * sizes["gallery"] * sizes["dim"] <= 64 * most:
            break
    edges = [edge for edge in (*SMALL, *EDGES) if edge <= sizes["gallery"]]
    k = int(pick([1, min(2, sizes["gallery"]), sizes["gallery"], pick(edges)]))
    own = pick(DTYPES)
    other = pick(DTYPES) if random.random() < 0.25 else own
    dtypes = ("float32" if place == "files" and one == "bfloat16" else one for one in (own, other))
    names = ["dot_product"] * 3 + ["cosine_similarity", "negative_squared_euclidean"]
    return Bout(
        **sizes,
        place=place,
        method=pick(METHODS[2:] if place == "index" else METHODS),
        k=k,
        dtypes=tuple(dtypes),
        x64=bool(random.random() < 0.3),
        similarity=pick(names),
        weighted=bool(random.random() < 0.5),
        masked=bool(random.random() < 0.5),
        chunk=int(pick((31, 32, 33, 64, 171, 342, 512, 1024))),
        block=int(pick((31, 32, 33, 64, 171, 342, 512, 4096))),
        mesh=pick(MESHES),
        cut=int(random.integers(0, sizes["bank"])),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """Values of one execution; what is None is not given."""

    kind: str
    bank: np.ndarray
    gallery_bank: np.ndarray
    gallery: np.ndarray
    queries: np.ndarray
    relevant: np.ndarray  # [num_queries, 2], -1 for none
    weights: np.ndarray | None
    exclude: np.ndarray | None  # [num_bank, 2]
    pairs: np.ndarray | None  # [num_bank, num_gallery] bool, for matrices
    unseen: np.ndarray | None  # [num_queries]
    items: np.ndarray | None  # [num_gallery] bool
    powers: np.ndarray  # [2] of 10: betas relative to the scale of similarities

    @property
    def exact(self):
        return self.kind in EXACT


def draw_of(bout, seed, number):
    random = np.random.default_rng([seed, 1, number])
    kind = KINDS[random.integers(len(KINDS))]
    narrow = "float16" in bout.dtypes
    scale = 1.0
    if not narrow and random.random() < 0.4:
        powers = (-50, -20, 10, 50, 57) if bout.dim <= 65 else (-20, 10)
        scale = 2.0 ** powers[random.integers(len(powers))]
    common = random.normal(size=bout.dim) / bout.dim**0.5  # of `offset`, and of `constant`

    def rows(count, dtype):
        values = random.normal(size=(count, bout.dim)) / bout.dim**0.5
        if kind == "lattice":
            values = random.integers(-2, 3, values.shape) / 2
        if kind == "zeros":
            values = random.choice([-1.0, -0.0, -0.0, 0.0, 0.0, 1.0], values.shape)
        if kind == "constant":
            values = np.broadcast_to(np.round(4 * common) / 4, values.shape).copy()
        if kind == "copies":
            values = values[random.integers(0, 1 + count // 3, count)]
        if kind == "offset":
            values = common + values / 256
        if kind == "wide":
            values *= 10.0 ** -random.uniform(0, 3 if narrow else 8, (count, 1))
        if kind == "far":
            values[random.integers(count)] *= 8 if narrow else 1e3
        values = values * (1.0 if kind == "far" and scale > 1e9 else scale)
        if kind == "denormal":
            values[random.random(count) < 0.5] *= 2.0 ** (-18 if narrow else -129) / scale
        array = values.astype(jnp.dtype(dtype))
        if bout.similarity == "cosine_similarity":
            smallest = float(jnp.finfo(array.dtype if bout.x64 else min_dtype(array.dtype)).tiny)
            array[np.abs(array.astype(np.float64)).max(axis=1) < smallest, 0] = 1
        return array

    def indices(*shape):
        found = random.integers(0, bout.gallery, shape).astype(np.int32)
        return np.where(random.random(shape) < 0.5, -1, found).astype(np.int32)

    exclude = pairs = unseen = items = None
    if bout.masked:
        exclude, unseen = indices(bout.bank, 2), indices(bout.queries)
        items = random.random(bout.gallery) < 0.8
        pairs = random.random((bout.bank, bout.gallery)) < random.choice([0.2, 0.9])
        pairs &= random.random(bout.bank)[:, None] < 0.9
    gallery, other = bout.dtypes
    return Draw(
        kind,
        rows(bout.bank, other),
        rows(max(1, bout.bank // 2), other),
        rows(bout.gallery, gallery),
        rows(bout.queries, other),
        np.where(random.random((bout.queries, 1)) < 0.1, -1, indices(bout.queries, 2)),
        weights_of(bout, random) if bout.weighted else None,
        exclude,
        pairs,
        unseen,
        items,
        random.uniform(-6, 6, 2),
    )


def weights_of(bout, random):
    how = WEIGHTS[random.integers(len(WEIGHTS))]
    weights = random.integers(0, 4, bout.bank)
    if how == "shares":
        weights = random.random(bout.bank)
    if how == "extreme":
        weights = 10.0 ** random.uniform(-17.9, 17.9, bout.bank)
    if how == "few":
        weights = random.random(bout.bank) < 0.1
    if how == "none":
        weights = np.zeros(bout.bank)
    return weights.astype(bout.result)


def min_dtype(dtype):
    """What the dtype becomes where x64 is off."""
    return np.dtype("float32") if dtype == np.float64 else dtype
