"""The student's adapter: one LoRA from its start to its portable form.

An arm that starts at (B0, A0) away from zero has to leave the student's function as it was. Writing W - s·B0·A0
into the base loses 2e-3 in bfloat16 and makes an adapter that fits no stock model. Instead the adapter has rank 2r
from the beginning: B = [B, -B0] and A = [A; A0], of which the second half is frozen. Its start is exactly nothing, its
dropout falls on both halves alike, and what is saved loads on the untouched student with plain PEFT.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models import composed

Start = tuple[Tensor, Tensor]


def attach(
    model: nn.Module,
    targets: list[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    changes_base: bool,
    starts: Mapping[str, Start],
) -> Any:
    """Wrap the model with a LoRA on all `targets` that starts at `starts` (module name → B0 (n, r), A0 (r, m)).

    Modules without a start begin as PEFT begins them. With `changes_base` the adapter has rank 2r and alpha doubles
    with it, so that the scale alpha / r stays. KeyError for a start whose module the adapter doesn't have.
    """
    from peft import LoraConfig, get_peft_model

    double = 2 if changes_base else 1
    config = LoraConfig(
        r=rank * double,
        lora_alpha=alpha * double,
        lora_dropout=dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with without_own_warnings():
        peft_model = get_peft_model(model, config)
    layers = lora_layers(peft_model)
    if unknown := sorted(set(starts) - set(layers)):
        raise KeyError(f"the adapter has no module {unknown[0]}")
    for name, layer in layers.items():
        up, down = factors_of(layer)
        if name in starts:
            _set(up, down, *starts[name])
        elif changes_base:
            _set(up, down, up.detach()[:, :rank].clone(), down.detach()[:rank].clone())
        if changes_base:
            _freeze_half(layer, rank)
    return peft_model


@contextmanager
def without_own_warnings() -> Iterator[None]:
    """What PEFT 0.21 says that nobody could mend: a property that transformers 5.23 deprecates, and tied embeddings.

    A tied student's embedding and head are adapted apart, on purpose: neither touches the matrix that they share.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        yield


def load_adapter(model: nn.Module, folder: Path) -> Any:
    """A portable adapter as anybody would load it: on the stock model, with plain PEFT.

    Its factors aren't drawn at random before they are read, which takes a small model a fifth of the time.
    """
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(folder))
    if config.init_lora_weights is True:  # others, as PiSSA's, change the base
        config.init_lora_weights = False
    with without_own_warnings():
        return PeftModel.from_pretrained(model, str(folder), config=config).eval()


@contextmanager
def wearing(model: nn.Module, folder: Path | None) -> Iterator[Any]:
    """The model with a portable adapter on it, or with a composition of some, where one is given; without it again at
    the end.
    """
    if folder is None:
        yield model
        return
    if composed.is_composition(folder):
        with composed.wearing_all(model, folder) as network:
            yield network
        return
    peft_model = load_adapter(model, folder)
    yield peft_model
    take_off(peft_model)


@contextmanager
def folded(peft_model: Any) -> Iterator[None]:
    """The adapter within the weights, for as long as nothing is learnt: its own products are not formed at every token.

    Each weight is a sum of its own meanwhile, tied ones too, and then the very tensor of before again. In a type that
    is narrower than float32 the sum would be rounded, and answers with it: there all stays as it is. So does an
    embedding, of which few rows are looked up.
    """
    layers = lora_layers(peft_model) if hasattr(peft_model, "peft_config") else {}
    layers = {name: layer for name, layer in layers.items() if not isinstance(layer.base_layer, nn.Embedding)}
    if any(layer.base_layer.weight.dtype not in (torch.float32, torch.float64) for layer in layers.values()):
        layers = {}
    before = {name: layer.base_layer.weight for name, layer in layers.items()}
    try:
        with torch.no_grad():
            for layer in layers.values():
                (active,) = layer.active_adapters
                up, down = factors_of(layer)
                whole = torch.addmm(layer.base_layer.weight, up, down, alpha=layer.scaling[active])
                layer.base_layer.weight = nn.Parameter(whole, requires_grad=False)
                layer.enable_adapters(False)
        yield
    finally:
        for name, layer in layers.items():
            layer.base_layer.weight = before[name]
            layer.enable_adapters(True)


def take_off(peft_model: Any) -> None:
    """The model below is the stock one again, bit for bit: what an adapter computes is never written into it."""
    peft_model.unload()


def lora_layers(peft_model: nn.Module) -> dict[str, Any]:
    """The adapted modules by their names in the stock model."""
    from peft.tuners.lora import LoraLayer

    prefix = "base_model.model."
    return {name.removeprefix(prefix): m for name, m in peft_model.named_modules() if isinstance(m, LoraLayer)}


def factors_of(layer: Any) -> Start:
    """B (n, r) and A (r, m) of an adapted module, as views of what PEFT trains.

    For an embedding PEFT's roles are swapped: its A holds (r, vocabulary) and its B (hidden, r), while the matrix here
    is vocabulary x hidden; so B is its Aᵀ and A its Bᵀ.
    """
    if "default" in layer.lora_embedding_A:
        return layer.lora_embedding_A["default"].T, layer.lora_embedding_B["default"].T
    return layer.lora_B["default"].weight, layer.lora_A["default"].weight


def _set(up: Tensor, down: Tensor, b0: Tensor, a0: Tensor) -> None:
    """Start a module at (B0, A0): live half first, then the half that cancels it where there is room for one."""
    rank = b0.shape[1]
    with torch.no_grad():
        up[:, :rank], down[:rank] = b0, a0
        if up.shape[1] == 2 * rank:
            up[:, rank:], down[rank:] = -up[:, :rank], down[:rank].clone()


def _freeze_half(layer: Any, rank: int) -> None:
    """No gradient reaches the cancelling half; Adam without weight decay then leaves it where it is, bit for bit."""
    embedding = "default" in layer.lora_embedding_A
    up = layer.lora_embedding_A["default"] if embedding else layer.lora_B["default"].weight
    down = layer.lora_embedding_B["default"] if embedding else layer.lora_A["default"].weight
    for parameter, dim in ((up, 0 if embedding else 1), (down, 1 if embedding else 0)):
        mask = torch.ones_like(parameter)
        mask.narrow(dim, rank, rank).zero_()
        parameter.register_hook(mask.mul)


def save(peft_model: Any, folder: Path, base_name: str) -> None:
    """Write the adapter as `PeftModel.from_pretrained` reads it; the base stays out, embeddings included."""
    peft_model.peft_config["default"].base_model_name_or_path = base_name
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty template; ours says what this adapter is


def write_start(
    folder: Path, starts: Mapping[str, Start], *, base_name: str, embeddings: frozenset[str], scale: float = 1.0
) -> None:
    """Write extracted (B0, A0) as an adapter folder, without a model: what `extract` leaves.

    `embeddings` names the modules that are embeddings, where PEFT swaps the factors. All factors have one rank.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    (rank,) = {b0.shape[1] for b0, _ in starts.values()}
    tensors = {}
    for name, (b0, a0) in starts.items():
        key = f"base_model.model.{name}."
        if name in embeddings:
            tensors[key + "lora_embedding_A"], tensors[key + "lora_embedding_B"] = b0.T.contiguous(), a0.T.contiguous()
        else:
            tensors[key + "lora_A.weight"], tensors[key + "lora_B.weight"] = a0.contiguous(), b0.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank * scale,
        target_modules=sorted(starts),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))


def read_start(folder: Path) -> dict[str, Start]:
    """The (B0, A0) of every module of such a folder, in our orientation."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    starts = {}
    for key in tensors:
        name = key.removeprefix("base_model.model.")
        if name.endswith(".lora_A.weight"):
            starts[name.removesuffix(".lora_A.weight")] = (tensors[key.replace("lora_A", "lora_B")], tensors[key])
        elif name.endswith(".lora_embedding_A"):
            up, down = tensors[key].T, tensors[key.replace("lora_embedding_A", "lora_embedding_B")].T
            starts[name.removesuffix(".lora_embedding_A")] = (up, down)
    return starts


def read_update(folder: Path) -> dict[str, Start]:
    """B and A by module, of which W is changed by B·A: LoRA's factor alpha / r is in B, or alpha / √r (rsLoRA).

    A module may have a rank and an alpha of its own, as PEFT's `rank_pattern` and `alpha_pattern` have it.
    """
    from peft import LoraConfig
    from peft.utils.other import get_pattern_key

    config = LoraConfig.from_pretrained(str(folder))
    changed = {}
    for name, (b, a) in read_start(folder).items():
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, name), config.lora_alpha)
        changed[name] = (alpha / (len(a) ** 0.5 if config.use_rslora else len(a)) * b, a)
    return changed


def of_one_rank(starts: Mapping[str, Start]) -> dict[str, Start]:
    """The same with directions that do nothing where a module has fewer than another: an adapter has one rank."""
    rank = max(len(a) for _, a in starts.values())
    return {
        name: (
            torch.cat([b, b.new_zeros(len(b), rank - b.shape[1])], 1),
            torch.cat([a, a.new_zeros(rank - len(a), a.shape[1])]),
        )
        for name, (b, a) in starts.items()
    }


def embeddings_of(folder: Path) -> frozenset[str]:
    """The modules of such a folder that are embeddings."""
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        keys = [key for key in tensors.keys() if key.endswith(".lora_embedding_A")]  # noqa: SIM118  (not a dict)
    return frozenset(key.removeprefix("base_model.model.").removesuffix(".lora_embedding_A") for key in keys)
