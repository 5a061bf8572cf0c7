"""What a model answers to the rows of a task, and how that is judged."""
