"""Random boxes: those of UP-DETR's patches, fixed for each image; what every other source is compared with."""

import numpy as np

from updetr_d2.data.proposals.file import image_id_of, image_key
from updetr_d2.data.proposals.source import PROPOSAL_REGISTRY, ProposalSource
from updetr_d2.data.transforms.patch_boxes import random_patch_boxes

# Shortest side (px), as INPUT.QUERY_PATCH.MIN_SIZE.
_MIN_SIZE = 8


@PROPOSAL_REGISTRY.register()
class RandomBoxes(ProposalSource):
    """Boxes that depend on the seed and the ``image_id`` alone; all have the score 0."""

    name = "random"

    def __call__(self, image: np.ndarray, dataset_dict: dict) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.options.seed, int(image_key(image_id_of(dataset_dict)))])
        height, width = image.shape[:2]
        boxes = random_patch_boxes(
            rng, width=width, height=height, num_patches=self.options.num_boxes, min_size=_MIN_SIZE
        )
        return boxes, np.zeros(len(boxes))
