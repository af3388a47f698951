"""Sort a dataset of any size by event time: sorted runs on disk, then one merge.

reads   file  the reviews of a dataset
writes  file  <home>/prepared/<fingerprint>/run-*.arrow, prepared.json

Memory: 460 MB at peak for the 7.8 million rows of an official ratings file (measured), little more
for larger files. A run has a million rows (or 512 MB with review texts; sorting holds it twice),
and the merge holds one batch of 65,536 rows per run. Disk: 22 bytes per row without texts. The sort
is stable and deterministic: replay progress is stored as a row number of this order.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from afterclick.errors import BadDataset
from afterclick.io.files import staged_folder
from ingest.datasets import Dataset
from ingest.reading import read_interactions
from ingest.rows import SCHEMA, BadLine, ReadReport

FORMAT = 1
RUN_ROWS = 1_000_000
RUN_BYTES = 512 << 20
BATCH_ROWS = 65_536
_MANIFEST = "prepared.json"


class SortManifest(BaseModel):
    """Row counts, time range and bad lines of a sorted dataset."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    name: str
    fingerprint: str
    runs: int
    rows: int
    good: int
    bad: int
    samples: list[BadLine]
    first_ms: int
    last_ms: int


@dataclass(frozen=True)
class SortedDataset:
    """A sorted dataset and the folder that holds its runs."""

    folder: Path
    manifest: SortManifest

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in event-time order, in batches of at most 65,536."""
        runs = [_Run(self.folder / f"run-{n:04}.arrow") for n in range(self.manifest.runs)]
        for table in _merge([run for run in runs if run.load()]):
            yield from table.to_batches(max_chunksize=BATCH_ROWS)


def sort_by_time(dataset: Dataset, home: Path, run_rows: int = RUN_ROWS) -> SortedDataset:
    """Sort the dataset by event time once; the result is kept under `home/prepared`.

    Raises BadDataset if the file cannot be read to its end or has no valid row.
    """
    fingerprint = dataset.fingerprint()
    folder = home / "prepared" / fingerprint
    manifest = _read_manifest(folder)
    if manifest is None:
        shutil.rmtree(folder, ignore_errors=True)  # incomplete or of an older format
        try:
            with staged_folder(folder) as staging:
                manifest = _write_runs(dataset, fingerprint, staging, run_rows)
                (staging / _MANIFEST).write_text(manifest.model_dump_json(indent=1))
        except FileExistsError:  # another process finished first
            manifest = _read_manifest(folder)
            if manifest is None:
                raise
    return SortedDataset(folder, manifest)


def _read_manifest(folder: Path) -> SortManifest | None:
    try:
        manifest = SortManifest.model_validate_json((folder / _MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None
    return manifest if manifest.format == FORMAT else None


def _write_runs(dataset: Dataset, fingerprint: str, folder: Path, run_rows: int) -> SortManifest:
    report = ReadReport()
    runs, first, last = 0, 2**63 - 1, 0
    for table in _tables(
        read_interactions(dataset.reviews, report, dataset.reviews_format), run_rows
    ):
        ordered = _sorted(table)
        first = min(first, ordered["time_ms"][0].as_py())
        last = max(last, ordered["time_ms"][-1].as_py())
        write_run(ordered, folder / f"run-{runs:04}.arrow")
        runs += 1
    if not runs:
        first_bad = (
            f"; line {report.samples[0].line}: {report.samples[0].why}" if report.bad else ""
        )
        raise BadDataset(f"{dataset.reviews}: no good line among {report.rows}{first_bad}")
    return SortManifest(
        name=dataset.name,
        fingerprint=fingerprint,
        runs=runs,
        rows=report.rows,
        good=report.good,
        bad=report.bad,
        samples=report.samples,
        first_ms=first,
        last_ms=last,
    )


def _tables(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(b.num_rows for b in pending) >= rows or sum(b.nbytes for b in pending) >= RUN_BYTES:
            yield pa.Table.from_batches(pending, SCHEMA)
            pending = []
    if pending:
        yield pa.Table.from_batches(pending, SCHEMA)


def _sorted(table: pa.Table) -> pa.Table:
    times = table["time_ms"].to_numpy()
    if np.all(times[:-1] <= times[1:]):
        return table
    return table.take(pa.array(np.argsort(times, kind="stable")))


def write_run(table: pa.Table, path: Path) -> None:
    """Write sorted rows as one run."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA, options=options) as writer,
    ):
        writer.write_table(table, max_chunksize=BATCH_ROWS)


class _Run:
    """A sorted run of which a few batches are buffered."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.OSFile(str(path)))
        self._next = 0
        self.buffered: pa.Table = SCHEMA.empty_table()

    def load(self) -> bool:
        """Buffer the next batch; False at the end of the run."""
        if self._next >= self._reader.num_record_batches:
            return False
        batch = self._reader.get_batch(self._next)
        self._next += 1
        self.buffered = pa.concat_tables([self.buffered, pa.Table.from_batches([batch])])
        return True

    @property
    def last(self) -> int:
        """Time of the last buffered row."""
        return int(self.buffered["time_ms"][-1].as_py())

    def take(self, until: int) -> pa.Table:
        """Remove and return the rows up to and including a time."""
        count = pc.sum(pc.less_equal(self.buffered["time_ms"], until)).as_py() or 0
        taken, self.buffered = self.buffered.slice(0, count), self.buffered.slice(count)
        return taken


def _merge(runs: list[_Run]) -> Iterator[pa.Table]:
    """Merge sorted runs; rows of equal time keep the order of the runs, which is file order."""
    while runs:
        until = min(run.last for run in runs)
        for run in runs:  # the next batch may start with rows of the same time
            while run.last == until and run.load():
                pass
        yield _sorted(pa.concat_tables([run.take(until) for run in runs]).combine_chunks())
        runs = [run for run in runs if run.buffered.num_rows or run.load()]
