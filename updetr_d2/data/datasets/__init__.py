"""Which images there are: names of data sets, their files, their classes."""
