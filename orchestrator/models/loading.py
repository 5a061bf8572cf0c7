"""From a name to a checkpoint that can be trusted: an alias, a local folder or a hub id.

    checkpoint = resolve("demo-teacher")        # finds, checks and identifies; loads nothing
    model = load(checkpoint.folder)             # safetensors only

A checkpoint's identity is the hash of its contents, never its path, so that results can be shared between machines.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orchestrator.errors import UserError
from orchestrator.models import hub
from orchestrator.models.aliases import ALIASES
from orchestrator.models.dtypes import dtype_of, has_bfloat16
from orchestrator.models.families import Geometry, ModelFamily, family
from orchestrator.models.freed import give_back
from orchestrator.models.vocabulary import token_map

if not torch.cuda.device_count():  # else DeepSpeed, imported by transformers' Trainer, looks for one and says so
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

INDEX = "model.safetensors.index.json"
SHIPPED = Path(str(files("orchestrator"))) / "models" / "demo"
SMALL = ("*.json", "*.model", "*.txt", "*.jinja")  # config and tokenizer, its settings and templates too


def cache_home() -> Path:
    """The user's cache: hashes of checkpoints seen before."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pkt"


@dataclass
class Read:
    """How much of a checkpoint was read, in the words of a line; several threads add to it."""

    total: int
    say: Callable[[str], None]
    done: int = 0

    def add(self, size: int) -> None:
        """So many bytes more."""
        self.done += size
        self.say(f"{self.done / 1e9:.1f}/{self.total / 1e9:.1f} GB")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: what it was called, where it is, what it is."""

    name: str
    folder: str
    sha256: str

    @property
    def config(self) -> Any:
        """The transformers config."""
        return read_config(Path(self.folder), self.name)

    @property
    def geometry(self) -> Geometry:
        """Its sizes."""
        return Geometry.of(self.config)

    @property
    def family(self) -> ModelFamily:
        """Its family's row."""
        return family(self.config.model_type)


def source_of(name: str, field: str) -> str:
    """What a name stands for: a folder or a hub id; nothing is read yet. UserError for anything else."""
    if name in ALIASES:
        source = ALIASES[name].source
        return str(SHIPPED / source.removeprefix("demo:")) if source.startswith("demo:") else source
    if found := place_of(name):
        return found
    raise UserError(f"{field}: {name!r} is no alias (see `pkt models`), no folder and no hub id of the form ORG/NAME")


def place_of(name: str) -> str | None:
    """A folder's path, or the hub id that a name is; None where it can be neither."""
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().absolute())
    return None if name.count("/") != 1 or name.startswith((".", "/", "~")) else name


def resolve(name: str, field: str, say: Callable[[str], None] = lambda line: None) -> Checkpoint:
    """Find, check and identify a checkpoint. `field` names the recipe's field in messages; `say` hears how far it is.

    UserError for a name that stands for nothing, for an unknown family, for weights that are missing, pickled,
    truncated or not finite, and for weights that a hub would have to provide and can't.
    """
    source = source_of(name, field)
    if Path(source).is_absolute():
        folder = Path(source)
    else:
        folder = hub.fetch(source, field, ["config.json", INDEX])
        family(read_config(folder, field).model_type)  # before the weights
        folder = hub.fetch(source, field, [*_named(folder), *SMALL], say)
    family(read_config(folder, field).model_type)
    return Checkpoint(name, str(folder), _identify(folder, field, lambda done: say(f"reading {name} {done}")))


def read_config(folder: Path, field: str) -> Any:
    """The folder's transformers config; UserError where there is none that can be read."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(f"{field}: {folder} has no config.json; give a folder saved with save_pretrained")
    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{field}: {folder / 'config.json'} can't be read ({reason})") from error


def load(folder: str, *, dtype: str = "auto", device: str = "cpu") -> Any:
    """A causal language model in evaluation mode, from safetensors."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one line a tensor; our own progress says what is loaded
    give_back()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=computed_in(folder, dtype), use_safetensors=True)
    return model.to(device).eval()


def computed_in(folder: str, dtype: str) -> torch.dtype:
    """The type that a checkpoint is computed in here, where `dtype` asks for that."""
    return dtype_of(read_config(Path(folder), "model"), dtype, native=has_bfloat16())


def config_of(name: str, field: str) -> Any:
    """A model's config without its weights: the folder's, or the hub's config.json alone.

    UserError for a name that stands for nothing, and for a hub that can't be asked.
    """
    source = source_of(name, field)
    if Path(source).is_absolute():
        found = read_config(Path(source), field)
    else:
        found = read_config(hub.fetch(source, field, ["config.json"]), field)
    family(found.model_type)
    return found


def outline(config: Any) -> Any:
    """The model without its weights: names and shapes, whatever its size."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


class Weights:
    """A checkpoint's parameters by name, read one at a time, so that no process has to hold a model to cut from it."""

    def __init__(self, folder: Path) -> None:
        self._stored = family(read_config(folder, "model").model_type).stored
        self._files: dict[str, Path] = {}
        for path in (folder / name for name in _named(folder)):
            with safe_open(path, framework="pt") as tensors:
                self._files |= dict.fromkeys(tensors.keys(), path)

    def __contains__(self, name: str) -> bool:
        return self._stored.get(name, name) in self._files

    def names(self) -> list[str]:
        """Of all parameters, as the files have them."""
        return sorted(self._files)

    def get(self, name: str) -> Tensor:
        """One parameter, in the checkpoint's dtype. KeyError for a name that the checkpoint lacks."""
        name = self._stored.get(name, name)
        with safe_open(self._files[name], framework="pt") as tensors:
            return tensors.get_tensor(name)


@functools.lru_cache(maxsize=8)  # a worker's trials all ask for the same
def load_tokenizer(folder: str, field: str = "model") -> Any:
    """The checkpoint's tokenizer, with a padding token; read once a process, and nobody's to change.

    UserError where it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"{field}: {folder} has no tokenizer that can be read; save one beside the weights") from error
    if tokenizer.eos_token is None:
        raise UserError(f"{field}: the tokenizer in {folder} has no eos_token; set one in tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_here(name: str, field: str) -> Any | None:
    """A model's tokenizer, where no hub has to be asked for it; None where one would."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    source = source_of(name, field)
    try:
        here = Path(source).is_absolute()
        return load_tokenizer(source if here else snapshot_download(source, local_files_only=True), field)
    except (LocalEntryNotFoundError, UserError):  # a folder without one plans, and is refused by whoever reads it
        return None


@functools.cache  # each trial of a sweep is checked
def tokens_of(teacher: Path, student: Path) -> Tensor:
    """The teacher's embedding row of each of the student's, -1 where it has none (see `token_map`)."""
    own, theirs = load_tokenizer(str(student), "student"), load_tokenizer(str(teacher), "teacher")
    rows = [Geometry.of(read_config(folder, "model")).vocab for folder in (student, teacher)]
    return token_map(own, theirs, *rows)


def _named(folder: Path) -> list[str]:
    """The files that hold a checkpoint's weights, as its index names them: others beside them are other formats."""
    index = folder / INDEX
    if index.is_file():
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return ["model.safetensors"]


def _identify(folder: Path, field: str, say: Callable[[str], None]) -> str:
    """Hash of the weights and of what shapes them, tokenizer included, with every weight checked to be finite.

    Large checkpoints take a minute, so each file's hash is kept in the user's cache under its path, size and time.
    """
    shards = [folder / name for name in _named(folder)]
    missing = [path for path in shards if not path.is_file()]
    if missing and (folder / INDEX).is_file():
        raise UserError(f"{field}: {missing[0]} is missing, though the index names it; download it again")
    if missing:
        pickled = next((path.name for end in ("*.bin", "*.pt", "*.pth") for path in folder.glob(end)), None)
        why = f"only pickled ones ({pickled}), which are never opened" if pickled else "none"
        raise UserError(f"{field}: {folder} has no safetensors weights ({why}); save it with save_pretrained")
    small = [
        path
        for pattern in SMALL
        for path in sorted(folder.glob(pattern))
        if path.name not in ("generation_config.json", INDEX)  # our own settings; the place of weights
    ]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        read = Read(sum(path.stat().st_size for path in shards), say)
        sums = list(pool.map(lambda path: _known_sum(path, field, read), shards))
    sums += [path.name + hashlib.sha256(path.read_bytes()).hexdigest() for path in small]
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def _known_sum(path: Path, field: str, read: Read) -> str:
    stat = path.stat()
    key = hashlib.sha256(
        f"{path.resolve()}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}".encode()
    ).hexdigest()
    note = cache_home() / "sums" / key
    if note.is_file():
        return note.read_text()
    digest = _checked_sum(path, field, read)
    note.parent.mkdir(parents=True, exist_ok=True)
    aside = note.with_suffix(f".{os.getpid()}")
    aside.write_text(digest)
    aside.rename(note)
    return digest


def _checked_sum(path: Path, field: str, read: Read) -> str:
    try:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise UserError(f"{field}: {name} in {path} has NaN or infinite weights; take another checkpoint")
                read.add(tensor.nbytes)
    except SafetensorError as error:
        raise UserError(f"{field}: {path} is corrupt or no safetensors file ({error}); download it again") from error
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
