"""Who comes up for everything: as text for people, and as CSV and JSON for machines."""

from typing import Any

from dbnorm_jax._cli.measuring.results import Popularity
from dbnorm_jax._cli.showing import table
from dbnorm_jax._cli.showing.output import Content, report_line, written
from dbnorm_jax._cli.showing.terminal import json_text, wide_console
from dbnorm_jax._src.core.text import printable

SCHEMA = "dbnorm results 1"
FILES = ("inspection.json", "items.csv")

_LONGEST = 32


def contents(found: Popularity) -> dict[str, Content]:
    """What each of the files will hold."""
    made = (
        lambda: json_text(content(found)).encode(),
        lambda: to_csv(found).encode(errors="replace"),
    )
    return dict(zip(FILES, map(written, made), strict=True))


def show(found: Popularity) -> None:
    """Prints the items that come up most, and what the counts say."""
    console, said = wide_console(), content(found)
    sizes = said["sizes"]
    of_all = "" if found.num_items is None else f" of {found.num_items:,}"
    console.print(
        f"{said['results']}: {sizes['queries']:,} queries, {sizes['retrieved']:,}{of_all} items in "
        f"the first {found.k} places",
        style="bold",
    )
    console.print()
    console.print(_headline(found), style="bold")
    console.print()
    right = ["right for"] * (found.judged is not None)
    headers = (f"N_{found.k}", "% of queries", "first for", *right, "item", "for the queries")
    left = (len(headers) - 2, len(headers) - 1)
    console.print(table.grid(headers, map(_cells, said["items"]), left=left))
    console.print()
    for line in _remarks(found):
        console.print(line)
    console.print()
    for line in _legend(found):
        console.print(line, style="dim")


def _headline(found: Popularity) -> str:
    item = found.order[0]
    share = 100 * found.k_occurrence[item] / found.num_queries
    most = f"{_short(found.results.item(item))}, comes up for {share:.0f} % of the queries"
    beyond = found.num_beyond_chance
    if beyond is None:
        return f"The most retrieved item, {most}"
    if not beyond:
        return f"No item comes up more often than chance explains; the most retrieved, {most}"
    return (
        f"{_counted(beyond, 'item comes', 'items come')} up more often than chance explains; the "
        f"most retrieved, {most}"
    )


def _remarks(found: Popularity) -> list[str]:
    items = "items that come up" if found.num_items is None else "items"
    total = len(found.order) if found.num_items is None else found.num_items
    lines = [
        f"Half of all places go to {_counted(found.half, 'item', 'items')}. Hubs, "
        f"{found.num_hubs:,} of {total:,} {items}, take {found.hub_occurrence:.0f} % of them."
    ]
    if found.chance is None:
        lines.append(
            "How many items never come up is not known, nor what chance explains: give --num-items."
        )
    else:
        never = total - len(found.order)
        lines.append(
            f"Never: {never:,} of {total:,} items ({100 * never / total:.1f} %; by chance "
            f"{found.chance.anti_hub_share:.1f} %)."
        )
    by_chance = "" if found.chance is None else f" (by chance {found.chance.skewness:.2f})"
    lines.append(f"Skewness {found.skewness:.2f}{by_chance}, Gini {found.gini:.2f}.")
    if found.judged is not None:
        recalls = ", ".join(f"R@{cut} {value:.1f}" for cut, value in found.judged.recalls.items())
        lines.append(
            f"Of {found.judged.num_answered:,} queries with a right item, in %: {recalls}; "
            f"nDCG@{found.k} {found.judged.ndcg:.1f}."
        )
        lines += found.judged.remarks
    if found.num_beyond_chance:
        lines.append(
            "Many queries may ask for one item: read some of them. An item that answers few of its "
            "queries is a hub. With the embeddings, dbnorm inspect says who makes it one, and "
            "dbnorm fit with dbnorm search takes its advantage away."
        )
    return lines


def _legend(found: Popularity) -> list[str]:
    occurrence = f"N_{found.k}"
    lines = [
        f"{occurrence}: how many queries have an item in their first {found.k} places. Hubs: "
        f"{occurrence} >= 2x the mean of all{'' if found.num_items else ' that come up'}."
    ]
    if found.chance is not None:
        lines.append(
            f"By chance: every query draws its items at random. Then no item is in more than "
            f"{found.chance.most:,} lists, with a probability of 95 % or more."
        )
    return lines


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _cells(item: dict[str, Any]) -> list[str]:
    queries = ", ".join(map(_short, item["queries"]))
    counts = [f"{item['k_occurrence']:,}", f"{item['percent_of_queries']:.1f}"]
    more = [item[name] for name in ("first_for", "right_for") if item[name] is not None]
    return [*counts, *(f"{count:,}" for count in more), _short(item["item"]), queries]


def _short(name: str | int) -> str:
    if isinstance(name, int):
        return f"row {name}"
    text = printable(name)
    return f"'{text}'" if len(text) <= _LONGEST else f"'{text[: _LONGEST - 3]}...'"


def to_csv(found: Popularity) -> str:
    """One line per item, the most retrieved first; those never retrieved where they have names."""
    rest = [row for row in range(len(found.k_occurrence)) if not found.k_occurrence[row]]
    right = [] if found.judged is None else [found.judged.right_for]
    names = ["item", f"n_{found.k}", "first_for", *["right_for"] * len(right)]
    counts = (found.k_occurrence, found.first, *right)
    lines: list[list[Any]] = [names]
    lines += (
        [found.results.item(row), *(one[row] for one in counts)]
        for row in (*found.order.tolist(), *rest)
    )
    return "".join(map(report_line, lines))


def content(found: Popularity) -> dict[str, Any]:
    """All but the items that are not shown, for JSON; null where nothing is known."""
    chance, right, retrieved = found.chance, found.judged, len(found.order)
    never = None if found.num_items is None else found.num_items - retrieved
    return {
        "schema": SCHEMA,
        "results": found.results.title,
        "sizes": {
            "queries": found.num_queries,
            "gallery": found.num_items,
            "retrieved": retrieved,
        },
        "k": found.k,
        "versions": table.versions(),
        "items": [
            {
                "item": found.results.item(item),
                "k_occurrence": int(found.k_occurrence[item]),
                "percent_of_queries": round(100 * found.k_occurrence[item] / found.num_queries, 4),
                "first_for": int(found.first[item]),
                "right_for": None if right is None else int(right.right_for[item]),
                "queries": [found.results.query(query) for query in queries],
            }
            for item, queries in zip(found.order, found.askers, strict=False)
        ],
        "num_hubs": found.num_hubs,
        "percent_of_places_of_hubs": round(found.hub_occurrence, 4),
        "num_items_with_half_of_the_places": found.half,
        "num_anti_hubs": never,
        "skewness": round(found.skewness, 4),
        "gini": round(found.gini, 4),
        "num_beyond_chance": found.num_beyond_chance,
        "by_chance": None
        if chance is None
        else {
            "most_lists": chance.most,
            "percent_anti_hubs": round(chance.anti_hub_share, 4),
            "skewness": round(chance.skewness, 4),
        },
        "retrieval": None
        if right is None
        else {
            "num_queries": right.num_answered,
            **{f"recall_at_{cut}": round(value, 4) for cut, value in right.recalls.items()},
            f"ndcg_at_{found.k}": table.or_none(round(right.ndcg, 4)),
        },
        "notes": [] if right is None else right.remarks,
    }
