# zoogen for CPUs and GPUs: torch's wheels bring CUDA, so the same image uses GPUs where the host has the NVIDIA runtime.
#
#   docker build -t zoogen .
#   docker run --rm --shm-size 1g -v "$PWD:/work" zoogen build blueprint.yaml --out my-zoo
#   docker run --rm --shm-size 1g --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" -v /my/data:/data zoogen build ...
#
ARG BASE=python:3.12-slim
FROM ${BASE}

# The population trainer compiles small C programs on first use, up to 20 times faster than without (docs/population.md).
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv
RUN uv venv --python python3 /opt/zoogen/venv

# The dependencies first, in a layer of their own: it is rebuilt only when they change.
COPY pyproject.toml constraints.txt README.md /opt/zoogen/source/
RUN uv pip install --no-cache --compile-bytecode --python /opt/zoogen/venv/bin/python --constraint /opt/zoogen/source/constraints.txt \
    --requirement /opt/zoogen/source/pyproject.toml
COPY zoogen /opt/zoogen/source/zoogen
RUN uv pip install --no-cache --python /opt/zoogen/venv/bin/python --no-deps /opt/zoogen/source
COPY blueprints /opt/zoogen/blueprints
RUN /opt/zoogen/venv/bin/zoogen --version

# Whoever runs it (--user), their home and the mounted folders can be written.
RUN useradd --create-home zoogen && mkdir -p /work /data && chmod 1777 /work /data /home/zoogen
ENV HOME=/home/zoogen USER=zoogen PATH=/opt/zoogen/venv/bin:$PATH ZOOGEN_DATA=/data
USER zoogen
WORKDIR /work
ENTRYPOINT ["zoogen"]
CMD ["--help"]
