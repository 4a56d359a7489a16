"""The Cutouts data set: real objects on real photographs."""
