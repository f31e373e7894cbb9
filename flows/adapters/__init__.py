"""The only importers of MLflow, DVC, boto3 and Prefect's client, and their twins for tests."""
