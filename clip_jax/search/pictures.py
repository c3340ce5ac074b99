"""Small pictures of a collection's rows, read again from the source that it was embedded from."""

import functools
import io
import threading

from PIL import Image

from clip_jax.collection.origin import reopen
from clip_jax.data.images.transforms import ImageError, decode
from clip_jax.data.samples import BadSample
from clip_jax.search.index import SearchIndex

SIZES = (320, 1280)  # pixels of the longer side
MAX_PIXELS = 50_000_000
AT_ONCE = 2  # pictures that are decoded, of 150 MB at most each
KEPT = 1024  # small pictures, of some 20 kB each


class NoPicture(LookupError):
    """There is no picture of a row; the message says why."""


class Pictures:
    """JPEGs of rows. Only the index's own rows can be asked for, by number: no path comes from outside.

    What is sent was decoded and encoded here, so that nothing but pixels leaves the machine.
    """

    def __init__(self, index: SearchIndex):
        self._index, self._source = index, reopen(index.embeddings)
        self._decoding = threading.BoundedSemaphore(AT_ONCE)
        self._small = functools.lru_cache(KEPT)(self._read)

    @property
    def available(self) -> bool:
        return self._source is not None

    def jpeg(self, row: int, size: int) -> bytes:
        """The picture of a row, at most `size` pixels on the longer side, one of SIZES.

        Raises:
          NoPicture: there is no such row or picture, or it cannot be read.
        """
        if self._source is None:
            raise NoPicture("the source of the embeddings is not known or not there")
        if not 0 <= row < len(self._index):
            raise NoPicture(f"there is no row {row}")
        if size not in SIZES:
            raise NoPicture(f"a picture has a size of {' or '.join(map(str, SIZES))}")
        return self._small(row, size) if size == SIZES[0] else self._read(row, size)

    def _read(self, row: int, size: int) -> bytes:
        sample = int(self._index.rows([row])[0]["sample"])
        try:
            data = self._source[sample].image
            with self._decoding:
                image = Image.fromarray(decode(data, max_pixels=MAX_PIXELS))
                image.thumbnail((size, size))
        except (BadSample, ImageError, OSError, IndexError) as error:
            raise NoPicture(f"the picture of row {row} cannot be read: {error}") from error
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()
