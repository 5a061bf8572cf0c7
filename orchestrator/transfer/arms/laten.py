"""Changes of the student's located neurons, made of the teacher's."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.transfer.arms.base import control
from orchestrator.transfer.arms.carried import Arriving


class Laten(Arriving):
    """What a small network makes of the teacher's neurons, added to the student's: paired by importance.

    LaTen (arXiv 2505.14436): a neuron is a column of a feed-forward layer's down matrix or of attention's o; its gain
    is what it adds to log p of the answer's last token, by way of the head. The best tenth of the student's are paired
    by rank with as many of the teacher's. A network of each kind, without biases (d_T → d_T → ReLU → d_S), makes of a
    teacher's column what is added to the student's, and learns the task in a few steps, by the language model's loss
    and `penalty` times the mean square of what is added. Published for LLaMA-2 7B-chat from 13B: MMLU 44.40 and GSM8K
    20.47, where 7B-chat alone has 44.20 and 16.07; the model that the authors' code saves is the unmodified one.
    Reconstructed: gains are taken to first order at the last layer's state, ranks over all layers, and the learning
    rate is ours. As a LoRA, what is added is cut to its strongest directions.
    """

    kind: Literal["laten"] = "laten"
    starts_at: ClassVar[str] = "changes of the student's neurons made of the teacher's"
    at_random: ClassVar[bool] = False
    examples: int = Field(100, ge=1)  # training rows, by which neurons are located and networks taught
    share: float = Field(0.1, gt=0, le=1)  # of the student's neurons
    steps: int = Field(8, ge=1)
    step_lr: float = Field(1e-3, gt=0)
    penalty: float = Field(1000.0, ge=0)
    kept: int = Field(64, ge=1)  # directions of what is added to a matrix, of which a trial takes as many as its rank


control(Laten, "random", "changes of the same neurons made of random columns", at_random=True, has_content=False)
