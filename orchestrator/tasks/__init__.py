"""Tasks: rows, one template, gold answers and a metric. A new task is one file and one row in TASKS."""

from orchestrator.tasks.base import Task
from orchestrator.tasks.chat import chat_task
from orchestrator.tasks.demo import TASK as DEMO
from orchestrator.tasks.gsm8k import TASK as GSM8K
from orchestrator.tasks.mmlu import TASK as MMLU

TASKS: dict[str, Task] = {task.name: task for task in (DEMO, GSM8K, MMLU)}

__all__ = ["TASKS", "Task", "chat_task"]
