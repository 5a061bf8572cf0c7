"""Parametric knowledge transfer, orchestrated: measure, extract, finetune, evaluate, compare."""
