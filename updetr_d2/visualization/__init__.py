"""Pictures of boxes and attention, and learning curves."""
