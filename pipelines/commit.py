"""Making a build visible: one journal, carried out to its end however often it is interrupted.

Shards are finished and checked before a commit begins. The journal then says what to do: put reused shards aside, put
every shard in its place, remove what is left over, write the documents, and the manifest last. While it is carried out
the folder has no manifest, so a reader sees the old data set, none, or the new one, and never a mixture.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import zarr
from zarr.storage import LocalStore

from lpbf_data.durable import flush_folder, write_durably
from lpbf_data.manifest import MANIFEST_NAME
from lpbf_data.zarr_store import ZARR_NAME
from pipelines.shards import ShardPlan, staged_path
from pipelines.workspace import Workspace

_COMMITTED: Final = "committed.json"


def committed_shards(workspace: Workspace) -> dict[str, dict[str, str]]:
    """Shards of the data set as it stands: key to format to path."""
    path = workspace.root / _COMMITTED
    stored: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return stored


def place_of(plan: ShardPlan, format_name: str) -> str:
    """Path of a shard in the data set."""
    return plan.parquet_name if format_name == "parquet" else plan.zarr_name


def begin_commit(
    workspace: Workspace, plans: Sequence[ShardPlan], formats: Sequence[str], documents: Mapping[str, bytes]
) -> None:
    """Write the journal of a commit; from here on it will be carried out.

    Args:
        workspace: Where the shards are staged, or lie committed already.
        plans: Every shard of the new data set.
        formats: Formats that they are written in.
        documents: File name to content, the manifest among them.
    """
    before = committed_shards(workspace)
    stage: list[list[str]] = []
    place: list[list[str]] = []
    wanted: dict[str, dict[str, str]] = {}
    for plan in plans:
        for name in formats:
            staged = staged_path(workspace.shards, plan.key, name).relative_to(workspace.out).as_posix()
            place.append([staged, place_of(plan, name)])
            if not (workspace.out / staged).exists() and before[plan.key][name] != place_of(plan, name):
                stage.append([before[plan.key][name], staged])
            wanted.setdefault(plan.key, {})[name] = place_of(plan, name)
    keep = {final for _, final in place}
    remove = sorted(name for name in _shards_on_disk(workspace.out) if name not in keep)
    staged_documents = workspace.root / "documents"
    for name, data in documents.items():
        write_durably(staged_documents / name, data)
    journal = {
        "stage": stage,
        "place": place,
        "remove": remove,
        "documents": sorted(documents, key=lambda name: (name == MANIFEST_NAME, name)),
        "committed": wanted,
        "zarr": sorted({final.split("/")[1] for _, final in place if final.startswith(f"{ZARR_NAME}/")}),
        "staged": False,
    }
    _write_json(workspace.commit_journal, journal)


def _write_json(path: Path, content: Any) -> None:
    write_durably(path, json.dumps(content, indent=1, sort_keys=True).encode())


def _shards_on_disk(out: Path) -> list[str]:
    found = [*out.glob("data/*.parquet"), *(p for p in out.glob(f"{ZARR_NAME}/*/*") if p.is_dir())]
    return [path.relative_to(out).as_posix() for path in found]


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(target)
    source.replace(target)
    flush_folder(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def finish_commit(workspace: Workspace) -> bool:
    """Carry out the journal of a commit, from wherever it was interrupted.

    Returns:
        Whether there was one.
    """
    if not workspace.commit_journal.exists():
        return False
    out = workspace.out
    journal: dict[str, Any] = json.loads(workspace.commit_journal.read_text(encoding="utf-8"))
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    if not journal["staged"]:
        # Before any shard gets a new name: an old name may be the new name of another one.
        for old, staged in journal["stage"]:
            if not (out / staged).exists():
                _move(out / old, out / staged)
        journal["staged"] = True
        _write_json(workspace.commit_journal, journal)
    for staged, final in journal["place"]:
        if (out / staged).exists():
            _move(out / staged, out / final)
    for name in journal["remove"]:
        _remove(out / name)
    _write_zarr_groups(out, journal["zarr"])
    for name in journal["documents"]:
        write_durably(out / name, (workspace.root / "documents" / name).read_bytes())
    _write_json(workspace.root / _COMMITTED, journal["committed"])
    workspace.commit_journal.unlink()
    shutil.rmtree(workspace.root / "documents", ignore_errors=True)
    _clean_staging(workspace, journal["committed"])
    return True


def _write_zarr_groups(out: Path, splits: Sequence[str]) -> None:
    """Metadata of the root group and of a group a split; folders of splits that are gone are removed."""
    root = out / ZARR_NAME
    if not splits:
        _remove(root)
        return
    for folder in root.iterdir():
        if folder.is_dir() and folder.name not in splits:
            shutil.rmtree(folder)
    for path in (root, *(root / split for split in splits)):
        if not (path / "zarr.json").exists():
            zarr.create_group(LocalStore(path), zarr_format=3)


def _clean_staging(workspace: Workspace, committed: Mapping[str, Any]) -> None:
    """Remove staged shards that no data set wants any more; keep what is known of the committed ones."""
    for path in workspace.shards.iterdir():
        if not (path.suffix == ".json" and path.stem in committed):
            _remove(path)
