"""When, where and whether: Prefect flows around the stages of dvc.yaml, and the adapters to outside tools."""

from pvqae.core import runtime

runtime.complete_environment()  # before any library reads its settings; all that a flow starts has them, too
