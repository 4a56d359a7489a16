"""Keys of images, patches, proposals and views: ``INPUT.*``."""

from detectron2.config import CfgNode as CN


def add_input_config(cfg: CN) -> None:
    """See :func:`updetr_d2.config.defaults.add_updetr_config`."""
    # Images with a side shorter than this (px) are skipped; the official code skips sides <= 16 px.
    cfg.INPUT.MIN_IMAGE_SIDE = 17

    # --- What one image file may cost (docs/RELIABILITY.md) ---
    # Images with more pixels are skipped (decoding needs some ten bytes for each); at most 178956970.
    cfg.INPUT.MAX_PIXELS = 100_000_000
    # Seconds that decoding a file may take before it is skipped; 0 is no limit.
    cfg.INPUT.DECODE_TIME_LIMIT = 60.0
    # Read GIF files, the first frame of each; a crafted one keeps the decoder busy until the time limit.
    cfg.INPUT.READ_GIF = False
    # Decode JPEGs at 1/2, 1/4 or 1/8 of their sides where that is still as large as what detection resizes them
    # to: faster for photos of many megapixels, with pixels that differ slightly.
    cfg.INPUT.JPEG_DRAFT = False
    # Batches in a row whose images are resized to the same length of INPUT.MIN_SIZE_TRAIN: with 10, the number of
    # YOLOv2, about half of the padding goes. 0 draws a length for each image, as DETR does.
    cfg.INPUT.BATCHES_PER_SCALE = 0
    # Bits that the values of 16-bit gray files use: 16, or 10, 12 or 14 with many cameras and scanners.
    cfg.INPUT.GRAY_BITS = 16

    # --- Random query patches (paper, Section 3.1) ---
    cfg.INPUT.QUERY_PATCH = CN()
    # Side (px) of the square that every patch is resized to.
    cfg.INPUT.QUERY_PATCH.SIZE = 128
    # Shortest side (px, in the original image) that a random patch may have.
    cfg.INPUT.QUERY_PATCH.MIN_SIZE = 8
    # SimCLR-style augmentation of the patches; the images themselves are never augmented.
    cfg.INPUT.QUERY_PATCH.COLOR_JITTER_PROB = 0.8
    # Jitter strengths, as in torchvision.transforms.ColorJitter.
    cfg.INPUT.QUERY_PATCH.BRIGHTNESS = 0.4
    cfg.INPUT.QUERY_PATCH.CONTRAST = 0.4
    cfg.INPUT.QUERY_PATCH.SATURATION = 0.4
    cfg.INPUT.QUERY_PATCH.HUE = 0.1
    cfg.INPUT.QUERY_PATCH.GRAYSCALE_PROB = 0.2
    cfg.INPUT.QUERY_PATCH.BLUR_PROB = 0.5
    # Range (px of the resized patch) that the sigma of the Gaussian blur is drawn from.
    cfg.INPUT.QUERY_PATCH.BLUR_SIGMA = (0.1, 2.0)
    # Cut and augment the patches of training on the model's device instead of in the loader workers, with the same
    # random numbers; for GPUs that wait for data. Images of more than a megapixel stay with the workers.
    cfg.INPUT.QUERY_PATCH.ON_DEVICE = False
    # Seed of the fixed patches that evaluation draws from every image.
    cfg.INPUT.QUERY_PATCH.EVAL_SEED = 0

    # --- Boxes without labels that pre-training learns (docs/PRETRAINING.md) ---
    cfg.INPUT.PROPOSALS = CN()
    # File of `updetr proposals` for the images of DATASETS.TRAIN; "" draws random boxes.
    cfg.INPUT.PROPOSALS.FILE = ""
    # First boxes of an image that are used (DETReg: 30); of random ones as many are drawn.
    cfg.INPUT.PROPOSALS.MAX_BOXES = 30
    # Images with fewer boxes are replaced by others (DETReg: 2).
    cfg.INPUT.PROPOSALS.MIN_BOXES = 1
    # Share of the boxes of an image that are random instead, in [0, 1].
    cfg.INPUT.PROPOSALS.RANDOM_SHARE = 0.0
    # Classes are the clusters of the file (MODEL.DETR.NUM_CLASSES 0: as many as it has), not one for all.
    cfg.INPUT.PROPOSALS.CLUSTERS = False
    # Boxes of which a crop leaves less than this share of the area are dropped.
    cfg.INPUT.PROPOSALS.MIN_VISIBLE = 0.3

    # --- Scale-crop-scale branch of detection fine-tuning (DETR, Appendix A.4) ---
    cfg.INPUT.DETR_CROP = CN()
    # Probability of the branch; 0 turns it off.
    cfg.INPUT.DETR_CROP.PROB = 0.5
    # Short sides (px) of the resize before the crop.
    cfg.INPUT.DETR_CROP.RESIZE_SIDES = (400, 500, 600)
    # Range (px) that both sides of the crop are drawn from.
    cfg.INPUT.DETR_CROP.CROP_SIDE_RANGE = (384, 600)

    # --- Strong view of unlabeled images (mean teacher); crops and sizes are those of labeled images ---
    cfg.INPUT.STRONG_VIEW = CN()
    # A further factor on the size is drawn from this range.
    cfg.INPUT.STRONG_VIEW.SCALE_RANGE = (0.7, 1.0)
    # As in INPUT.QUERY_PATCH.
    cfg.INPUT.STRONG_VIEW.COLOR_JITTER_PROB = 0.8
    cfg.INPUT.STRONG_VIEW.BRIGHTNESS = 0.4
    cfg.INPUT.STRONG_VIEW.CONTRAST = 0.4
    cfg.INPUT.STRONG_VIEW.SATURATION = 0.4
    cfg.INPUT.STRONG_VIEW.HUE = 0.1
    cfg.INPUT.STRONG_VIEW.GRAYSCALE_PROB = 0.2
    cfg.INPUT.STRONG_VIEW.BLUR_PROB = 0.5
    cfg.INPUT.STRONG_VIEW.BLUR_SIGMA = (0.1, 2.0)
    # Rectangles that may be erased, the probability of each, and the range of their areas as shares of the image.
    cfg.INPUT.STRONG_VIEW.ERASE_COUNT = 3
    cfg.INPUT.STRONG_VIEW.ERASE_PROB = 0.4
    cfg.INPUT.STRONG_VIEW.ERASE_AREA = (0.02, 0.15)

    # Images without labels that a mean teacher labels for the training of a detector, beside DATASETS.TRAIN:
    # "folder:DIR" or any other name of a data set (docs/MEAN_TEACHER.md). () trains on labels alone.
    cfg.DATASETS.UNLABELED = ()

    # Training stops when this many different images in a row cannot be used.
    cfg.DATALOADER.MAX_CONSECUTIVE_FAILURES = 100
    # How often a file is read again after an error of the file system that may pass, such as a network file
    # system that does not answer; then it counts as one that cannot be used.
    cfg.DATALOADER.READ_RETRIES = 5
    # Seconds before the first of these tries; each further one waits twice as long (15.5 s in all).
    cfg.DATALOADER.READ_RETRY_DELAY = 0.5
    # Tar shards (docs/DATASETS.md) whose images are shuffled together; the shards come in a new order each
    # pass. 0 shuffles all images of all shards.
    cfg.DATALOADER.MIXED_SHARDS = 64
