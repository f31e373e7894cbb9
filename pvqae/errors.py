"""Name the errors where versions registered by 0.1 import them from: `pvqae.core.errors` is their place."""

from pvqae.core.errors import DataError, IntegrityError, PvqaeError

__all__ = ["DataError", "IntegrityError", "PvqaeError"]
