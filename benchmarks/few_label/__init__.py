"""Pre-training against other starts with few labels, on data that anyone can make."""
