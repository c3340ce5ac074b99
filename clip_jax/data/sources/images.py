"""Pictures in a folder and the folders in it, without captions: to be embedded, searched and sorted."""

import os

import xxhash

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.images.formats import is_image
from clip_jax.data.samples import Sample, SourceFormat, Split
from clip_jax.data.sources.folder_listing import files_below, left_out
from clip_jax.data.sources.image_files import read_image
from clip_jax.data.sources.list_index import cache_folder
from clip_jax.data.sources.packed_strings import PackedStrings


class ImagesSource:
    """The images below `root`, a path or a URL, in the order of their paths. They have no captions.

    Names are all that is fingerprinted: a picture that is replaced under its name is not noticed.
    """

    classes = None
    templates = None
    captioned = False

    def __init__(self, root: str, files: list[str], cfg: DataConfig):
        self.name, self._root = f"images:{root}", root
        self._files, digest = PackedStrings(), xxhash.xxh3_64()
        for path in filter(is_image, files):
            self._files.append(path)
            digest.update(f"{path}\n".encode("utf-8", "surrogateescape"))
        if not len(self._files):
            raise ValueError(f"{root} has no images in it")
        self._files.share(cache_folder(cfg.data_dir))
        self.fingerprint = digest.hexdigest()
        self.notes = tuple(filter(None, [left_out(files, root)]))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        key = self._files[index]
        shard = os.path.dirname(key) or os.path.basename(self._root)
        path = f"{self._root}/{key}"
        image = read_image(path, key=key, shard=shard)
        return Sample(image=image, captions=(), key=key, shard=shard, path=path)


def open_source(location: str, split: Split, cfg: DataConfig) -> ImagesSource:
    """All images below the folder `location`."""
    path = location if storage.is_url(location) else os.path.expanduser(location)
    path = path.rstrip("/") or "/"
    if not storage.is_folder(path):
        kind = "is no folder" if storage.is_file(path) else "is not there"
        raise FileNotFoundError(f"{path} {kind} (data.source 'images:{location}')")
    return ImagesSource(path, files_below(path, without=cfg.data_dir), cfg)


FORMAT = SourceFormat(open_source, has_captions=False)
