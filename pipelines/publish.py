"""`python -m pipelines.publish lpbf/ --repo user/name --license …`: a verified data set onto the Hugging Face hub.

What doesn't verify isn't published, nor what states no licence, nor a file that doesn't belong to the data set. One
commit carries everything; files that the hub has already are recognised by their content and not sent again, so an
interrupted upload continues.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks
from lpbf_data.errors import UsageError
from lpbf_data.remarks import Remark, Treatment
from pipelines.building.engine import Resources

if TYPE_CHECKING:
    from lpbf_data.case.record import CaseRecord

_REPO: Final = re.compile(r"[\w.-]+/[\w.-]+")
_LICENSE: Final = re.compile(r"[a-z0-9][a-z0-9.-]*")


def published_files(root: Path) -> list[Path]:
    """The files that a data set consists of: what its manifest names, and the documents that a build writes; sorted.

    Args:
        root: The data set.
    """
    from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest
    from lpbf_data.stores.zarr_parts import ZARR_NAME
    from pipelines.reporting.croissant import CROISSANT_NAME
    from pipelines.reporting.documents import BUILD_NAME, CARD_NAME, PICTURES, REPORT_NAME

    records = decode_manifest((root / MANIFEST_NAME).read_bytes()).records
    placements = [record.placement for record in records if record.placement is not None]
    parts = {placement.zarr_part for placement in placements if placement.zarr_part is not None}
    shards = {placement.parquet_file for placement in placements if placement.parquet_file is not None}
    names = {MANIFEST_NAME, CARD_NAME, *shards}
    # Croissant describes Parquet files: beside none it is left from another build.
    optional = (BUILD_NAME, CROISSANT_NAME, REPORT_NAME, *PICTURES)
    names |= {name for name in optional if (root / name).is_file() and (name != CROISSANT_NAME or shards)}
    for part in parts:
        names |= {path.relative_to(root).as_posix() for path in (root / part).rglob("*") if path.is_file()}
        names |= {f"{folder}/zarr.json" for folder in (ZARR_NAME, part.rpartition("/")[0])}
    return sorted(root / name for name in names)


def left_out(root: Path, published: Collection[Path]) -> tuple[Remark, ...]:
    """What lies in the folder and isn't published, without the workspace of the build.

    Args:
        root: The data set.
        published: The files that are.
    """
    from lpbf_data.file_access.ignored_files import WORKSPACE_NAME

    sent = set(published)
    others = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path not in sent and path.relative_to(root).parts[0] != WORKSPACE_NAME
    )
    if not others:
        return ()
    sentence = f"files in {root.name or root} that don't belong to the data set and aren't sent"
    return (Remark.of_items(Treatment.LEFT_OUT, "foreign_files", sentence, others),)


def with_license(card: str, name: str) -> str:
    """A card whose metadata state a licence.

    Args:
        card: The card.
        name: Identifier of the licence, as the hub knows it.
    """
    import yaml

    _, front, body = card.split("---\n", 2)
    metadata = {"license": name} | {k: v for k, v in yaml.safe_load(front).items() if k != "license"}
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n{body}"


def croissant_with_license(text: str, name: str) -> str:
    """Croissant metadata that state a licence."""
    content = json.loads(text) | {"license": name}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def warnings_for(records: Sequence[CaseRecord], name: str) -> list[str]:
    """Sentences that the user should read before publishing.

    Args:
        records: Rows of the manifest.
        name: The licence.
    """
    from pipelines.reporting.origin import fusion_parts

    if (parts := fusion_parts(records)) and "-nc" not in name:
        sentence = (
            f"{len(parts):,} case ids look like parts of the Fusion 360 Gallery ({parts[0]}), whose licence allows "
            f"non-commercial research only; is {name} yours to give?"
        )
        return [sentence]
    return []


def local_paths_in(root: Path) -> list[str]:
    """Paths of this machine that would be published in manifest, card or description."""
    from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest
    from pipelines.reporting.croissant import CROISSANT_NAME
    from pipelines.reporting.documents import BUILD_NAME, CARD_NAME
    from pipelines.sources.privacy import find_local_paths

    documents = (root / name for name in (CARD_NAME, BUILD_NAME, CROISSANT_NAME))
    texts = [path.read_text(encoding="utf-8") for path in documents if path.exists()]
    table = decode_manifest((root / MANIFEST_NAME).read_bytes()).table
    for name in table.column_names:
        if str(table.schema.field(name).type) == "string":
            texts += [text for text in table[name].unique().to_pylist() if text]
    return sorted({path for text in texts for path in find_local_paths(text)})


@contextlib.contextmanager
def _staged(root: Path, files: Sequence[Path], changed: Mapping[str, str]) -> Iterator[Path]:
    """The published files under one folder, linked rather than copied, some of them with another text."""
    staging = root / ".build" / "publish"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for path in files:
            target = staging / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                shutil.copy2(path, target)
        for name, text in changed.items():
            (staging / name).unlink()  # a link: writing to it would change the original
            (staging / name).write_text(text, encoding="utf-8")
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _contents(root: Path, files: Sequence[Path]) -> list[str]:
    """A line for each file beside the others at the top, and for each folder there with all that it holds.

    Args:
        root: The data set.
        files: Files in it.
    """
    from pipelines.numbers import human_bytes

    kinds: dict[str, list[Path]] = {}
    for path in files:
        first, *rest = path.relative_to(root).parts
        kinds.setdefault(f"{first}/" if rest else first, []).append(path)
    lines = []
    for name, members in kinds.items():
        size = human_bytes(sum(path.stat().st_size for path in members))
        lines.append(f"{size:>10}  {name}" + (f"  {len(members):,} files" if name.endswith("/") else ""))
    return lines


def publish(
    data: str,
    *,
    repo: str,
    license: str | None = None,  # noqa: A002 (the word of the hub)
    private: bool = False,
    revision: str = "main",
    token: str | None = None,
    dry_run: bool = False,
    workers: int | None = None,
) -> int:
    """Verify a data set and upload it to the Hugging Face hub.

    Args:
        data: Folder of the data set.
        repo: Where to, user/name; it is made when absent.
        license: Identifier of the licence, such as cc-by-4.0; nothing is published without.
        private: Make the repository a private one.
        revision: Branch to commit to.
        token: Access token; that of `hf auth login` or HF_TOKEN by default.
        dry_run: Verify, say what would be uploaded, and send nothing.
        workers: Processes that verify, one per core by default; 0 works in this process.

    Returns:
        Exit status.
    """
    if not _REPO.fullmatch(repo):
        raise UsageError(f"--repo must be user/name, not {repo!r}")
    if license is None or not _LICENSE.fullmatch(license):
        raise UsageError(
            "a data set is published under a stated licence only: --license cc-by-4.0, cc-by-nc-sa-4.0, other, …"
        )
    resources = Resources(workers)

    from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest
    from pipelines.numbers import human_bytes
    from pipelines.reporting.croissant import CROISSANT_NAME
    from pipelines.verify import verify_dataset

    console = open_console()
    root = Path(data)
    verdict = verify_dataset(root, resources)
    if verdict.problems:
        raise UsageError(f"{data} doesn't verify: {verdict.problems[0]}; see python -m pipelines.verify {data}")
    if paths := local_paths_in(root):
        raise UsageError(f"{data} names a path of this machine, {paths[0]}; build it again before you publish it")
    manifest = decode_manifest((root / MANIFEST_NAME).read_bytes())
    manifest.need_parts(data, "python -m pipelines.publish")
    records = manifest.records
    for sentence in warnings_for(records, license):
        console.print(f"warning: {sentence}")
    changed = {"README.md": with_license((root / "README.md").read_text(encoding="utf-8"), license)}
    files = published_files(root)
    if root / CROISSANT_NAME in files:
        changed[CROISSANT_NAME] = croissant_with_license((root / CROISSANT_NAME).read_text(encoding="utf-8"), license)
    remarks = left_out(root, files)
    size = human_bytes(sum(path.stat().st_size for path in files))
    if dry_run:
        for line in _contents(root, files):
            console.print(line)
        console.print(f"{len(files):,} files, {size}, would go to {repo}; nothing was sent")
        print_remarks(remarks, console)
        return 0
    with _staged(root, files, changed) as folder:
        address = _upload(folder, repo, private=private, revision=revision, token=token, cases=verdict.cases)
    console.print(f"{len(files):,} files, {size}: {address}")
    print_remarks(remarks, console)
    return 0


def _upload(folder: Path, repo: str, *, private: bool, revision: str, token: str | None, cases: int) -> str:
    from huggingface_hub import HfApi

    from lpbf_data.stores.zarr_parts import ZARR_NAME
    from pipelines.reporting.croissant import CROISSANT_NAME
    from pipelines.reporting.documents import PICTURES_NAME, REPORT_NAME

    api = HfApi(token=token)
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        if revision != "main":
            api.create_branch(repo, branch=revision, repo_type="dataset", exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="dataset",
            revision=revision,
            commit_message=f"Data set of {cases:,} cases",
            # What an earlier state of the data set left there; files that are sent now stay.
            delete_patterns=["data/*", f"{ZARR_NAME}/*", f"{PICTURES_NAME}/*", REPORT_NAME, CROISSANT_NAME],
        )
    except Exception as error:  # the client raises errors of whatever HTTP library it is built on
        raise UsageError(
            f"the hub at {api.endpoint} didn't take it: {error}; what it has already isn't sent again, so run the same "
            "command once more"
        ) from error
    return str(done.commit_url)


def main() -> None:
    """Entry point of `lpbf-publish`."""
    run(publish, "python -m pipelines.publish", positional=["data"])


if __name__ == "__main__":
    main()
