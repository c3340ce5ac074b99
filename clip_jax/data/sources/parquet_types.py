"""Types of Parquet columns: what is text, what is the same in all files, and hashes of images."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from clip_jax.data.sources.columns import CaptionColumns


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings, however they are stored."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    views = pa.types.is_string_view(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or views


def check_same(paths: Sequence[str], schemas: Sequence[pa.Schema], wanted: Sequence[str]):
    """Refuse files of which one lacks a column of the first, or has it with another type."""
    first = schemas[0]
    for path, schema in zip(paths, schemas):
        for name in wanted:
            if name not in schema.names:
                raise ValueError(
                    f"{path} has no column {name!r}, which {paths[0]} has; its columns are "
                    f"{', '.join(schema.names)}. Files of one source need the same columns"
                )
            if schema.names.count(name) > 1:
                raise ValueError(
                    f"{path} has {schema.names.count(name)} columns {name!r}; rename all but one"
                )
            found, expected = schema.field(name).type, first.field(name).type
            if _kind(found) != _kind(expected):
                raise ValueError(
                    f"{path}: the column {name!r} holds {found}, and in {paths[0]} {expected}"
                )


def _kind(kind: pa.DataType) -> str:
    """A type by what may stand in it; a column without a value has none of its own."""
    if is_text(kind) or pa.types.is_null(kind):
        return "text"
    if _is_list(kind):
        return f"list of {_kind(kind.value_type)}"
    if pa.types.is_struct(kind):
        return str({field.name: _kind(field.type) for field in kind})
    return "bytes" if _is_bytes(kind) else "integers" if pa.types.is_integer(kind) else str(kind)


def _is_list(kind: pa.DataType) -> bool:
    fixed = pa.types.is_fixed_size_list(kind) or pa.types.is_list_view(kind)
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or fixed


def _is_bytes(kind: pa.DataType) -> bool:
    fixed = pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or fixed


def check_captions(schema: pa.Schema, captions: CaptionColumns, *, where: str):
    """Refuse a caption column that is no text, naming it, its type and, of an object, its fields."""
    for name, top in zip(captions.names, captions.tops(schema.names)):
        path = [] if name == top else name.split(".")[1:]
        kind = _inside(schema.field(top).type, path)
        if kind is None:
            raise ValueError(
                f"{where}: the caption column {name!r} is not there; {top!r} holds "
                f"{schema.field(top).type} (data.caption_column)"
            )
        if is_text(kind) or _is_bytes(kind) or pa.types.is_null(kind):
            continue
        numbers = (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        )
        fields = [field.name for field in kind] if pa.types.is_struct(kind) else []
        such = f", such as {name}.{fields[0]}" if fields else ""
        raise ValueError(
            f"{where}: the caption column {name!r} holds {'numbers ' if numbers else ''}({kind}), not "
            f"text; name the right one with data.caption_column{such}"
        )


def check_image(schema: pa.Schema, image: str, *, where: str):
    """Refuse an image column that holds neither encoded files nor paths, such as pixels."""
    kind = schema.field(image).type
    inside = [kind]
    if pa.types.is_struct(kind):
        inside = [field.type for field in kind if field.name in ("bytes", "path")]
    if not inside or not all(
        is_text(one) or _is_bytes(one) or pa.types.is_null(one) for one in inside
    ):
        raise ValueError(
            f"{where}: the image column {image!r} holds {kind}, neither encoded files (bytes) nor "
            "paths; name the right one with data.image_column"
        )


def _inside(kind: pa.DataType, path: Sequence[str]) -> pa.DataType | None:
    """The type of a field of objects, or of lists of them; without a path, of what lists hold."""
    if _is_list(kind):
        return _inside(kind.value_type, path)
    if not path:
        return kind
    if not pa.types.is_struct(kind) or kind.get_field_index(path[0]) < 0:
        return None
    return _inside(kind.field(path[0]).type, path[1:])


def image_hashes(
    table: pa.Table | pa.RecordBatch,
    image: str,
    captions: CaptionColumns,
    labels: pa.ChunkedArray | pa.Array | None,
) -> np.ndarray:
    """A hash of the image of each row and its label; 0 of one without an image or a caption."""
    column = table[image]
    if pa.types.is_struct(column.type):
        has = [name for name in ("bytes", "path") if column.type.get_field_index(name) >= 0]
        parts = [pc.struct_field(column, name).cast(pa.large_binary()) for name in has]
        column = pc.coalesce(*parts)
    missing_N = np.asarray(pc.is_null(column))
    first = table[captions.tops(table.column_names)[0]]
    if is_text(first.type):
        text = pc.utf8_trim_whitespace(first.cast(pa.large_string()))
        missing_N |= np.asarray(pc.fill_null(pc.equal(text, ""), True))
    else:
        missing_N |= np.asarray(pc.is_null(first))
    digest = xxhash.xxh3_64_intdigest
    values = column.cast(pa.large_binary()).to_pylist()
    rows = zip(values, missing_N.tolist())
    if labels is not None:
        tails = [b"\n%s" % str(label).encode() for label in labels.to_pylist()]
        rows = ((value and value + tail, gone) for (value, gone), tail in zip(rows, tails))
    return np.array(
        [0 if gone or not value else digest(value) or 1 for value, gone in rows], np.uint64
    )
