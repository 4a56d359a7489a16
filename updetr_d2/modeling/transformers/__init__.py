"""Transformers of detectors; importing registers them."""

from updetr_d2.modeling.transformers.base import TRANSFORMER_REGISTRY
from updetr_d2.modeling.transformers.deformable import DeformableTransformer
from updetr_d2.modeling.transformers.dino import DINOTransformer
from updetr_d2.modeling.transformers.transformer import Transformer

__all__ = ["TRANSFORMER_REGISTRY", "DINOTransformer", "DeformableTransformer", "Transformer"]
