"""The quickstart: pre-training, detection from few labels and a comparison on photographs, in minutes."""
