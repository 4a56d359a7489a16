"""Packaging of updetr_d2. Detectron2 is a prerequisite: it is in no package index under that name."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="updetr_d2",
    version="0.1.0",
    description="UP-DETR as a Detectron2 plugin: pre-train a detection transformer on images without labels",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["updetr_d2", "updetr_d2.*"]),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "numpy>=1.26",
        "fvcore",
        "scipy",
        "pycocotools",
        "opencv-python-headless>=4.12",
    ],
    extras_require={
        "timm": ["timm"],
        "shards": ["webdataset"],
        "export": ["onnx", "onnxscript"],
        "demo": ["gradio>=6.31,<7"],
        "dev": [
            *("pytest", "pytest-xdist", "hypothesis", "psutil", "ruff", "timm", "transformers"),
            *("webdataset", "onnx", "onnxscript", "onnxruntime"),
        ],
    },
)
