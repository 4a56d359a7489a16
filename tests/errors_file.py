"""An ``errors.json`` as evaluations write it."""

import json
from pathlib import Path

import numpy as np

from updetr_d2.evaluation.detection_errors import ERROR_KINDS, RIGHT, ErrorSummary


def write_errors(path: Path, *, ap50: float = 50.0, **changes: object) -> None:
    """Of a detector of cats and dogs.

    Args:
        path: of the file.
        ap50: in percent.
        **changes: entries that are different.
    """
    summary = ErrorSummary(
        ap50=ap50,
        threshold=0.25,
        counts={RIGHT: 7, **{kind: i for i, kind in enumerate(ERROR_KINDS)}},
        costs={kind: float(i) for i, kind in enumerate(ERROR_KINDS)},
        class_names=["cat", "dog"],
        confusion=np.arange(9).reshape(3, 3),
        class_precision={"cat": np.linspace(1, 0, 101), "dog": np.linspace(1, 0.5, 101)},
    )
    suspect = {"kind": "no label", "image": "a/0.jpg", "box": [1, 2, 3, 4.6], "score": 0.91}
    content = {
        "dataset": "val",
        "num_images": 5000,
        "num_analyzed": 1000,
        **summary.to_json(),
        "pictures": {"worst": {"0.jpg": "0.jpg: 2 wrong"}},
        "suspicious_labels": [{**suspect, "found": "cat", "labeled": None}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **changes}))
