"""Names of files that are made from any text: of models, classes, samples."""

import os
import re

import xxhash

MOST_BYTES = 200  # of a name; a file system takes 255, and an ending or a number may be added


def file_name(text: str, *, replaced: str = r"[/\\\0]") -> str:
    """The text as a name, with "_" for each match of `replaced`.

    Of a long text it is the end, which differs most, after a hash of the whole: two texts stay two.
    """
    name = re.sub(replaced, "_", text)
    encoded = os.fsencode(name)
    if len(encoded) <= MOST_BYTES:
        return name
    digest = xxhash.xxh3_64_hexdigest(os.fsencode(text))
    end = encoded[len(digest) + 1 - MOST_BYTES :].decode(errors="ignore")
    return f"{digest}_{end}"
