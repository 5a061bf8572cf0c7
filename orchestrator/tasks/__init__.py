"""Tasks: rows, one template, gold answers and a metric. A new task is one file and one row in TASKS."""

from orchestrator.tasks.alpaca import TASK as ALPACA
from orchestrator.tasks.base import Task
from orchestrator.tasks.chat import chat_task
from orchestrator.tasks.demo import TASK as DEMO
from orchestrator.tasks.gsm8k import TASK as GSM8K
from orchestrator.tasks.humaneval import TASK as HUMANEVAL
from orchestrator.tasks.mbpp import TASK as MBPP
from orchestrator.tasks.mmlu import TASK as MMLU
from orchestrator.tasks.super_ni import TASK as SUPER_NI
from orchestrator.tasks.text import text_task

TASKS: dict[str, Task] = {task.name: task for task in (DEMO, GSM8K, MMLU, SUPER_NI, ALPACA, HUMANEVAL, MBPP)}

__all__ = ["TASKS", "Task", "chat_task", "text_task"]
