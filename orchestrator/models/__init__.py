"""What is known of models: families as rows, aliases as rows, loading, and adapters."""
