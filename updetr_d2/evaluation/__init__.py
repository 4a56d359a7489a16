"""Evaluators, Detectron2's and our own."""

from updetr_d2.evaluation.build import build_dataset_evaluator
from updetr_d2.evaluation.oneshot import OneShotEvaluator
from updetr_d2.evaluation.query_patch import QueryPatchEvaluator

__all__ = ["OneShotEvaluator", "QueryPatchEvaluator", "build_dataset_evaluator"]
