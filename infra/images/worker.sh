#!/bin/sh
# A clone of the project at one commit on the worker's own volume, DVC's remote, then the worker: one training at a time.
set -eu
: "${PVQAE_REPOSITORY:?address of the git repository}" "${PVQAE_COMMIT:?commit that every worker runs}"
: "${PVQAE_POOL:?name of the work pool}" "${PVQAE_DVC_REMOTE:?address of the DVC remote, s3://bucket}"
mkdir -p "$HOME"
if [ ! -d /srv/pvqae/project/.git ]; then
  rm -rf /srv/pvqae/project.part
  git clone --quiet --no-checkout "$PVQAE_REPOSITORY" /srv/pvqae/project.part
  mv /srv/pvqae/project.part /srv/pvqae/project
fi
cd /srv/pvqae/project
git cat-file -e "$PVQAE_COMMIT^{commit}" 2>/dev/null || git fetch --quiet origin
git checkout --quiet --force --detach "$PVQAE_COMMIT"
# Keys come from the environment; only addresses are written.
dvc remote add --local --default --force shared "$PVQAE_DVC_REMOTE"
if [ -n "${AWS_ENDPOINT_URL_S3:-}" ]; then
  dvc remote modify --local shared endpointurl "$AWS_ENDPOINT_URL_S3"
fi
# Flow runs inherit where the project is, and say every 30 s that they live (`flows/machines/worker.py`).
export PYTHONPATH=/srv/pvqae/project PVQAE_ROOT=/srv/pvqae/project PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30
exec prefect worker start --pool "$PVQAE_POOL" --type process --limit 1 --with-healthcheck --no-create-pool-if-not-found
