"""Where the quickstart keeps what."""

import json
from dataclasses import dataclass
from pathlib import Path

from updetr_d2.cli.compare_page import PAGE
from updetr_d2.comparison.study import RESULTS

PRETRAIN_CONFIG = "quickstart/coins_pretrain.yaml"


@dataclass(frozen=True)
class Places:
    """Files and folders of a quickstart.

    Attributes:
        output: its output folder.
    """

    output: Path

    @property
    def cnn(self) -> Path:
        """The CNN's ImageNet weights."""
        return self.output / "efficientnet_lite0.pth"

    @property
    def boxes(self) -> Path:
        """Of what looks like an object in the pictures without labels."""
        return self.output / "boxes.npz"

    @property
    def comparison(self) -> Path:
        """OUTPUT of ``updetr compare``."""
        return self.output / "compare"

    @property
    def results(self) -> Path:
        """Of the comparison."""
        return self.comparison / RESULTS

    @property
    def page(self) -> Path:
        """Of the comparison."""
        return self.comparison / PAGE

    @property
    def pretraining(self) -> Path:
        """Run that has pre-trained."""
        return self.comparison / "pretraining" / Path(PRETRAIN_CONFIG).stem

    @property
    def pictures(self) -> Path:
        """What the models find."""
        return self.output / "pictures"

    def family(self, name: str) -> Path:
        """Folder of the pictures "unlabeled", "train" or "test"."""
        return self.output / "data" / name

    def labels(self, name: str) -> str:
        """``JSON@FOLDER`` of the pictures "train" or "test"."""
        return f"{self.family(name)}/instances.json@{self.family(name)}/images"

    def detectors(self) -> dict[str, Path]:
        """Title of each detector and start -> its first run with all labels."""
        content = json.loads(self.results.read_text())
        most = max(run["percent"] for run in content["runs"])
        runs = {
            run["contestant"]: run["folder"] for run in reversed(content["runs"]) if run["percent"] == most
        }
        return {each["title"]: self.comparison / runs[each["name"]] for each in content["contestants"]}
