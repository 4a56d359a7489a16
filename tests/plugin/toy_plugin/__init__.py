"""A plugin of somebody else: detectors that build on those of updetr_d2, and a task that it has never heard of."""

from toy_plugin import counting, detectors  # noqa: F401  (registration)
