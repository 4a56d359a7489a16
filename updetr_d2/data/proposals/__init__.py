"""Boxes for images without labels: where they come from, and the file that keeps them."""

from updetr_d2.data.proposals import coco_boxes, feature_boxes, random_boxes, selective_search  # noqa: F401
from updetr_d2.data.proposals.file import ImageProposals, Proposals
from updetr_d2.data.proposals.source import PROPOSAL_REGISTRY, ProposalSource, SourceOptions

__all__ = ["PROPOSAL_REGISTRY", "ImageProposals", "ProposalSource", "Proposals", "SourceOptions"]
