"""The Zarr parts of a split as one xarray data set, lazily through dask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lpbf_data.errors import StoreError, UsageError
from lpbf_data.extras import how_to_install
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.os_errors import read_error
from lpbf_data.reading.catalog import read_manifest
from lpbf_data.stores.known_faults import warn_of_known_fault

if TYPE_CHECKING:
    import xarray

_RAGGED = ("point", "cell", "case")
_OF_PARTS = ("chunks", "preferred_chunks", "shards")


def open_zarr(name: str, split: str = "train", **where: Any) -> xarray.Dataset:
    """A whole split for analysis: every array of every Zarr part, joined along points, cells and cases.

    Arrays are lazy: values are read when they are computed. All dask chunks along a dimension are as long as the
    longest part, some 10 to 20 MB an array, since `to_zarr` needs chunks of one length. `num_points` and `num_cells`
    are the sizes of the cases; `point_offset` and `cell_offset` are the positions of their first values in the split.

        >>> parts = open_zarr("lpbf/", "train")  # doctest: +SKIP
        >>> parts.von_mises_stress.max().compute()  # doctest: +SKIP

    Args:
        name: The data set: a local folder, a URL, or an id of the Hugging Face hub.
        split: Its split.
        **where: `revision`, `cache_dir`, `token` and `offline`, for the hub.

    Raises:
        UsageError: If there is no such data set or split, it isn't one of printed parts, or xarray isn't installed.
        StoreError: If the data set has no Zarr parts, or they can't be read.
        SchemaError: If a later version of this package wrote them.
    """
    try:
        import dask.array  # noqa: F401 (what xarray's arrays are opened by)
        import xarray
    except ImportError as error:
        raise UsageError(f"open_zarr needs xarray and dask: {how_to_install('xarray')}") from error
    from lpbf_data.stores.zarr_parts import check_layout

    folder = DatasetFolder(name, **where)
    manifest = read_manifest(folder)
    manifest.need_parts(folder.name, "open_zarr")
    if split not in manifest.splits:
        raise UsageError(f"{folder.name} has no split {split!r}; it has: {', '.join(manifest.splits)}")
    names = [part for part in dict.fromkeys(manifest.of_split(split)["zarr_part"].to_pylist()) if part is not None]
    if not names:
        raise StoreError(f"{folder.name} has no Zarr parts; build it with --formats zarr, or with both formats")
    warn_of_known_fault(folder.name, manifest)
    try:
        parts = [
            xarray.open_zarr(folder.files.zarr_store(part), consolidated=False, chunks=dict.fromkeys(_RAGGED, -1))
            for part in names
        ]
    except (OSError, KeyError, ValueError) as error:
        damage = f" can't be opened: {error}; verify the data set"
        raise read_error(f"the Zarr parts of {folder.name}", error, damage) from error
    for name, part in zip(names, parts, strict=True):
        check_layout(part.attrs, f"{folder.name}/{name}")
    return _joined(parts)


def _with_scalars_apart(part: xarray.Dataset) -> xarray.Dataset:
    """A part with one variable for each number and text of its cases, also where it stores them as rows of tables."""
    from lpbf_data.stores.zarr_parts import TABLES

    for table in TABLES:
        if table in part:
            rows = part[table].drop_attrs().drop_encoding()
            names = part[table].attrs["components"].split()
            part = part.drop_vars(table).assign({name: rows[number] for number, name in enumerate(names)})
    return part


def _joined(parts: list[xarray.Dataset]) -> xarray.Dataset:
    """Parts end to end along each ragged dimension, with offsets that count through all of them."""
    import xarray

    parts = [_with_scalars_apart(part) for part in parts]
    joined = {}
    for dimension in _RAGGED:
        along = [
            part[[name for name, values in part.data_vars.items() if dimension in values.dims]].drop_attrs(deep=False)
            for part in parts
        ]
        joined[dimension] = xarray.concat(along, dim=dimension, data_vars="all", coords="minimal", compat="override")
    whole = xarray.merge(joined.values(), compat="no_conflicts", join="exact")
    for kind in ("point", "cell"):
        counts = whole[f"num_{kind}s"].values
        offsets = [0, *counts.cumsum().tolist()]
        attributes = parts[0][f"{kind}_offset"].attrs
        whole[f"{kind}_offset"] = xarray.DataArray(offsets, dims=f"{kind}_boundary", attrs=attributes)
    whole = whole.chunk({dimension: max(part.sizes[dimension] for part in parts) for dimension in _RAGGED})
    for values in whole.variables.values():
        # How a part was cut into chunks says nothing of the whole; how they are compressed does.
        values.encoding = {name: value for name, value in values.encoding.items() if name not in _OF_PARTS}
    return whole.assign_attrs({name: value for name, value in parts[0].attrs.items() if name != "case_ids"})
