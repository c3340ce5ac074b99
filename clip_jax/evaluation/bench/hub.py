"""Tables as Hugging Face's hub and its `datasets` library keep them: Parquet files, or Arrow in a cache."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data.samples import BadSample, Sample
from clip_jax.evaluation.bench.tasks import Task


class Table:
    """The rows of a data set, memory-mapped; images are in its cells or are files that they name."""

    def __init__(self, files: Sequence[Path]):
        self.files = tuple(files)
        parts = []
        for path in files:
            try:
                parts.append(_read(path))
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
        self._table = pa.concat_tables(parts)
        sizes = [(path.name, path.stat().st_size) for path in files]
        self.fingerprint = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._table.num_rows

    def need(self, *columns: str):
        """Refuse a table without these columns."""
        missing = [name for name in columns if name not in self._table.column_names]
        if missing:
            raise ValueError(
                f"{self.files[0]} has no column {', '.join(missing)}; it has "
                f"{', '.join(self._table.column_names)}"
            )

    def cell(self, column: str, row: int) -> Any:
        return self._table.column(column)[row].as_py()

    def image(self, value: Any, key: str) -> bytes:
        """The file of an image: bytes, or an object with its bytes or its path."""
        data = value if isinstance(value, bytes) else (value or {}).get("bytes")
        path = None if isinstance(value, bytes) else (value or {}).get("path")
        folder = self.files[0].parent
        if data is None and path is not None and (folder / path).is_file():
            data = (folder / path).read_bytes()
        if data is None:
            raise BadSample("missing-image", key=key, shard=self.files[0].name)
        return data


def _read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path, memory_map=True)
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()


def find_table(hub: str | None, names: Sequence[str], roots: Sequence[Path]) -> Table | None:
    """The table of a data set: ROOT/NAME/**.parquet, or DataComp's ROOT/hf_cache/OWNER___NAME/**.arrow."""
    places = list(names)
    if hub is not None:
        owner, _, name = hub.partition("/")
        places += [hub, name, f"hf_cache/{owner}___{name}", f"{owner}___{name}"]
    for root in roots:
        for place in places:
            for ending in ("parquet", "arrow"):
                found = sorted((root / place).glob(f"**/*.{ending}"))
                own = [path for path in found if "test" in path.name] or found
                if own:
                    return Table(own)
    return None


class CaptionTable:
    """Images with their captions, as in the nlphuji tables of Flickr30k and COCO."""

    classes = templates = None
    lost, notes = 0, ()

    def __init__(self, table: Table, task: Task):
        table.need("image", "caption")
        self._table, self._most = table, task.captions
        self.name, self.fingerprint = str(table.files[0]), table.fingerprint

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard, key = self._table.files[0].name, f"row {index}"
        captions = self._table.cell("caption", index)
        captions = [captions] if isinstance(captions, str) else captions
        captions = [text for text in captions or () if isinstance(text, str) and text.strip()]
        if not captions:
            raise BadSample("missing-caption", key=key, shard=shard)
        image = self._table.image(self._table.cell("image", index), key)
        return Sample(image, tuple(captions[: self._most]), key, shard)


def open_table(task: Task, roots: Sequence[Path]) -> CaptionTable | None:
    """The images and captions of a retrieval task; None where there is no table of it."""
    table = find_table(task.hub, (), roots)
    return None if table is None else CaptionTable(table, task)
