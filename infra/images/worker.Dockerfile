# A worker that trains on one GPU. Build from the project's root:
#   docker build -f infra/images/worker.Dockerfile -t pvqae-worker:0.1.0 .
# torch's wheel carries its own CUDA libraries; the base image tells the container runtime which driver they need.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv git \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY constraints.txt pyproject.toml README.md ./
COPY pvqae ./pvqae
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt uv \
 && UV_COMPILE_BYTECODE=1 /opt/venv/bin/uv pip install --no-cache --python /opt/venv/bin/python -c constraints.txt \
    '.[flows,validation]' \
 && /opt/venv/bin/uv pip uninstall --python /opt/venv/bin/python pvqae
# pvqae itself is uninstalled again: the code that runs is the clone at the commit that a version's lineage names.

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 git ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin pvqae \
 && install -d -o 10001 -g 10001 /srv/pvqae \
 # compose.yaml shows the machine's own repository here, which belongs to another user.
 && git config --system --add safe.directory /repository
COPY --from=build /opt/venv /opt/venv
COPY --chmod=0555 infra/images/with-secrets.sh /usr/local/bin/with-secrets
COPY --chmod=0555 infra/images/worker.sh /usr/local/bin/worker
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/srv/pvqae/home \
    PREFECT_HOME=/srv/pvqae/home/prefect \
    DO_NOT_TRACK=true \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    DVC_NO_ANALYTICS=1 \
    GX_ANALYTICS_ENABLED=false \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /srv/pvqae
USER 10001:10001
ENTRYPOINT ["with-secrets", "worker"]
