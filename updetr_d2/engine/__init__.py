"""Training: trainer, step, schedule, optimizer, hooks."""
