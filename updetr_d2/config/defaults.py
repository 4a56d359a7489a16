"""Every configuration key that updetr_d2 adds to Detectron2, with default, unit and source.

"Paper" is Dai et al., *UP-DETR: Unsupervised Pre-training for Object Detection with Transformers*,
CVPR 2021 (arXiv 2011.09094); "DETR" is Carion et al., ECCV 2020 (arXiv 2005.12872).
"""

from detectron2.config import CfgNode as CN

from updetr_d2.config.input_defaults import add_input_config
from updetr_d2.config.model_defaults import add_model_config


def add_updetr_config(cfg: CN) -> None:
    """Add the keys of updetr_d2, with their defaults, to a Detectron2 config.

    Args:
        cfg: the config to extend in place, usually fresh from ``detectron2.config.get_cfg()``.
    """
    add_input_config(cfg)
    _add_oneshot_config(cfg)
    add_model_config(cfg)
    _add_solver_config(cfg)
    _add_tracking_config(cfg)


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
