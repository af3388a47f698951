"""Read the event archive: a Delta table with a row per valid event, partitioned by day of arrival.

reads  delta  <archive>  log_day=<yyyy-mm-dd>/*.parquet, _delta_log/

Each commit stores, with its rows, the offset up to which every partition is archived (Delta's
application transactions), so that rows and progress cannot disagree.

Credentials, region and endpoint of S3 come from the usual AWS variables (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, …).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from afterclick.errors import StateConflict, Unavailable
from afterclick.state import TopicPartition

STORAGE_OPTIONS = {"aws_allow_http": "true"}
"""Of object stores: an endpoint without TLS is allowed if the settings name one."""
DELETED_DAY = "deleted-day"
"""Application id whose version is the newest day that retention has deleted (days since 1970)."""


class MissingArchive(StateConflict):
    """Nothing was archived yet."""


@contextmanager
def archive_errors(uri: str) -> Iterator[None]:
    """Raise MissingArchive if there is no archive, Unavailable if its storage or a commit fails."""
    try:
        yield
    except TableNotFoundError:
        raise MissingArchive(
            f"there is no event archive in {uri}: start `afterclick stream`, then ingest events"
        ) from None
    except (DeltaError, OSError) as error:
        raise Unavailable(f"the event archive in {uri}: {str(error).splitlines()[0]}") from None


def sql_text(text: str) -> str:
    """A text as a literal of a predicate."""
    return "'" + text.replace("'", "''") + "'"


def _without_views(schema: pa.Schema) -> pa.Schema:
    """Plain strings instead of string views, for which pyarrow lacks most functions."""
    plain = {pa.string_view(): pa.string()}
    return pa.schema([field.with_type(plain.get(field.type, field.type)) for field in schema])


@dataclass(frozen=True)
class EventArchive:
    """The archive as of a commit."""

    uri: str
    table: DeltaTable

    @classmethod
    def open(cls, uri: str) -> Self:
        """The newest commit.

        Raises MissingArchive, StateConflict if an earlier version wrote it, and Unavailable.
        """
        if (Path(uri) / "_spark_metadata").exists():
            raise StateConflict(
                f"an earlier version wrote the log in {uri}: stop the stream and move the folder "
                "away; the next stream archives what the topics still hold"
            )
        with archive_errors(uri):
            return cls(uri, DeltaTable(uri, storage_options=STORAGE_OPTIONS))

    @property
    def id(self) -> str:
        """Unique per table, also if it is created anew at the same place."""
        return str(self.table.metadata().id)

    @property
    def deleted_day(self) -> int:
        """The newest day that retention has deleted, in days since 1970; -1: none."""
        version = self.table.transaction_version(DELETED_DAY)
        return -1 if version is None else version

    def refresh(self) -> None:
        """Go on to the newest commit. Raises Unavailable."""
        with archive_errors(self.uri):
            self.table.update_incremental()

    def offset(self, partition: TopicPartition) -> int:
        """Offset of the last archived record of a partition; -1: none."""
        version = self.table.transaction_version(str(partition))
        return -1 if version is None else version

    def offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The same for several partitions."""
        return {partition: self.offset(partition) for partition in partitions}

    @property
    def columns(self) -> list[str]:
        return [str(column.name) for column in self.table.schema().fields]

    def scan(
        self, predicate: str | None = None, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows that match a predicate (SQL; names of columns in quotes), in no order.

        Raises Unavailable.
        """
        with archive_errors(self.uri):
            for batch in pa.RecordBatchReader.from_stream(self.table.scan(columns, predicate)):
                yield batch.cast(_without_views(batch.schema))

    def read(self, predicate: str | None = None, columns: list[str] | None = None) -> pa.Table:
        """The same rows as one table."""
        names = columns or self.columns
        known = pa.schema(self.table.schema().to_arrow())
        schema = _without_views(pa.schema([known.field(name) for name in names]))
        return pa.Table.from_batches(self.scan(predicate, names), schema)

    def files(self) -> list[str]:
        """Paths or URIs of the Parquet files."""
        return self.table.file_uris()
