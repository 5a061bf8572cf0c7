"""A sweep's description in MLflow, which reads it as Markdown."""

from __future__ import annotations

from orchestrator.sweep.labbook import with_verdict
from orchestrator.tracking.run_record import Record
from orchestrator.verdict.answers import in_columns


def test_a_table_of_differences_is_one_table() -> None:
    table = in_columns([["way", "lora"], ["theseus", "+0.22 ± 0.13*"], ["ridge", "-"]])
    note = with_verdict(Record("key", "small"), [], ["Headline.", *table, "  [1] why"], 0).tags["mlflow.note.content"]
    assert note == (
        "Headline.\n\n"
        "| way     | lora          |\n"
        "|---------|---------------|\n"
        "| theseus | +0.22 ± 0.13* |\n"
        "| ridge   | -             |\n\n"
        "[1] why"
    )
