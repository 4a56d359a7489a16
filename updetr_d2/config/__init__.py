"""Every key of updetr_d2, what its values may be, and schedules in epochs."""

from updetr_d2.config.defaults import add_updetr_config

__all__ = ["add_updetr_config"]
