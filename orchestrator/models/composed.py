"""Several adapters of one model as one model that answers: in turns, or together (Multi-LoRA, arXiv 2402.16843).

    write(folder, [lora, theseus], by="composite")
    with adapters.wearing(student, folder) as network: ...       # a `Composed`

Published for images, where adapters take turns by denoising step or their guided scores are averaged; for language
models a step is a token and a score the logits. Each adapter reads the whole text by itself, and keeps its own keys
and values: what is answered doesn't depend on how the text is cut into passes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

COMPOSITION = "composition.json"
Composition = Literal["composite", "switch"]


def write(folder: Path, sources: Sequence[Path], *, by: Composition, every: int = 1) -> None:
    """A folder of adapters that answer together (composite: the mean of their logits) or in turns of `every` tokens."""
    names = [str(place) for place in range(len(sources))]
    for name, source in zip(names, sources, strict=True):
        shutil.copytree(source, folder / name)
    (folder / COMPOSITION).write_text(json.dumps({"by": by, "every": every, "adapters": names}) + "\n")


def is_composition(folder: Path) -> bool:
    """Whether a folder is one."""
    return (folder / COMPOSITION).is_file()


@contextmanager
def wearing_all(model: nn.Module, folder: Path) -> Iterator[Composed]:
    """The model with all of a composition's adapters; without them again at the end."""
    from peft import PeftModel

    from orchestrator.models.adapters import take_off, without_own_warnings

    said = json.loads((folder / COMPOSITION).read_text())
    first, *others = said["adapters"]
    with without_own_warnings():
        peft_model = PeftModel.from_pretrained(model, str(folder / first), adapter_name=first)
        for name in others:
            peft_model.load_adapter(str(folder / name), adapter_name=name)
    yield Composed(peft_model.eval(), tuple(said["adapters"]), said["by"], said["every"])
    take_off(peft_model)


class Composed(nn.Module):
    """A model with several adapters: of each place the logits of all, or of the one whose turn it is."""

    def __init__(self, worn: Any, names: tuple[str, ...], by: Composition, every: int) -> None:
        super().__init__()
        self.worn, self.names, self.by, self.every = worn, names, by, every
        self.config, self.copies = worn.config, len(names)  # of keys and values, `scoring.caches.held` makes so many

    @property
    def device(self) -> Any:
        """The model's."""
        return self.worn.device

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: Any = 0,
        **options: Any,
    ) -> Any:
        """As transformers' own, with the logits of the composition. A token's turn goes by its place in the text."""
        from transformers.cache_utils import Cache
        from transformers.modeling_outputs import CausalLMOutputWithPast

        found, layers = [], self.config.num_hidden_layers
        for place, name in enumerate(self.names):
            self.worn.set_adapter(name)
            own = past_key_values and Cache(layers=past_key_values.layers[place * layers : (place + 1) * layers])
            if position_ids is not None:
                options["position_ids"] = position_ids
            found.append(
                self.worn(
                    input_ids=input_ids, attention_mask=attention_mask, past_key_values=own or None,
                    logits_to_keep=logits_to_keep, **options,
                ).logits
            )  # fmt: skip
        each = torch.stack(found)
        if self.by == "composite":
            return CausalLMOutputWithPast(logits=each.mean(0))
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
        kept = position_ids[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else position_ids[:, logits_to_keep]
        turn = (kept // self.every) % len(self.names)
        return CausalLMOutputWithPast(logits=each.gather(0, turn[None, :, :, None].expand(1, *each.shape[1:]))[0])
