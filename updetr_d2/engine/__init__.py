"""Training: trainer, step, schedule, optimiser, hooks."""
