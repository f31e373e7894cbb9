from tests.pvqae.training.conftest import one_thread  # noqa: F401 - fixtures
