# Prefect's and MLflow's servers. Build from the project's root:
#   docker build -f infra/images/server.Dockerfile -t pvqae-server:0.1.0 .
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /build
COPY constraints.txt .
# The constraints are the versions that work together; fastapi and sqlalchemy are named because Prefect's server does not
# run with the newest. No torch here: a server trains nothing.
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt uv \
 && UV_COMPILE_BYTECODE=1 /opt/venv/bin/uv pip install --no-cache --python /opt/venv/bin/python -c constraints.txt \
    prefect mlflow boto3 psycopg2-binary asyncpg fastapi sqlalchemy

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin pvqae
COPY --from=build /opt/venv /opt/venv
COPY --chmod=0555 infra/images/with-secrets.sh /usr/local/bin/with-secrets
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PREFECT_HOME=/tmp/prefect \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=true \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    PYTHONUNBUFFERED=1
USER 10001:10001
ENTRYPOINT ["with-secrets"]
