"""The scheduled flow: a retraining of every dataset to which new images can come."""

from prefect import flow, get_run_logger

from flows import environment, known
from flows.retrain import retrain
from flows.retrain_policy import Trigger
from pvqae.errors import PvqaeError


@flow(name="retrain-all", persist_result=False)
def retrain_all(root: str = "", trigger: Trigger = "schedule") -> None:
    """Retrain each dataset of the project at `root` (default: the worker's) as `retrain` decides.

    One dataset's failure does not stop the others; raises `PvqaeError` that names each at the end.
    """
    log, project = get_run_logger(), environment.project_of(root)
    failed = []
    datasets = known.datasets(project)
    if not datasets:
        log.info("no dataset with a landing.url was trained here: nothing to do")
    for name in datasets:
        try:
            retrain(str(project), trigger=trigger, dataset=name)
        except Exception as error:  # also of Prefect, of MLflow's clients, of the disk
            failed.append(f"{name}: {error}")
    if failed:
        raise PvqaeError("\n".join(failed))
