"""Every configuration key that updetr_d2 adds to Detectron2, with default, unit and source.

"Paper" is Dai et al., *UP-DETR: Unsupervised Pre-training for Object Detection with Transformers*,
CVPR 2021 (arXiv 2011.09094); "DETR" is Carion et al., ECCV 2020 (arXiv 2005.12872).
"""

from detectron2.config import CfgNode as CN


def add_updetr_config(cfg: CN) -> None:
    """Add the keys of updetr_d2, with their defaults, to a Detectron2 config.

    Args:
        cfg: the config to extend in place, usually fresh from ``detectron2.config.get_cfg()``.
    """
    _add_input_config(cfg)
    _add_oneshot_config(cfg)
    _add_model_config(cfg)
    _add_solver_config(cfg)
    _add_tracking_config(cfg)


def _add_input_config(cfg: CN) -> None:
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


def _add_oneshot_config(cfg: CN) -> None:
    # --- One-shot detection (MODEL.META_ARCHITECTURE: OneShotDETR; docs/ONE_SHOT.md) ---
    cfg.DATASETS.ONESHOT = CN()
    # "voc" or "coco_split1" ... "coco_split4" (CoAE's splits); "" takes the class lists below.
    cfg.DATASETS.ONESHOT.SPLIT = ""
    # Names of the classes to train on (() is all that are not unseen) and of those held out.
    cfg.DATASETS.ONESHOT.SEEN_CLASSES = ()
    cfg.DATASETS.ONESHOT.UNSEEN_CLASSES = ()
    # Train on images that show unseen classes as well, without labels for them, or drop these images.
    cfg.DATASETS.ONESHOT.KEEP_IMAGES_WITH_UNSEEN = True
    # Whether a query patch may come from the target image itself.
    cfg.DATASETS.ONESHOT.SAME_IMAGE = False
    # Context around the box of a query patch on each side, as a fraction of the box's sides.
    cfg.DATASETS.ONESHOT.CONTEXT_MARGIN = 0.0
    # Share of training samples whose query shows a class that is not in the image.
    cfg.DATASETS.ONESHOT.ABSENT_SHARE = 0.1
    # Query patches (shots) per query; their features are averaged.
    cfg.DATASETS.ONESHOT.NUM_SHOTS = 1
    cfg.TEST.ONESHOT = CN()
    # Queries drawn for each image and class; AP is computed for each and averaged (CoAE: 5).
    cfg.TEST.ONESHOT.NUM_QUERIES = 5
    # Seed of these draws.
    cfg.TEST.ONESHOT.SEED = 0


def _add_model_config(cfg: CN) -> None:
    # Of checkpoints in MODEL.WEIGHTS (with --resume, too, for --eval-only) that hold averaged weights, SOLVER.EMA,
    # take these; False takes the raw ones.
    cfg.MODEL.EMA_WEIGHTS = True

    # Run DETR's transformer in training through torch.compile (minutes at the start; needs a C++ compiler).
    cfg.MODEL.COMPILE = False
    # On GPUs, where no gradient is wanted, let cuDNN do bias, shortcut and ReLU of ResNet blocks within the
    # convolutions. Each block checks itself once; tools/gpu_check.py says whether it is faster on a GPU.
    cfg.MODEL.FUSE_FROZEN = False

    # --- DETR ---
    cfg.MODEL.DETR = CN()
    # Foreground classes K; the class head has K + 1 outputs, the last one is "no object".
    # 0 takes the number from the metadata of the training data set.
    cfg.MODEL.DETR.NUM_CLASSES = 80
    cfg.MODEL.DETR.NUM_QUERIES = 100
    cfg.MODEL.DETR.HIDDEN_DIM = 256
    cfg.MODEL.DETR.NHEADS = 8
    cfg.MODEL.DETR.ENC_LAYERS = 6
    cfg.MODEL.DETR.DEC_LAYERS = 6
    cfg.MODEL.DETR.DIM_FEEDFORWARD = 2048
    cfg.MODEL.DETR.DROPOUT = 0.1
    # Layer norm before attention and FFN (UP-DETR) or after (DETR's own checkpoints).
    cfg.MODEL.DETR.PRE_NORM = False
    # Losses on every decoder layer, not only the last.
    cfg.MODEL.DETR.DEEP_SUPERVISION = True
    # Keep less of the encoder for the backward pass and compute it twice: for large images and little memory.
    cfg.MODEL.DETR.RECOMPUTE_ENCODER = False
    # The same for the decoder, and for the stages of Detectron2's ResNets that train.
    cfg.MODEL.DETR.RECOMPUTE_DECODER = False
    cfg.MODEL.DETR.RECOMPUTE_BACKBONE = False
    # In training, pad batches to sizes (px) that are multiples of it: fewer different shapes, for MODEL.COMPILE
    # and for libraries that plan for each shape. 1 pads to the largest image only, as the papers do.
    cfg.MODEL.DETR.PAD_MULTIPLE = 1
    # Backbone feature that the transformer sees.
    cfg.MODEL.DETR.IN_FEATURE = "res5"
    # Of boxes of one class with a larger IoU, inference gives the best only; 1 gives all, as in the papers. After
    # short trainings the queries have not yet learned to agree on one box per object.
    cfg.MODEL.DETR.NMS_THRESH = 1.0
    # Refuse to start when MODEL.WEIGHTS holds nothing of the transformer.
    cfg.MODEL.DETR.REQUIRE_PRETRAINED_TRANSFORMER = False

    # --- Transformer (a registry: Transformer is DETR's) ---
    cfg.MODEL.TRANSFORMER = CN()
    # Transformer, DeformableTransformer (Deformable DETR) or DINOTransformer (DINO).
    cfg.MODEL.TRANSFORMER.NAME = "Transformer"

    # --- Multi-scale deformable transformers (Deformable DETR, arXiv 2010.04159; DINO, arXiv 2203.03605) ---
    cfg.MODEL.DEFORMABLE = CN()
    # Backbone features that the transformer sees, the finest first; further levels are made of the last one.
    cfg.MODEL.DEFORMABLE.IN_FEATURES = ("res3", "res4", "res5")
    # Number of levels, at least that of IN_FEATURES.
    cfg.MODEL.DEFORMABLE.NUM_LEVELS = 4
    # Points that each attention head looks at in each level.
    cfg.MODEL.DEFORMABLE.NUM_POINTS = 4
    # Each decoder layer corrects the boxes of the one before.
    cfg.MODEL.DEFORMABLE.BOX_REFINE = False
    # The encoder's tokens propose the first boxes; needs BOX_REFINE.
    cfg.MODEL.DEFORMABLE.TWO_STAGE = False
    # Queries of two stages: positions from the proposals, contents learned (DINO).
    cfg.MODEL.DEFORMABLE.MIXED_SELECTION = False
    # The loss of a layer's boxes reaches the layer before (DINO).
    cfg.MODEL.DEFORMABLE.LOOK_FORWARD_TWICE = False
    # Of proposals with a larger IoU only the best becomes a query; 1 takes all.
    cfg.MODEL.DEFORMABLE.PROPOSAL_NMS_THRESH = 1.0
    # All tokens in the middle of an object, of this share of its sides, learn to propose it: a dense signal for
    # few labels. 0 matches proposals as queries are.
    cfg.MODEL.DEFORMABLE.CENTER_RADIUS = 0.0
    # Side of the boxes that tokens of the finest level start from, as a share of the image's; twice as much in
    # each further level. In short trainings take about that of the objects: tokens that all have to learn to
    # grow learn little else.
    cfg.MODEL.DEFORMABLE.PROPOSAL_SIZE = 0.05
    # Score of each class that a fresh class head gives. 0.01 suits 80 classes and hundreds of queries; in short
    # trainings of few classes and queries a larger one spares the way up.
    cfg.MODEL.DEFORMABLE.CLASS_PRIOR = 0.01
    # Tell where tokens are from the sizes of the images in pixels, instead of from whole tokens as the official
    # code: for small images, whose levels of stride 32 are a few tokens wide. Leave it off for official weights.
    cfg.MODEL.DEFORMABLE.EXACT_VALID_RATIOS = False

    # --- Contrastive denoising (DINO, Section 3.3), for two stages and focal loss ---
    cfg.MODEL.DENOISING = CN()
    # Noised ground-truth boxes that training gives the decoder beside the queries, in all; 0 turns it off.
    cfg.MODEL.DENOISING.NUM_QUERIES = 0
    # Share of labels that are noised; half of them get a random class.
    cfg.MODEL.DENOISING.LABEL_NOISE = 0.5
    # Largest shift of a corner of a positive box, in half sides of the box; negatives move up to twice as far.
    cfg.MODEL.DENOISING.BOX_NOISE = 1.0

    # --- Pre-training: UP-DETR (paper, Section 3); of ObjectDETR the last four keys ---
    cfg.MODEL.UPDETR = CN()
    # Query patches M per image; must divide MODEL.DETR.NUM_QUERIES. 1 is the single-query version.
    cfg.MODEL.UPDETR.NUM_PATCHES = 10
    # Share of object queries that lose their patch in training.
    cfg.MODEL.UPDETR.MASK_RATIO = 0.1
    # Shuffle the object query embeddings in training (CVPR version; off in the released model).
    cfg.MODEL.UPDETR.QUERY_SHUFFLE = False
    # Keep queries of different patches from attending to each other; without it only for ablations.
    cfg.MODEL.UPDETR.ATTENTION_MASK = True
    # Match the box of a patch with queries of the patch's own group only. The official code matches with all
    # queries, which teaches short schedules to ignore the patches (docs/EVIDENCE.md).
    cfg.MODEL.UPDETR.MATCH_WITHIN_GROUPS = False
    # Standardize the patches' features, and add to the logits how much what a query's box shows is like its patch.
    # Not as in the paper: in short trainings of two stages queries do not learn to compare the two.
    cfg.MODEL.UPDETR.PATCH_SIMILARITY = False
    # Patch feature reconstruction branch.
    cfg.MODEL.UPDETR.FEATURE_RECON = True
    # Backbone feature that is reconstructed, pooled over the patch; "" for MODEL.DETR.IN_FEATURE.
    cfg.MODEL.UPDETR.TARGET_FEATURE = ""
    # Not every object has a box: queries without a target whose box overlaps no target by more than this IoU do
    # not count in the class loss (DropLoss, CutLER: 0.01); 0 counts all.
    cfg.MODEL.UPDETR.DROP_IOU = 0.0
    # Freeze the whole CNN, not only the stages below MODEL.BACKBONE.FREEZE_AT.
    cfg.MODEL.UPDETR.FREEZE_BACKBONE = True

    # --- Matching and losses ---
    cfg.MODEL.MATCHER = CN()
    cfg.MODEL.MATCHER.NAME = "HungarianMatcher"
    cfg.MODEL.MATCHER.COST_CLASS = 1.0
    cfg.MODEL.MATCHER.COST_BBOX = 5.0
    cfg.MODEL.MATCHER.COST_GIOU = 2.0
    # Of IoUMatcher: a query learns the object that its box overlaps at least so much, ...
    cfg.MODEL.MATCHER.IOU_THRESH = 0.6
    # ... at most so many queries for each object.
    cfg.MODEL.MATCHER.MAX_PER_TARGET = 4

    cfg.MODEL.CRITERION = CN()
    cfg.MODEL.CRITERION.NAME = "SetCriterion"
    # Terms of the loss, each computed where the model has what it needs; LOSS_REGISTRY takes others.
    cfg.MODEL.CRITERION.LOSSES = ("class_loss", "box_loss", "feature_loss", "mask_loss")
    # "softmax" over the classes and "no object" (DETR), or "focal": a sigmoid for each class (Deformable DETR).
    cfg.MODEL.CRITERION.CLASS_LOSS = "softmax"
    # Of the focal loss and its matching cost (Lin et al., arXiv 1708.02002).
    cfg.MODEL.CRITERION.FOCAL_ALPHA = 0.25
    cfg.MODEL.CRITERION.FOCAL_GAMMA = 2.0
    cfg.MODEL.CRITERION.CLASS_WEIGHT = 1.0
    cfg.MODEL.CRITERION.BBOX_WEIGHT = 5.0
    cfg.MODEL.CRITERION.GIOU_WEIGHT = 2.0
    cfg.MODEL.CRITERION.FEATURE_WEIGHT = 1.0
    # Distance of reconstructed features: "normalized_mse" (UP-DETR) or "l1" (DETReg), ...
    cfg.MODEL.CRITERION.FEATURE_LOSS = "normalized_mse"
    # ... of every decoder layer or (DETReg) of the last.
    cfg.MODEL.CRITERION.FEATURE_LAST_LAYER_ONLY = False
    cfg.MODEL.CRITERION.MASK_WEIGHT = 1.0
    cfg.MODEL.CRITERION.DICE_WEIGHT = 1.0
    # Weight of the "no object" class in the classification loss.
    cfg.MODEL.CRITERION.EOS_COEF = 0.1

    # --- Masks (DETR, Section 4.4) ---
    cfg.MODEL.MASK_HEAD = CN()
    # Three features that refine the masks, coarsest first; masks have the resolution of the last one.
    cfg.MODEL.MASK_HEAD.IN_FEATURES = ["res4", "res3", "res2"]
    # Factor on all features before the mask head. Beside activations much larger than a ResNet's (root mean
    # square about 0.5; 7 in EfficientNet-Lite0) it does not see the attention maps, whose values are in [0, 1].
    cfg.MODEL.MASK_HEAD.FEATURE_SCALE = 1.0
    # Classes below this number are things, the others stuff; 0 takes it from the metadata of the first
    # training data set.
    cfg.MODEL.MASK_HEAD.NUM_THING_CLASSES = 0
    # Train the mask head only, on a detector that is loaded from MODEL.WEIGHTS.
    cfg.MODEL.MASK_HEAD.FREEZE_DETR = False
    # Softmax of the attention maps over heads and positions together, as DETR's released weights need it,
    # instead of over the positions of each head (UP-DETR's code).
    cfg.MODEL.MASK_HEAD.SOFTMAX_OVER_HEADS = False
    # Points per mask in which the mask losses compare, drawn as in PointRend; 0 compares every pixel.
    cfg.MODEL.MASK_HEAD.TRAIN_NUM_POINTS = 0
    # Candidates drawn per point, and the share of points that are the most uncertain candidates.
    cfg.MODEL.MASK_HEAD.OVERSAMPLE_RATIO = 3.0
    cfg.MODEL.MASK_HEAD.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Probability above which a pixel belongs to an instance's mask.
    cfg.MODEL.MASK_HEAD.MASK_THRESHOLD = 0.5
    # Panoptic output: queries of at most this score are left out ...
    cfg.MODEL.MASK_HEAD.SCORE_THRESHOLD = 0.85
    # ... and segments of at most this area (px).
    cfg.MODEL.MASK_HEAD.MIN_SEGMENT_AREA = 4

    # --- timm backbones (MODEL.BACKBONE.NAME: build_timm_backbone, or build_timm_vit_backbone for vision
    # transformers, which are frozen unless MODEL.BACKBONE.FREEZE_AT is 0) ---
    cfg.MODEL.TIMM = CN()
    # Any timm model that supports features_only; any plain vision transformer.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Features to return; "res2" ... "res5" are strides 4 ... 32 (of a vision transformer with patches of 14 px
    # 3.5 ... 28), "last_feat" is a vision transformer's own map.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res5"]
    # Channels of the pyramid "res2" ... "res5" that is made of a vision transformer's last layer (ViTDet: 256).
    cfg.MODEL.TIMM.PYRAMID_CHANNELS = 256


def _add_solver_config(cfg: CN) -> None:
    # Schedule in passes over the training set. SOLVER.MAX_ITER and STEPS are derived from it and from
    # SOLVER.IMS_PER_BATCH at start; 0 uses SOLVER.MAX_ITER and STEPS as they are.
    cfg.SOLVER.EPOCHS = 0
    # A run of fewer iterations is warned about; recipes that are meant to be short say less, 0 never warns.
    cfg.SOLVER.ADVISED_ITERS = 1000
    # Epochs at which the learning rate is multiplied by SOLVER.GAMMA.
    cfg.SOLVER.EPOCH_STEPS = ()
    # Checkpoint and evaluation periods in epochs; 0 uses SOLVER.CHECKPOINT_PERIOD / TEST.EVAL_PERIOD.
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0
    cfg.TEST.EVAL_EPOCHS = 0
    # Newest numbered checkpoints to keep, model_final.pth apart; 0 keeps all.
    cfg.SOLVER.KEEP_CHECKPOINTS = 0
    # Result of the evaluations, higher is better, whose best weights are kept as model_best.pth: "bbox/AP",
    # "ema/bbox/AP", ...; "" keeps none. Choose by held-out labels, and report results of others.
    cfg.SOLVER.BEST_METRIC = ""
    # Evaluations without a better SOLVER.BEST_METRIC after which the training ends; 0 goes on to the end.
    cfg.SOLVER.PATIENCE = 0
    # Parts of names of the parameters that stay as they are at first, such as ("backbone.",
    # "transformer.encoder."), and the iteration from which they learn; 0: from the first plateau on.
    cfg.SOLVER.HELD_PARAMETERS = ()
    cfg.SOLVER.HELD_ITERS = 0
    cfg.SOLVER.PLATEAU = CN()
    # Evaluations without a better SOLVER.BEST_METRIC after which learning rates are multiplied by FACTOR (the
    # first time HELD_PARAMETERS learn instead, if they wait for it): of the first plateau, the second, ...;
    # () is off.
    cfg.SOLVER.PLATEAU.PATIENCE = ()
    cfg.SOLVER.PLATEAU.FACTOR = 0.5
    # SOLVER.BASE_LR falls no lower by it.
    cfg.SOLVER.PLATEAU.MIN_LR = 1e-6
    # Steps of a run whose loss or gradient is not finite and that are left out, with the batch saved; one
    # more stops the run. The default stops at the first.
    cfg.SOLVER.SKIP_NONFINITE_STEPS = 0
    # "ADAMW" or "SGD" (for the Faster R-CNN baselines).
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to SOLVER.BASE_LR, with ADAMW.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Parts of names of the parameters that learn slower, with ADAMW (Deformable DETR: sampling offsets, reference
    # points), and their learning rate relative to SOLVER.BASE_LR.
    cfg.SOLVER.SLOW_PARAMETERS = ()
    cfg.SOLVER.SLOW_MULTIPLIER = 0.1
    # Learning rate of each layer relative to that of the next one (layer-wise decay), with ADAMW: stages of the
    # CNN, then encoder layers, decoder layers, and all else at SOLVER.BASE_LR. 1 is off.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Passes forward and backward that each batch is split into, for less memory: the update is that of the whole
    # SOLVER.IMS_PER_BATCH.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # On GPUs with AdamW: the device leaves out updates from numbers that are not finite, and the host looks at the
    # numbers a step later instead of waiting for them; messages about them come a step later.
    cfg.SOLVER.LATE_CHECK = True
    # PyTorch's float32 matrix products: "highest", or "high" for TF32 on GPUs.
    cfg.SOLVER.MATMUL_PRECISION = "highest"
    # Autocast to bfloat16 on GPUs that have it, even if SOLVER.AMP.ENABLED is False.
    cfg.SOLVER.AMP.AUTO = False
    # Autocast type under SOLVER.AMP.ENABLED: "bfloat16" or "float16" (with loss scaling, CUDA only).
    cfg.SOLVER.AMP.DTYPE = "bfloat16"

    # --- Exponential moving average (EMA) of the weights, evaluated beside them as "ema/..." ---
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    # Share of the average that each step keeps, in [0, 1).
    cfg.SOLVER.EMA.DECAY = 0.999
    # Keep at most (1 + t) / (10 + t) in step t, so that the average of a short run holds no early weights.
    cfg.SOLVER.EMA.WARMUP = True

    # --- Mean teacher (DATASETS.UNLABELED; needs SOLVER.EMA, whose average is the teacher) ---
    cfg.SOLVER.MEAN_TEACHER = CN()
    # Unlabeled images of a batch for each labeled one; SOLVER.IMS_PER_BATCH counts the labeled ones.
    cfg.SOLVER.MEAN_TEACHER.UNLABELED_RATIO = 4
    # Iterations on labeled images alone, and those over which the weight of the others then rises to WEIGHT.
    cfg.SOLVER.MEAN_TEACHER.BURN_IN_ITERS = 1000
    cfg.SOLVER.MEAN_TEACHER.RAMP_ITERS = 1000
    # Weight of the losses of unlabeled images.
    cfg.SOLVER.MEAN_TEACHER.WEIGHT = 2.0
    # Score from which a box of the teacher is a label.
    cfg.SOLVER.MEAN_TEACHER.SCORE_THRESH = 0.4
    # Quantile of the last scores of a class that is its threshold where that is below SCORE_THRESH; 0 is off.
    cfg.SOLVER.MEAN_TEACHER.CLASS_QUANTILE = 0.0
    # Boxes from this score to the threshold are uncertain: the student is not taught "no object" there.
    cfg.SOLVER.MEAN_TEACHER.UNCERTAIN_SCORE = 0.1
    # Of the teacher's boxes with a larger IoU, the best is taken.
    cfg.SOLVER.MEAN_TEACHER.NMS_THRESH = 0.5
    # DropLoss: "no object" is not taught where a query overlaps no label by more than this IoU; 0 is off.
    cfg.SOLVER.MEAN_TEACHER.DROP_LOSS_IOU = 0.0
    # Share of a box that the strong view must show, not cut off and not erased; else the box is uncertain.
    cfg.SOLVER.MEAN_TEACHER.MIN_VISIBLE = 0.3
    # After so many iterations without a box, or with boxes of one class only, the log says that the teacher has
    # collapsed.
    cfg.SOLVER.MEAN_TEACHER.COLLAPSE_ITERS = 100

    # Pictures that an evaluation draws for each data set, 0 for none: of detectors so many of each group (worst,
    # best, random images, suspicious labels) with a count of the kinds of errors, of UPDETR predictions (also in
    # TensorBoard), of a mean teacher its labels.
    cfg.TEST.VIS_IMAGES = 8
    # Of larger test sets so many images, drawn at random, are looked at for errors: seconds of work.
    cfg.TEST.ERROR_IMAGES = 1000


def _add_tracking_config(cfg: CN) -> None:
    # --- Services that get the metrics beside log.txt, metrics.json and TensorBoard's files ---
    cfg.TRACKING = CN()
    # "wandb" (Weights & Biases), "mlflow"; the packages are extras of setup.
    cfg.TRACKING.WRITERS = ()
    # W&B's project, MLflow's experiment.
    cfg.TRACKING.PROJECT = "updetr_d2"
    # Of the run; "" for the name of OUTPUT_DIR.
    cfg.TRACKING.NAME = ""
    # Send nothing: W&B's files are in OUTPUT_DIR/wandb (for `wandb sync`), MLflow's in OUTPUT_DIR/mlflow.db.
    cfg.TRACKING.OFFLINE = False
