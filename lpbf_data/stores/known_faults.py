"""Known errors in data sets that earlier versions built, by schema version; opening such a data set warns."""

from __future__ import annotations

import warnings

import pyarrow as pa
import pyarrow.compute as pc

from lpbf_data.case.record import OWN_SOLVER
from lpbf_data.case.schema import FIELDS, SYMMETRIC_TENSOR
from lpbf_data.stores.manifest import Manifest

_TENSORS_MENDED = 2  # the schema version


class KnownFaultWarning(UserWarning):
    """A data set was built by a version that is known to have stored something wrong."""


def known_fault(manifest: Manifest) -> str | None:
    """What is wrong in a data set, in a sentence or two; None where nothing is known.

    Args:
        manifest: Its manifest.
    """
    if manifest.schema_version >= _TENSORS_MENDED:
        return None
    kept = manifest.table.filter(pc.is_valid(manifest.table["split"]))
    if not len(kept):
        return None
    stored = {entry["column"] for entry in kept["statistics"][0].as_py() or ()}
    tensors = [
        spec.name for spec in FIELDS.values() if spec.components == SYMMETRIC_TENSOR and stored & set(spec.columns)
    ]
    versions = pc.fill_null(kept["solver_version"].combine_chunks(), "")
    # The tensors of this project's simulator were read in their order.
    own = pc.sum(pc.cast(pc.ends_with(versions, OWN_SOLVER), pa.int64())).as_py() or 0
    wrong = len(kept) - own
    if not tensors or not wrong:
        return None
    pairs = " and ".join(f"{name}_xz with {name}_yz" for name in tensors)
    return (
        f"schema version {manifest.schema_version}: the components xz and yz of {' and '.join(tensors)} are exchanged "
        f"in {wrong:,} of {len(kept):,} cases, those that NetFabb simulated (solver_version in the manifest); exchange "
        f"{pairs} there, or build the data set again"
    )


def warn_of_known_fault(name: str, manifest: Manifest, *, stacklevel: int = 2) -> None:
    """Warn once of what is wrong in a data set that is being opened.

    Args:
        name: The data set, for the message.
        manifest: Its manifest.
        stacklevel: Of the warning, as `warnings.warn` takes it for the caller of this function.
    """
    fault = known_fault(manifest)
    if fault is not None:
        warnings.warn(f"{name}: {fault}", KnownFaultWarning, stacklevel=stacklevel + 1)
