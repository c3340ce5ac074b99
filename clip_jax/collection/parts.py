"""The files of one part: vectors as .npy, metadata as Parquet."""

import io
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.collection.dataset import Row
from clip_jax.collection.layout import Layout, Part
from clip_jax.data.samples import BadSample

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
SCHEMA = pa.schema(
    [
        ("image_path", pa.string()),
        ("caption", pa.string()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("sample", pa.int64()),
        ("label", pa.int32()),
        ("captions", pa.int32()),
    ]
)
assert tuple(SCHEMA.names) == Row._fields[: len(SCHEMA)]


class PartWriter:
    """Gathers the rows of one part and writes its files."""

    def __init__(self, layout: Layout, part: Part, kinds: Sequence[str], dtype: str, settings: str):
        self.part = part
        self._layout, self._dtype, self._settings = layout, DTYPES[dtype], settings
        self._rows: list[Row] = []
        self._bad: list[dict] = []
        self._vectors: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}

    def add(self, first: int, about_B: np.ndarray, z: dict[str, np.ndarray]):
        """Take a batch, whose first row is the sample `first`."""
        kept = [row for row, about in enumerate(about_B) if isinstance(about, Row)]
        self._rows += [about_B[row] for row in kept]
        for kind, z_BE in z.items():
            # As float16 a unit vector keeps 3 digits; the cast is the last thing done to it.
            self._vectors[kind].append(z_BE[kept].astype(self._dtype))
        for row, about in enumerate(about_B):
            if isinstance(about, BadSample):
                self._bad.append(
                    {
                        "sample": first + row,
                        "key": about.key,
                        "shard": about.shard,
                        "reason": about.reason,
                    }
                )

    def write(self) -> dict:
        """Write all files, then the record, which is returned."""
        number, files = self.part.number, {}
        for kind, parts in self._vectors.items():
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate(parts))
            name = self._layout.vectors(kind, number)
            files[name] = self._layout.write(name, buffer.getvalue())
        buffer = io.BytesIO()
        columns = zip(*self._rows) if self._rows else [()] * len(SCHEMA)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA)]
        pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), buffer)
        name = self._layout.metadata(number)
        files[name] = self._layout.write(name, buffer.getvalue())
        record = {
            "settings": self._settings,
            "samples": [self.part.first, self.part.last],
            "rows": len(self._rows),
            "files": files,
            "bad": self._bad,
        }
        self._layout.commit(self.part, record)
        return record
