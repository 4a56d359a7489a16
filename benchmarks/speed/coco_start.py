"""How long a run with a large file in COCO's format takes to start, beside Detectron2's own loader.

    python -m benchmarks.speed.coco_start --annotations 1000000 --folder /tmp/coco_start

Each way is measured in a process of its own, from the annotation file to the dataset dicts: Detectron2's
``load_coco_json``; ``coco:FILE@FOLDER`` at its first start, with checks and repair; the same at its second start.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import load_coco_json
from tabulate import tabulate

from updetr_d2.data.datasets.names import ensure_registered
from updetr_d2.utils.cache import CACHE_VARIABLE

WAYS = {"detectron2": "Detectron2", "first": "coco:, first start", "second": "coco:, second start"}
OBJECTS_PER_IMAGE = 10
NUM_CLASSES = 80


def write_data_set(folder: Path, num_annotations: int) -> None:
    """Write boxes with a polygon each, and an empty file for each image: their names alone are looked at."""
    rng = random.Random(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(1, -(-num_annotations // OBJECTS_PER_IMAGE) + 1):
        images.append({"id": i, "file_name": f"{i:08d}.jpg", "width": 640, "height": 480})
        (folder / "images" / f"{i:08d}.jpg").touch()
    for i in range(num_annotations):
        x, y, width, height = (round(rng.uniform(5, high), 2) for high in (500, 400, 130, 75))
        annotations.append(
            {
                "id": i + 1,
                "image_id": i // OBJECTS_PER_IMAGE + 1,
                "category_id": i % NUM_CLASSES + 1,
                "bbox": [x, y, width, height],
                "area": round(width * height, 2),
                "iscrowd": 0,
                "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
            }
        )
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    os.utime(folder / "annotations.json", (0, 0))  # not of the last seconds, whose files are not trusted


def measure(way: str, folder: Path) -> dict[str, float]:
    """Seconds of the clock and of the processor, and the growth of the peak memory (MB), in this process."""
    memory = _memory_mb("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    json_file, images = str(folder / "annotations.json"), str(folder / "images")
    if way == "detectron2":
        load_coco_json(json_file, images, "measured")
    else:
        name = f"coco:{json_file}@{images}"
        ensure_registered([name])
        DatasetCatalog.get(name)
    return {
        "s": time.perf_counter() - wall,
        "CPU s": time.process_time() - cpu,
        "peak memory MB": _memory_mb("VmHWM") - memory,
    }


def _memory_mb(field: str) -> float:
    """Memory of this process now (``VmRSS``) or at most (``VmHWM``); ``getrusage`` counts its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/coco_start"), help="for the data set")
    parser.add_argument("--way", choices=WAYS, help="measure this one only, on a data set that is there")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.folder)))
        return
    write_data_set(args.folder, args.annotations)
    rows = []
    for way, title in WAYS.items():
        command = [
            sys.executable,
            "-m",
            "benchmarks.speed.coco_start",
            "--way",
            way,
            "--folder",
            str(args.folder),
        ]
        environment = {**os.environ, CACHE_VARIABLE: str(args.folder / "cache")}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"way": title, **json.loads(done.stdout.splitlines()[-1])})
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f"))


if __name__ == "__main__":
    main()
