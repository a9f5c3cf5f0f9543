"""Making a build visible: one journal, carried out to its end however often it is interrupted.

Shards are finished and checked before a commit begins. The journal then says what to do: put reused shards aside, give
every shard its final name, remove what is left over, write the documents, and the manifest last. While it is carried
out the data set has no manifest, so a reader sees the old data set, none, or the new one, and never a mixture.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lpbf_data.durable import write_durably
from lpbf_data.stores.manifest import MANIFEST_NAME
from lpbf_data.stores.zarr_parts import ZARR_NAME
from pipelines.building.shards import ShardPlan, staged_path
from pipelines.building.targets import Target, remove_path, write_zarr_groups
from pipelines.building.workspace import Workspace

_COMMITTED: Final = "committed.json"


def committed_shards(workspace: Workspace) -> dict[str, dict[str, str]]:
    """Shards of the data set as it stands: key to format to name."""
    path = workspace.root / _COMMITTED
    stored: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return stored


def final_name(plan: ShardPlan, format_name: str) -> str:
    """Name of a shard in the data set."""
    return plan.parquet_name if format_name == "parquet" else plan.zarr_name


def begin_commit(
    workspace: Workspace,
    target: Target,
    plans: Sequence[ShardPlan],
    formats: Sequence[str],
    documents: Mapping[str, bytes],
    outdated: Sequence[str] = (),
) -> None:
    """Write the journal of a commit; from here on it will be carried out.

    Args:
        workspace: Where the shards are staged.
        target: Where the data set lies; shards that it has already aren't staged.
        plans: Every shard of the new data set.
        formats: Formats that they are written in.
        documents: File name to content, the manifest among them.
        outdated: Names of other files and folders that an earlier build may have left; they are removed.
    """
    before = committed_shards(workspace)
    stage: list[list[str]] = []
    renames: list[list[str]] = []
    wanted: dict[str, dict[str, str]] = {}
    for plan in plans:
        for name in formats:
            staged = staged_path(workspace.shards, plan.key, name)
            renames.append([staged.name, final_name(plan, name)])
            if not staged.exists() and before[plan.key][name] != final_name(plan, name):
                stage.append([before[plan.key][name], staged.name])
            wanted.setdefault(plan.key, {})[name] = final_name(plan, name)
    keep = {final for _, final in renames}
    for name, data in documents.items():
        write_durably(workspace.documents / name, data)
    journal = {
        "stage": stage,
        "place": renames,
        "remove": sorted(
            {name for name in target.shards() if name not in keep} | {n for n in outdated if n not in documents}
        ),
        "documents": sorted(documents, key=lambda name: (name == MANIFEST_NAME, name)),
        "committed": wanted,
        "zarr": sorted({final.split("/")[1] for final in keep if final.startswith(f"{ZARR_NAME}/")}),
        "staged": False,
    }
    _write_json(workspace.commit_journal, journal)


def _write_json(path: Path, content: Any) -> None:
    write_durably(path, json.dumps(content, indent=1, sort_keys=True).encode())


def finish_commit(workspace: Workspace, target: Target) -> bool:
    """Carry out the journal of a commit, from wherever it was interrupted.

    Returns:
        Whether there was one.
    """
    if not workspace.commit_journal.exists():
        return False
    journal: dict[str, Any] = json.loads(workspace.commit_journal.read_text(encoding="utf-8"))
    target.remove(MANIFEST_NAME)
    if not journal["staged"]:
        # Before any shard gets a new name: an old name may be the new name of another one.
        for old, staged in journal["stage"]:
            if not (workspace.shards / staged).exists():
                target.take_back(old, workspace.shards / staged)
        journal["staged"] = True
        _write_json(workspace.commit_journal, journal)
    for staged, final in journal["place"]:
        if (workspace.shards / staged).exists():
            target.publish(workspace.shards / staged, final)
    for name in journal["remove"]:
        target.remove(name)
    _remove_splits(target, journal["remove"], journal["zarr"])
    write_zarr_groups(target, journal["zarr"])
    for name in journal["documents"]:
        target.write(name, (workspace.documents / name).read_bytes())
    _write_json(workspace.root / _COMMITTED, journal["committed"])
    workspace.commit_journal.unlink()
    shutil.rmtree(workspace.documents, ignore_errors=True)
    _clean_staging(workspace, journal["committed"])
    return True


def _remove_splits(target: Target, removed: Sequence[str], splits: Sequence[str]) -> None:
    """Remove the Zarr groups of splits that have no part left."""
    gone = {name.split("/")[1] for name in removed if name.startswith(f"{ZARR_NAME}/")} - set(splits)
    for split in sorted(gone):
        target.remove(f"{ZARR_NAME}/{split}")


def _clean_staging(workspace: Workspace, committed: Mapping[str, Any]) -> None:
    """Remove staged shards that the data set doesn't need; keep what is known of the committed ones."""
    for path in workspace.shards.iterdir():
        if not (path.suffix == ".json" and path.stem in committed):
            remove_path(path)
