"""The exceptions of this project: each says what was expected, what was found and what repairs it."""


class PvqaeError(Exception):
    """Base of all errors that a user can repair; the command line prints it without a traceback."""


class ConfigError(PvqaeError):
    """params.yaml or a command-line override is not what the models in `pvqae.config` describe."""


class DataError(PvqaeError):
    """A dataset, a manifest or an image is not usable as it is."""


class ValidationFailed(DataError):  # noqa: N818 - it names an outcome, not a fault of the code
    """A data expectation failed; nothing was trained."""


class IntegrityError(PvqaeError):
    """A file does not have the hash that was recorded for it, or lacks one."""


class CalibrationError(PvqaeError):
    """Too few normals, or not the right ones, to set a threshold."""


class ParityError(PvqaeError):
    """An exported detector does not give the scores of its bundle; nothing was written."""
