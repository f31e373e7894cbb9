"""MLflow's database and files as a whole, copied with every number and time as it is.

Versions, runs and the promotion log name each other by numbers that MLflow gives; a copy through its API would give
others. So tables are copied row by row, and addresses of files are made those of the new place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.adapters.tracking import COLUMNS
from pvqae.core.errors import PvqaeError

if TYPE_CHECKING:
    from sqlalchemy import Column, Connection, MetaData, Table

SERVED = "mlflow-artifacts:/"  # what a server that keeps the files itself calls their root
_ROWS = 1000  # of one insertion
# What one may find in a database that nobody has used: MLflow's own rows.
_USED = ("registered_models", "runs", "logged_models")


class StoreError(PvqaeError):
    """A tracking database can't be copied; the text says which, why, and what repairs it."""


@dataclass(frozen=True)
class Store:
    """A tracking database and where its files are: SQLAlchemy's address, and the root in its addresses of files."""

    database: str
    files: str

    @contextmanager
    def _open(self) -> Iterator[tuple["Connection", "MetaData"]]:
        """Open a transaction, and read which tables there are. Raises `StoreError`."""
        import sqlalchemy
        from sqlalchemy.exc import SQLAlchemyError

        engine = sqlalchemy.create_engine(self.database)
        try:
            with engine.begin() as connection:
                tables = sqlalchemy.MetaData()
                tables.reflect(connection)
                yield connection, tables
        except SQLAlchemyError as error:
            raise StoreError(f"{_shown(self.database)}: {error.args[0] if error.args else error}") from None
        finally:
            engine.dispose()

    def used(self) -> list[str]:
        """Return which of models, runs and logged models the database has."""
        with self._open() as (connection, tables):
            return [name for name in _USED if _count(connection, tables.tables[name])]

    def copy_to(self, target: "Store") -> int:
        """Copy every row into `target`, whose tables are there and unused; return how many.

        Addresses of files below `self.files` become those below `target.files`. Raises `StoreError` where the target is
        used, or of another version of MLflow: then nothing is changed.
        """
        with self._open() as (source, old), target._open() as (connection, new):
            versions = [_version(*one) for one in ((source, old), (connection, new))]
            if versions[0] != versions[1]:
                found = " and ".join(_shown(one.database) for one in (self, target))
                raise StoreError(
                    f"{found}: expected databases of one version of MLflow, found {versions[0]} and {versions[1]}; "
                    "a start of the services, and any flow, bring an older one up to date"
                )
            if there := [name for name in _USED if _count(connection, new.tables[name])]:
                raise StoreError(
                    f"{_shown(target.database)}: expected a registry that nobody has used, found {', '.join(there)}; "
                    "nothing was changed"
                )
            ordered = [table for table in new.sorted_tables if table.name in old.tables]
            for table in reversed(ordered):
                connection.execute(table.delete())
            rows = sum(_copy(source, old.tables[one.name], connection, one) for one in ordered)
            _readdress(connection, new, self.files, target.files)
            if connection.dialect.name == "postgresql":
                _go_on_counting(connection, ordered)
        return rows


def _shown(address: str) -> str:
    import sqlalchemy

    return sqlalchemy.make_url(address).render_as_string(hide_password=True)


def _count(connection: "Connection", table: "Table") -> int:
    import sqlalchemy

    return int(connection.execute(sqlalchemy.select(sqlalchemy.func.count()).select_from(table)).scalar_one())


def _version(connection: "Connection", tables: "MetaData") -> str:
    import sqlalchemy

    return str(connection.execute(sqlalchemy.select(tables.tables["alembic_version"])).scalar_one())


def _copy(source: "Connection", old: "Table", target: "Connection", new: "Table") -> int:
    """Copy a table by the names of its columns; return the number of rows."""
    import sqlalchemy

    names, count = [column.name for column in new.columns if column.name in old.columns], 0
    # By the new table's types: SQLite itself has no booleans.
    columns = [sqlalchemy.type_coerce(old.columns[name], new.columns[name].type).label(name) for name in names]
    for block in source.execute(sqlalchemy.select(*columns)).mappings().partitions(_ROWS):
        target.execute(new.insert(), [dict(row) for row in block])
        count += len(block)
    return count


def _readdress(connection: "Connection", tables: "MetaData", old: str, new: str) -> None:
    for name, column in COLUMNS:
        table = tables.tables[name]
        place: Any = table.columns[column]
        found = connection.execute(table.select().with_only_columns(place).distinct()).scalars()
        for address in [one for one in found if one and one.startswith(old)]:
            changed = new + address.removeprefix(old)
            connection.execute(table.update().where(place == address).values({column: changed}))


def _go_on_counting(connection: "Connection", tables: list["Table"]) -> None:
    """Make PostgreSQL's counters go on after the numbers that were copied."""
    import sqlalchemy

    counted = [(table, column) for table in tables for column in table.primary_key if _counts(column)]
    for table, column in counted:
        highest = sqlalchemy.select(sqlalchemy.func.max(column)).select_from(table)
        if (last := connection.execute(highest).scalar_one()) is not None:
            sequence = sqlalchemy.func.pg_get_serial_sequence(table.name, column.name)
            connection.execute(sqlalchemy.select(sqlalchemy.func.setval(sequence, last)))


def _counts(column: "Column[Any]") -> bool:
    """Tell whether PostgreSQL gives the column's numbers."""
    return bool(column.identity) or "nextval(" in str(getattr(column.server_default, "arg", ""))
