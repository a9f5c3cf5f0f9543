"""`make_loader`: checks the options of batches for training, and makes the loader that serves them."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import torch

from lpbf_data.errors import UsageError
from lpbf_data.reading.cache import DEFAULT_SIZE, Cache
from lpbf_data.serving.batch_source import COLLATE, BatchSource, Collate
from lpbf_data.serving.datasets import CaseDataset, check_choice, load_dataset
from lpbf_data.serving.loader import Loader, StartMethod
from lpbf_data.serving.process_rank import check_rank, check_seed, rank_of_process
from lpbf_data.serving.rank_sharing import Sharing, Uneven
from lpbf_data.serving.samples import CaseSamples, SampleFormat, Transform
from lpbf_data.serving.stream import CaseStream, OnError

_WHERE: Final = ("revision", "cache_dir", "token", "offline")


def make_loader(
    data: str | Path | CaseDataset | CaseStream,
    split: str = "train",
    *,
    batch_size: int | None = None,
    max_points: int | None = None,
    shuffle: bool | None = None,
    seed: int | None = None,
    num_workers: int = 0,
    fields: Sequence[str] | None = None,
    cells: bool = False,
    edges: bool = False,
    features: Sequence[str] | str = (),
    transform: Transform | None = None,
    collate: Collate = "ragged",
    rank: int | None = None,
    world_size: int | None = None,
    uneven: Uneven = "drop",
    on_error: OnError | None = None,
    cache: Cache = None,
    cache_size: int | str = DEFAULT_SIZE,
    in_memory: bool = False,
    pin_memory: bool | None = None,
    start_method: StartMethod | None = None,
    read_ahead: int = 2,
    **where: Any,
) -> Loader:
    """Batches for training.

    Args:
        data: The data set by its name, as [load_dataset][lpbf_data.load_dataset] takes it; or an opened one, which
            has its own fields, cells, edges, features and cache.
        split: Its split.
        batch_size: Cases a rank and step, 1 by default; together with `max_points` the largest number of them, any by
            default.
        max_points: Points a rank and step at most; steps are balanced over the ranks.
        shuffle: Draw a new permutation of all cases for each epoch; as an opened stream was asked to, else False.
        seed: Seed of the permutations, and of random transforms; that of an opened data set, else 0.
        num_workers: Processes that read; 0 reads in a thread of this one, enough for cached data.
        fields: Fields to read beside points and target; all stored ones by default, `[]` for none.
        cells: Give the cells.
        edges: Derive the edges.
        features: Features of the shape; see [load_dataset][lpbf_data.load_dataset].
        transform: Applied to every sample, a dict of tensors (PyG data with collate="pyg").
        collate: "ragged" for [RaggedBatch][lpbf_data.serving.collating.RaggedBatch], "pyg" for
            `torch_geometric.data.Batch`, or a function of a list of samples.
        rank: Rank that the batches are for; as torch.distributed says by default.
        world_size: Number of ranks; as torch.distributed says by default.
        uneven: What becomes of the last cases of an epoch; see [Uneven][lpbf_data.serving.rank_sharing.Uneven].
        on_error: "raise", or "skip" to leave out what can't be read, with a warning, and count it in `skipped`; as
            an opened stream was asked to, else "raise".
        cache: Where decoded cases are kept; see [load_dataset][lpbf_data.load_dataset].
        cache_size: Bytes that the whole cache may take.
        in_memory: Read all cases now and keep them in memory.
        pin_memory: Give batches in page-locked memory; where there is a GPU by default, and nowhere else.
        start_method: How workers are started: "fork", "spawn" or "forkserver"; torch's default when None.
        read_ahead: Batches to have ready in this process.
        **where: `revision`, `cache_dir`, `token` and `offline`, for the hub.

    Raises:
        UsageError: If there is no such data set, split or field, or the options don't fit together.
        StoreError: If it can't be read.
    """
    ranks = check_rank(rank, world_size)
    _check_options(collate, num_workers, read_ahead, where, opened=not isinstance(data, str | Path))
    if batch_size is None and max_points is None:
        batch_size = 1
    sharing = Sharing((ranks or rank_of_process())[1], batch_size, max_points, uneven)
    opening = {
        "fields": fields, "cells": cells, "edges": edges, "features": features, "cache": cache,
        "cache_size": cache_size, "in_memory": in_memory,
    }  # fmt: skip
    samples_of: SampleFormat = "pyg" if collate == "pyg" else "torch"
    data = _opened(data, split, opening, {"format": samples_of, **where})
    if isinstance(data, CaseStream):
        shuffle = data.shuffle if shuffle is None else shuffle
        on_error = on_error or data.on_error
    seed = data.seed if seed is None else check_seed(seed)
    on_error = on_error or "raise"
    check_choice("on_error", on_error, get_args(OnError))
    dataset = data if isinstance(data, CaseDataset) else CaseDataset(data.samples, data.seed)
    samples = dataset.samples
    samples = CaseSamples(samples.tensors, samples_of, transform or samples.transform)
    batches = BatchSource(samples, list(dataset.indices()), collate, seed, on_error)
    loader = Loader(dataset, batches, sharing, ranks, shuffle=bool(shuffle), read_ahead=read_ahead)
    if pin_memory and not torch.accelerator.is_available():
        warnings.warn("pin_memory=True does nothing here: PyTorch finds no GPU", stacklevel=2)
    elif pin_memory or (pin_memory is None and torch.cuda.is_available()):
        loader.pin_memory()
    loader.start_workers(num_workers, start_method)
    return loader


def _opened(
    data: str | Path | CaseDataset | CaseStream, split: str, opening: Mapping[str, Any], where: Mapping[str, Any]
) -> CaseDataset | CaseStream:
    """The data set, opened as asked for where it was named.

    Raises:
        UsageError: If it is open already and was to be opened in another way, or is none.
    """
    if isinstance(data, str | Path):
        return load_dataset(data, split, **opening, **where)
    if not isinstance(data, CaseDataset | CaseStream):
        raise UsageError(f"data must be a name or an opened data set, not {type(data).__name__}")
    of_function = inspect.signature(make_loader).parameters
    for name, value in opening.items():
        if value != of_function[name].default:
            raise UsageError(f"an opened data set has its own {name}; give it to load_dataset")
    return data


def _check_options(
    collate: Collate, num_workers: int, read_ahead: int, where: Mapping[str, Any], *, opened: bool
) -> None:
    """Refuse values that make no sense, and options that don't exist or come too late.

    Raises:
        UsageError: With the nearest name.
    """
    if not callable(collate) and collate not in COLLATE:
        raise UsageError(f"unknown collate {collate!r}; known are: {', '.join(COLLATE)}, or a function")
    if num_workers < 0:
        raise UsageError(f"num_workers={num_workers} must not be negative")
    if read_ahead < 1:
        raise UsageError(f"read_ahead={read_ahead} must be positive")
    for name in where:
        if name not in _WHERE:
            known = [*inspect.signature(make_loader).parameters, *_WHERE]
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(f"make_loader has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if opened:
            raise UsageError(f"an opened data set has its own {name}; give it to load_dataset")
