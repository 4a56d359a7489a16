"""``updetr compare``: which start and which detector suit someone's data, measured on them."""
