"""A piece of work that several processes share, one a GPU or plain ones: Ray Train starts them, joins them in torch's
process group, and ends them all where one dies.

    Group(workers=2, cpus=1, gpus=1)(work, scratch)     # `work()` on each; what rank 0's returns

`ranks.py` has the teacher's groups, which stream what they find and meet in their own way; these train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.cluster.broken import Broken
from orchestrator.errors import UserError

T = TypeVar("T")
LOST = ("gloo/transport", "NCCL", "Connection closed by peer", "Connection reset by peer")  # of who misses another rank


@dataclass(frozen=True)
class Group:
    """So many processes, each with its CPUs and, where there are any, its GPU."""

    workers: int
    cpus: int
    gpus: float  # of each

    def __call__(self, work: Callable[[], T], scratch: Path) -> T:
        """Blocks until the group has ended. `scratch` is a folder that all nodes see.

        What a worker raises is raised; Broken where one is gone, so that the work is begun again by another group.
        """
        import ray
        from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchTrainer

        cpus = self.cpus

        def each() -> T:
            import torch

            torch.set_num_threads(cpus)
            return work()

        trainer = TorchTrainer(
            each,
            scaling_config=ScalingConfig(
                num_workers=self.workers, use_gpu=bool(self.gpus),
                resources_per_worker={"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {}),
            ),
            run_config=RunConfig(
                name=scratch.name, storage_path=str(scratch.parent), logging_config=LoggingConfig(log_level="ERROR")
            ),
        )  # fmt: skip
        try:
            return trainer.fit().return_value
        except TrainingFailedError as error:
            raise self._reason(error) from error
        except ray.exceptions.RayTaskError:  # a fault of Ray Train's own
            raise
        except ray.exceptions.RayError as error:
            raise Broken("the group's controller died: killed, or its node is gone") from error

    def _reason(self, error: Any) -> BaseException:
        """What was at the bottom of it: a worker that misses another says so, too, and isn't the one that failed."""
        failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
        dead = [rank for rank, one in failures.items() if type(one).__module__.startswith("ray.")]
        own = [one for rank, one in failures.items() if rank not in dead and not _misses_another(one)]
        if found := sorted(own, key=lambda one: not isinstance(one, UserError)):
            return found[0]
        who = f"worker {dead[0]} of {self.workers}" if dead else f"one of {self.workers} workers"
        return Broken(f"{who} died: killed, or out of memory") if failures else Broken(str(error).splitlines()[-1])


def _misses_another(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)
