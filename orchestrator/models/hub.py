"""The model hub: what is fetched from it, and how far that is."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError


def fetch(hub_id: str, field: str, patterns: Sequence[str], say: Callable[[str], None] = lambda line: None) -> Path:
    """Some of the hub's files in the hub's own cache; `say` hears how far it is.

    Subfolders are other formats of the same weights. UserError with what is missing: network, token or licence.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        bar = _bar(hub_id, say)
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), ignore_patterns=["*/*"], tqdm_class=bar))
    except GatedRepoError as error:
        missing = "its licence has to be accepted on its page, and a token of that account set in HF_TOKEN"
        raise UserError(f"{field}: {hub_id} is gated: {missing}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{field}: {hub_id} is not on the hub, or is private: set HF_TOKEN to a token that may read it"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{field}: {hub_id} is not in the local cache and the hub can't be reached (no network?);"
            " give a local folder, or connect and set HF_TOKEN if the model asks for one"
        ) from error


def _bar(hub_id: str, say: Callable[[str], None]) -> Any:
    """What the hub's client takes for a progress bar, drawn as a line of ours: the bytes of all files together."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": False, "file": io.StringIO()})

        def display(self, *args: Any, **options: Any) -> bool:
            """Instead of drawing."""
            if self.unit == "B" and self.n:
                say(f"fetching {hub_id} {self.n / 1e9:.1f}/{(self.total or self.n) / 1e9:.1f} GB")
            return True

    return Bar
