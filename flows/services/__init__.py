"""Real servers on one machine, as plain processes without Docker: PostgreSQL, S3, MLflow, Prefect and a worker.

`control.up`, `control.down`, `look.status`; `control.running` is the same as a context manager, for tests.
"""
