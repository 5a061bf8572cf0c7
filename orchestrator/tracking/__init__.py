"""MLflow, told of runs; whatever it does, no trial waits for it or is lost."""
