"""Names of items, as options give them."""

import dataclasses
from typing import Protocol

from dbnorm_jax._cli.reading import arrays
from dbnorm_jax._cli.reading.argument import Source
from dbnorm_jax._cli.reading.sets import EvaluationSet


class Labelled(Protocol):
    """The options of a command that takes labels."""

    @property
    def labels(self) -> str | None:
        """Of the gallery."""

    @property
    def bank_labels(self) -> str | None:
        """Of the query bank."""

    @property
    def query_labels(self) -> str | None:
        """Of the queries."""


def with_labels(test: EvaluationSet, request: Labelled) -> EvaluationSet:
    """The set with the labels that are given."""
    labels = {}
    for name, option, text, rows, of in (
        ("gallery_labels", "--labels", request.labels, test.gallery, "gallery item"),
        (
            "query_bank_labels",
            "--bank-labels",
            request.bank_labels,
            test.query_bank,
            "query-bank item",
        ),
        ("query_labels", "--query-labels", request.query_labels, test.queries, "query"),
    ):
        if text is not None:
            labels[name] = arrays.read_labels(Source.parse(option, text), len(rows), of)
    return dataclasses.replace(test, **labels)  # type: ignore[arg-type]


def given(request: Labelled) -> list[str]:
    """The options of labels that are given."""
    texts = {
        "--labels": request.labels,
        "--bank-labels": request.bank_labels,
        "--query-labels": request.query_labels,
    }
    return [option for option, text in texts.items() if text is not None]
