"""The embedded data set of generated scenes."""
