"""Mean-teacher training: an average of the student's weights labels images for it (docs/MEAN_TEACHER.md)."""
