from updetr_d2.data import scenes  # noqa: F401  (registration)
