"""When, where and whether: Prefect flows around the stages of dvc.yaml, and the adapters to outside tools."""
