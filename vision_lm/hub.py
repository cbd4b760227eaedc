"""Repositories of the Hugging Face hub: some of their files, in the cache of its own client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from vision_lm.disk_space import check_disk_space
from vision_lm.errors import CheckpointError
from vision_lm.model_files import one_line


class _Silent(tqdm):
    """The progress of asking for sizes, which nobody wants to see."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "disable": True})


def download(hub_id: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Fetch these files (names or patterns) of a repository, or find them in the cache. Raises CheckpointError.

    Nothing is fetched where the disk has no room for all that is missing. Cache, offline mode and token are those of
    huggingface_hub (HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN).
    """
    patterns = list(files)
    try:
        reached = _check_room(hub_id, patterns, revision)
        folder = snapshot_download(
            hub_id, revision=revision, allow_patterns=patterns, local_files_only=not reached
        )
        return Path(folder)
    except CheckpointError:
        raise
    except GatedRepoError:
        raise CheckpointError(
            f"{hub_id}: gated; accept its terms on the hub and run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{hub_id}: no folder here, and no repository on the hub; check the name"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(
            f"{hub_id}: has no revision {revision!r}; give a branch, a tag or a commit"
        ) from None
    except LocalEntryNotFoundError:
        remedy, at = "connect to the network, or give a folder", f"@{revision}" if revision else ""
        raise CheckpointError(
            f"{hub_id}{at}: not on this machine, and the hub cannot be reached; {remedy}"
        ) from None
    except Exception as error:  # the hub's client passes on whatever its HTTP library raises
        raise CheckpointError(f"{hub_id}: cannot be fetched from the hub ({one_line(error)})") from error


def _check_room(hub_id: str, patterns: list[str], revision: str | None) -> bool:
    """Compare what is missing with what is free, and return whether the hub answers. Raises CheckpointError."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        planned = snapshot_download(
            hub_id, revision=revision, allow_patterns=patterns, dry_run=True, tqdm_class=_Silent
        )
    except DryRunError as error:
        return isinstance(error.__cause__, HfHubHTTPError)  # which the download itself then meets again
    needed = sum(one.file_size or 0 for one in planned if one.will_download)
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    check_disk_space(hub_id, needed, cache, "set HF_HUB_CACHE to a folder with more")
    return True
