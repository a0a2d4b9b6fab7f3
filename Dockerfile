# Workers hand on images through /dev/shm: run with --shm-size=8g (Docker gives 64 MB).
# Distillery in a container: docker build --tag distillery . && docker run --gpus all --rm distillery distillery --help
#
# The wheels of the lock bring the CUDA libraries that they were built with. The base brings what a container needs to
# see the machine's GPUs; the machine itself needs a driver for CUDA 13.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

SHELL ["/bin/bash", "-o", "errexit", "-o", "pipefail", "-c"]

# Versions of the distribution's packages are the base image's matter.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/distillery/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1

# First what changes seldom: exactly what the lock names, and nothing whose hash is another.
COPY requirements.txt /tmp/build/
RUN python3 -m venv /opt/distillery \
    && pip install --no-cache-dir --disable-pip-version-check --require-hashes --requirement /tmp/build/requirements.txt

COPY README.md pyproject.toml /tmp/build/
COPY src /tmp/build/src
COPY config /tmp/build/config
COPY workflow /tmp/build/workflow
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation /tmp/build \
    && rm -rf /tmp/build

# Whoever runs it: files that it writes belong to no root.
RUN useradd --create-home --uid 10001 distillery
USER 10001
WORKDIR /work
CMD ["distillery", "--help"]
