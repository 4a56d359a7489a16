"""Keys of models, their matching and their losses: ``MODEL.*``."""

from detectron2.config import CfgNode as CN


def add_model_config(cfg: CN) -> None:
    """See :func:`updetr_d2.config.defaults.add_updetr_config`."""
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
