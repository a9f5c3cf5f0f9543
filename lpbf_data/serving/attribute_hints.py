"""Hints in the errors for missing attributes: methods of the library `datasets`, and what to write here instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

STREAM_HINTS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("keys", "items", "values"), "one split, train unless another is named: load_dataset(…, split=…)"),
    "take": "itertools.islice(stream, n)",
    "skip": "load_dataset without streaming, then dataset[n:]; or stream.load_state_dict to go on where one stood",
    "map": "load_dataset(…, transform=function)",
    "filter": "the filters of `python -m pipelines.build`; or load_dataset without streaming, then dataset[numbers]",
    "batch": "make_loader, or a DataLoader with collate_fn=lpbf_data.collate_ragged",
    "shard": "not needed, ranks and workers share a stream by themselves",
    "with_format": "load_dataset(…, format=…)",
    "select_columns": "load_dataset(…, fields=[…])",
    "_distributed": "not needed, ranks share a stream by themselves",
}
"""Of a [CaseStream][lpbf_data.CaseStream]."""

DATASET_HINTS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("keys", "items", "values"), "one split, train unless another is named: load_dataset(…, split=…)"),
    "select": "dataset[numbers]",
    "take": "dataset[:n]",
    "skip": "dataset[n:]",
    "map": "load_dataset(…, transform=function)",
    "filter": "the filters of `python -m pipelines.build`; or dataset[numbers], or dataset[mask]",
    "shuffle": "shuffle=True of the DataLoader, or of make_loader and of load_dataset(…, streaming=True)",
    "train_test_split": "the splits of the data set, which keep designs apart: load_dataset(…, split=…)",
    "shard": "dataset[rank::ranks]; or make_loader, whose ranks share by themselves",
    "with_format": "load_dataset(…, format=…)",
    "set_format": "load_dataset(…, format=…)",
    "select_columns": "load_dataset(…, fields=[…])",
    "to_iterable_dataset": "load_dataset(…, streaming=True)",
}
"""Of a [CaseDataset][lpbf_data.CaseDataset]."""


def missing_attribute(thing: object, name: str, known: Mapping[str, str]) -> AttributeError:
    """The error for an attribute that a data set hasn't.

    Args:
        thing: The data set.
        name: The attribute.
        known: Names of another library, and what to write here.
    """
    instead = f"; here it is: {known[name]}" if name in known else ""
    return AttributeError(f"{type(thing).__name__!r} has no attribute {name!r}{instead}", name=name, obj=thing)
