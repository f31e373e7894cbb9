from tests.pvqae.training.conftest import examples, one_thread, params, textures  # noqa: F401 - fixtures
