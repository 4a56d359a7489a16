"""Detectron2's checkpointer with safe reading and writing, and an account of what a checkpoint gave."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from updetr_d2.checkpoint import resuming, run_files, zoo
from updetr_d2.checkpoint.safe_loading import CheckpointError, load_state_file
from updetr_d2.modeling.meta_arch.updetr import UPDETR

logger = logging.getLogger(__name__)

# All that tells classes apart, in any detector: the heads of decoder and encoder, the labels of denoising.
_CLASS_MODULES = ("class_embed", "transformer.enc_out_class_embed", "label_enc")
# Where Detectron2's R-CNNs keep the stages of a CNN: all in an FPN, or the last one in the box head (C4).
_RCNN_CNN_PREFIXES = ("backbone.bottom_up.", "roi_heads.")
# Where timm keeps the layers of a vision transformer that gives features.
_TIMM_PREFIX = "backbone.model."

# Entry of a checkpoint: averaged weights as ``model``, with the names of the entry "model".
EMA = "model_ema"


class UPDETRCheckpointer(DetectionCheckpointer):
    """Saves beside the weights what kind of model has them, and loads weights without running code.

    Modules that only pre-training has use for, such as its "is a patch" head, are not given to models for
    another task: a model says which these are in ``pretraining_only``, its checkpoints hold that list, and the
    model that is filled takes those of its own ``pretraining_only`` and ``taken_from_pretraining`` alone.

    Attributes:
        loaded_keys: names of the tensors taken from the last file.
        resumed_from: the checkpoint of this run that it goes on from; None if it starts.
        trained_classes: names by contiguous id that the last file's run has learned; empty if it does not tell.
        run: what each checkpoint says of its run (:func:`.resuming.describe_run`), for a later resume.
        averaged: take averaged weights (EMA) where a file has them; a run that goes on takes both in any case.
    """

    loaded_keys: frozenset[str] | set[str] = frozenset()
    resumed_from: str | None = None
    run: dict | None = None
    averaged: bool = False
    trained_classes: Sequence[str] = ()

    def save(self, name: str, **kwargs: Any) -> None:
        """Write a checkpoint, then the file that names it as the last one; both whole or not at all.

        Raises:
            SaveError: if the disk is full or the folder cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: each.state_dict() for key, each in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), "run": self.run, **states, **kwargs}
        content |= describe(self.model)
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        run_files.save_atomically(content, path)
        self.tag_last_checkpoint(os.path.basename(path))

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Write the weights, averaged ones as well, in a file that no run goes on from.

        Raises:
            SaveError: if the disk is full or the folder cannot be written.
        """
        averages = {key: each.state_dict() for key, each in self.checkpointables.items() if key == EMA}
        content = {"model": self.model.state_dict(), "run": self.run, **averages, **kwargs}
        content |= describe(self.model)
        run_files.save_atomically(content, os.path.join(self.save_dir, f"{name}.pth"))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, run_files.LAST_CHECKPOINT)
        run_files.write_atomically(path, lambda file: file.write(last_filename_basename.encode()))

    def get_checkpoint_file(self) -> str:
        # Whatever the file holds is a name, perhaps of no file.
        with open(os.path.join(self.save_dir, run_files.LAST_CHECKPOINT), errors="replace") as file:
            return os.path.join(self.save_dir, file.read().strip())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """Continue from the newest checkpoint of the run that is whole, if there is one, else load ``path``.

        The main process chooses for all.

        Args:
            path: weights to start from.
            resume: False loads ``path`` in any case.

        Raises:
            CheckpointError: if the run has checkpoints and all of them are damaged.
        """
        choice = None
        if resume and comm.is_main_process() and self.has_checkpoint():
            choice = self._newest_whole_checkpoint()
        choice = comm.all_gather(choice)[0] if resume else None
        if isinstance(choice, CheckpointError):
            raise choice
        self.resumed_from = choice
        return self.load(choice) if choice else self.load(path, checkpointables=[])

    def _newest_whole_checkpoint(self) -> str | CheckpointError:
        """The last checkpoint or, with a warning, the newest one before it that is not damaged."""
        last = self.get_checkpoint_file()
        damage = {last: run_files.find_damage(last)}
        if damage[last] is None:
            return last
        for name in run_files.checkpoints_before(self.save_dir, os.path.basename(last)):
            path = os.path.join(self.save_dir, name)
            damage[path] = run_files.find_damage(path)
            if damage[path] is None:
                logger.warning(
                    "The last checkpoint %s is damaged (%s): resuming from %s, the newest one that is whole.",
                    *(last, damage[last], path),
                )
                return path
        reasons = "; ".join(f"{path}: {reason}" for path, reason in damage.items())
        return CheckpointError(
            f"No checkpoint in OUTPUT_DIR '{self.save_dir}' can be resumed ({reasons}): bring a whole one back "
            f"and name it in {run_files.LAST_CHECKPOINT}, or start again without --resume."
        )

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict:
        """As Detectron2's; ``zoo:NAME`` are public weights, which the main process gets.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if there are no such public weights.
        """
        if path.startswith(zoo.PREFIX):
            path = _fetched_by_main(path)
        if path and path == self.resumed_from and not os.path.isfile(path):
            raise FileNotFoundError(
                f"Process {comm.get_rank()} does not see the checkpoint '{path}': OUTPUT_DIR must be a folder "
                "that all machines share."
            )
        if path and "://" not in path and comm.is_main_process() and not os.path.isfile(path):
            raise FileNotFoundError(
                f"MODEL.WEIGHTS: there is no file '{path}'. docs/GETTING_STARTED.md says where to get CNN weights "
                "and how to convert them; MODEL.WEIGHTS '' starts from random weights."
            )
        self._path = path
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict:
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        content = load_state_file(filename)
        if "model" in content and "__author__" in content:
            return content
        weights = content.get("blobs", content)  # Caffe2 files: "blobs" in detection models only
        weights = {key: value for key, value in weights.items() if not key.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> dict:
        try:
            return load_state_file(f)
        except CheckpointError as error:
            if self.resumed_from:
                raise
            raise CheckpointError(f"MODEL.WEIGHTS: {error}") from error

    def _load_model(self, checkpoint: dict) -> Any:
        kind, ours = checkpoint.get("meta_architecture"), type(self.model).__name__
        if self.resumed_from and kind not in (None, ours):
            raise CheckpointError(
                f"{self.resumed_from} is of a run of {kind}, --resume cannot go on with {ours}: choose another "
                "OUTPUT_DIR, or start again without --resume."
            )
        if self.averaged and not self._continues_training and EMA in checkpoint:
            checkpoint["model"] = averaged_weights(checkpoint, path=self._path)
            logger.info("The averaged weights (EMA) are taken; MODEL.EMA_WEIGHTS False takes the raw ones.")
        names = set(self.model.state_dict())
        weights = checkpoint["model"] = place_cnn(checkpoint["model"], names)
        if self.resumed_from:
            runs = {"before": checkpoint.get("run"), "now": self.run}
            resuming.check_model(weights, self.model, path=self.resumed_from, **runs)
            resuming.check_run(**runs, path=self.resumed_from)
        resuming.check_norm_placement(weights, names, path=self._path)
        prefixes = tuple(f"{name}." for name in modules_to_exclude(checkpoint, self.model))
        left_out = [key for key in weights if key.startswith(prefixes)]
        for key in left_out:
            del weights[key]
        self.trained_classes = (checkpoint.get("run") or {}).get("classes", ())
        incompatible = super()._load_model(checkpoint)
        self._log_loaded(left_out, incompatible)
        self._warn_of_shapes(incompatible.incorrect_shapes, checkpoint.get("run"))
        return incompatible

    @property
    def _continues_training(self) -> bool:
        return self.resumed_from is not None and "trainer" in self.checkpointables

    def _convert_ndarray_to_tensor(self, state_dict: dict) -> None:
        super()._convert_ndarray_to_tensor(state_dict)
        self._weights = state_dict  # the last call is with the names of the model, whatever those of the file

    def parameters_not_loaded(self) -> list[str]:
        """Names of the model's parameters that the last file did not give."""
        return [name for name, _ in self.model.named_parameters() if name not in self.loaded_keys]

    def _log_loaded(self, left_out: list[str], incompatible: Any) -> None:
        wrong_shape = {key for key, *_ in incompatible.incorrect_shapes}
        names = set(self.model.state_dict())
        loaded = names & set(self._weights)
        self._weights = {}
        self.loaded_keys = loaded
        parts = sorted({key.split(".")[0] for key in (*names, *incompatible.unexpected_keys, *left_out)})
        columns = (loaded, left_out, wrong_shape, incompatible.missing_keys, incompatible.unexpected_keys)
        rows = [
            (part, *(sum(key.split(".")[0] == part for key in keys) for keys in columns)) for part in parts
        ]
        headers = ("part", "loaded", "left out", "wrong shape", "not in checkpoint", "not in model")
        logger.info("Tensors taken from the checkpoint:\n%s", tabulate(rows, headers, tablefmt="pipe"))

    def _warn_of_shapes(self, incorrect_shapes: list[tuple], run: dict | None) -> None:
        """Say that a part of the model stays random because it has another size; heads of other classes do."""
        wrong = [each for each in incorrect_shapes if not each[0].startswith(_CLASS_MODULES)]
        if not wrong:
            return
        changed = resuming.keys_of_shapes([(theirs, ours) for _, theirs, ours in wrong], run, self.run)
        name, theirs, ours = wrong[0]
        logger.warning(
            "%d tensors of MODEL.WEIGHTS '%s' have another shape than in this model and are not taken, such as %s "
            "(%s there, %s here)%s: they start from random values.",
            *(len(wrong), self._path, name, "x".join(map(str, theirs)), "x".join(map(str, ours))),
            f"; {', '.join(changed)}" if changed else "",
        )


def _fetched_by_main(name: str) -> str:
    """The file of public weights; an error of the main process is raised in all."""
    result: str | Exception = ""
    if comm.is_main_process():
        try:
            result = str(zoo.fetch(name))
        except (CheckpointError, OSError, RuntimeError) as error:
            result = error
    result = comm.all_gather(result)[0]
    if isinstance(result, Exception):
        raise CheckpointError(f"MODEL.WEIGHTS '{name}': {result}") from result
    return result


def averaged_weights(checkpoint: dict, *, path: str) -> dict:
    """State dict of the averaged weights (``SOLVER.EMA``) of a checkpoint.

    Args:
        checkpoint: what a file holds.
        path: of the file.

    Raises:
        CheckpointError: if there are none.
    """
    entry = checkpoint.get(EMA)
    weights = entry.get("model") if isinstance(entry, dict) else None
    if not isinstance(weights, dict):
        raise CheckpointError(
            f"{path} holds no averaged weights ('{EMA}'): take the raw ones, or train with SOLVER.EMA.ENABLED."
        )
    return weights


def place_cnn(weights: dict, names: set[str]) -> dict:
    """Rename the CNN of a checkpoint (``backbone.*``) to where a Faster R-CNN, or a vision transformer, has it.

    Args:
        weights: state dict of a checkpoint.
        names: of the parameters and buffers of the model.

    Returns:
        the state dict, in which names that the model has stay as they are.
    """

    prefixes = (*_RCNN_CNN_PREFIXES, _TIMM_PREFIX)

    def place(name: str) -> str:
        if name in names or not name.startswith("backbone."):
            return name
        candidates = (prefix + name.removeprefix("backbone.") for prefix in prefixes)
        return next((candidate for candidate in candidates if candidate in names), name)

    return {place(name): tensor for name, tensor in weights.items()}


def describe(model: nn.Module) -> dict[str, object]:
    """What a checkpoint says of its model beside the weights: class, task, modules for pre-training only."""
    return {
        "meta_architecture": type(model).__name__,
        "task": getattr(model, "task", None),
        "pretraining_only": list(getattr(model, "pretraining_only", ())),
    }


def modules_to_exclude(checkpoint: dict, model: nn.Module) -> set[str]:
    """Modules of a checkpoint that only pre-training has use for and that ``model`` is not to take."""
    kept = {*getattr(model, "pretraining_only", ()), *getattr(model, "taken_from_pretraining", ())}
    excluded = set(pretraining_modules(checkpoint)) - kept
    return excluded.union(_CLASS_MODULES) if "class_embed" in excluded else excluded


def pretraining_modules(checkpoint: dict) -> Sequence[str]:
    """Modules of a checkpoint that only pre-training has use for.

    Checkpoints of versions before 0.2 tell no more than the meta-architecture, converted official ones not
    even that: there ``patch2query`` gives pre-training away.
    """
    if "pretraining_only" in checkpoint:
        return checkpoint["pretraining_only"]
    name = checkpoint.get("meta_architecture")
    if name is not None:
        architecture = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
        return getattr(architecture, "pretraining_only", ())
    official = any(key.startswith("patch2query.") for key in checkpoint["model"])
    return UPDETR.pretraining_only if official else ()
