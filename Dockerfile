# updetr_d2 for CPUs and GPUs in one image: the pinned PyTorch is the CUDA build, which runs on CPUs as well.
#
# This file has not been built yet: it was written without a Docker engine at hand. It runs `make setup` on a plain Python.
#
#   docker build -t updetr_d2 .
#   docker run --rm -it -v "$PWD/data:/data" updetr_d2 train --config-file custom/few_label_lite0.yaml ... OUTPUT_DIR /data/run
#   docker run --rm -it --gpus all --shm-size 8g -v "$PWD/data:/data" updetr_d2 train ... MODEL.DEVICE cuda
#
# GPUs need the NVIDIA Container Toolkit and a driver for the CUDA version of requirements-lock.txt. --shm-size is for the
# processes that load images.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# make runs the set-up; a compiler is for MODEL.COMPILE and for packages without a wheel.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make g++ git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/updetr_d2
COPY . .
RUN make setup && rm -rf ~/.cache
ENV PATH="/opt/updetr_d2/.venv/bin:${PATH}" \
    UPDETR_D2_CACHE=/data/.cache/updetr_d2
WORKDIR /data
ENTRYPOINT ["updetr"]
CMD ["--help"]
