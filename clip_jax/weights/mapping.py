"""A table of names ties our parameters to another library's tensors, and is read both ways."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, Protocol

import flax
import jax
import numpy as np

from clip_jax.config import ModelConfig
from clip_jax.models.clip import CLIP, init_variables
from clip_jax.models.tower import Tower, name_of

Shape = tuple[int, ...]

MAX_LOGIT_SCALE = 10  # SigLIP's are the largest that were released, at 4.8


class MisfitError(ValueError):
    """A file's tensors are not those of the architecture."""


class Link(NamedTuple):
    """One of our arrays, or a part of one, and the tensor of another library that holds it."""

    ours: str  # a path such as "params/image/post_norm/scale"
    theirs: str
    form: "str | Form" = "same"  # a key of FORMS, or one: how the numbers are laid out over there
    layer: int | None = None  # of our array's leading axis
    slot: tuple[int, int] | None = (
        None  # index and number of parts of our last axis: (0, 3) is query
    )
    rows: tuple[int, int, int] | None = None  # first, last and number of parts of their first axis


class Tensors(Protocol):
    """A file of tensors, which are read one at a time."""

    def shapes(self) -> Mapping[str, Shape]: ...
    def read(self, name: str) -> np.ndarray: ...


class Form(NamedTuple):
    """How one layout becomes the other. `shape` is always ours."""

    their_shape: Callable[[Shape], Shape]
    to_ours: Callable[[np.ndarray, Shape], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _size(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))


FORMS = {
    "same": Form(lambda s: s, lambda t, s: t, lambda o: o),
    "lead": Form(lambda s: (1, *s), lambda t, s: t[0], lambda o: o[None]),
    # torch.nn.Linear: (outputs, inputs), where we have (inputs, outputs).
    "linear": Form(lambda s: s[::-1], lambda t, s: t.T, lambda o: o.T),
    # torch.nn.Conv2d: (outputs, inputs, rows, columns).
    "conv": Form(
        lambda s: (s[3], s[2], s[0], s[1]),
        lambda t, s: t.transpose(2, 3, 1, 0),
        lambda o: o.transpose(3, 2, 0, 1),
    ),
}


def known_tower(library: str, known: Collection[str], tower: Tower) -> str:
    """The name of a tower, which must be one of those that a library has.

    Raises:
      ValueError: it is not.
    """
    name = name_of(tower)
    if name not in known:
        raise ValueError(
            f"{library} has no tower {name}, but {' and '.join(known)}: export the model to a "
            "library that has it, or as StableHLO (clip-jax export)"
        )
    return name


def abstract_variables(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of all variables of a model by their paths; nothing is computed."""
    variables = jax.eval_shape(lambda key: init_variables(CLIP(config), key), jax.random.key(0))
    return flax.traverse_util.flatten_dict(variables, sep="/")


def import_variables(
    config: ModelConfig,
    links: Iterable[Link],
    tensors: Tensors,
    *,
    ignored: Callable[[str], bool],
    source: str,
) -> dict:
    """Fill a model's variables from a file, in float32, as NumPy's arrays.

    Args:
      config: the architecture, of which `source` must be.
      links: the table.
      tensors: the file.
      ignored: says which tensors are no weights.
      source: what errors call the file.

    Raises:
      ValueError: a tensor is missing, is left over, or has another shape; the message names it.
    """
    shapes = tensors.shapes()
    wanted = abstract_variables(config)
    by_array: dict[str, list[Link]] = {path: [] for path in wanted}
    for link in links:
        by_array[link.ours].append(link)
    check_names(by_array, wanted, shapes, ignored=ignored, source=source, name=config.name)
    variables = {}
    for path, parts in by_array.items():
        array = _aligned(wanted[path].shape)
        for link in parts:
            view = _part_of_ours(array, link)
            tensor = tensors.read(link.theirs)
            if tensor.size == 1:  # one number is one number, of whatever rank
                tensor = tensor.reshape(_whole_shape(link, wanted[path].shape))
            tensor = _part_of_theirs(tensor, link)
            view[...] = _form(link).to_ours(tensor, view.shape)
        variables[path] = array
    check_scale(variables, source)
    return flax.traverse_util.unflatten_dict(variables, sep="/")


def check_scale(variables: Mapping[str, np.ndarray], source: str):
    """Refuse a temperature that no training reaches.

    Raises:
      ValueError: the scale is no natural logarithm of one; the message says what it would mean.
    """
    scale = float(variables["params/logit_scale"])
    if abs(scale) > MAX_LOGIT_SCALE:
        raise ValueError(
            f"{source}: logit_scale is {scale:g}; the natural logarithm of the temperature's inverse "
            f"is stored there, such as 4.6 for 100, and none beyond {MAX_LOGIT_SCALE} is plausible"
        )


def _aligned(shape: Shape) -> np.ndarray:
    """An empty array that starts where JAX's own on the CPU do, so that it is not copied there."""
    bytes_N = np.empty(4 * _size(shape) + 64, np.uint8)
    start = -bytes_N.ctypes.data % 64
    return bytes_N[start : start + 4 * _size(shape)].view(np.float32).reshape(shape)


def check_names(
    by_array: Mapping[str, list[Link]],
    wanted: Mapping[str, jax.ShapeDtypeStruct],
    shapes: Mapping[str, Shape],
    *,
    ignored: Callable[[str], bool],
    source: str,
    name: str,
):
    """Compare names and shapes of a file with those that an architecture needs."""
    used = set()
    for path, parts in by_array.items():
        assert parts, f"the table has no tensor for {path}"
        for link in parts:
            used.add(link.theirs)
            if link.theirs not in shapes:
                raise MisfitError(f'{source} has no tensor "{link.theirs}", which {name} needs')
            expected = _whole_shape(link, wanted[path].shape)
            found = tuple(shapes[link.theirs])
            if found != expected and not _size(found) == _size(expected) == 1:
                raise MisfitError(
                    f'{source}: tensor "{link.theirs}" has shape {found}, '
                    f"but {name} needs {expected}"
                )
    extra = sorted(key for key in shapes if key not in used and not ignored(key))
    if extra:
        more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
        raise MisfitError(
            f"{source} has tensors that {name} has no place for: {', '.join(extra[:3])}{more}"
        )


def export_tensors(
    variables: Mapping, links: Iterable[Link], dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """The tensors of another library, from a model's variables."""
    arrays = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    tensors: dict[str, np.ndarray] = {}
    host: tuple[str, np.ndarray] = ("", np.empty(0))
    for link in links:
        if host[0] != link.ours:
            host = (link.ours, np.asarray(arrays[link.ours]))
        part = _form(link).to_theirs(_part_of_ours(host[1], link))
        if link.rows is None:
            tensors[link.theirs] = np.array(part, dtype, order="C")
            continue
        if link.theirs not in tensors:
            tensors[link.theirs] = np.empty(_whole_shape(link, host[1].shape), dtype)
        _part_of_theirs(tensors[link.theirs], link)[...] = part
    return tensors


def stacked(ours: str, theirs: str, depth: int, form: str = "same", **part) -> list[Link]:
    """Links of all layers; `{}` in `theirs` is the layer's number."""
    return [Link(ours, theirs.format(i), form, layer=i, **part) for i in range(depth)]


def _form(link: Link) -> Form:
    return FORMS[link.form] if isinstance(link.form, str) else link.form


def _part_of_ours(array: np.ndarray, link: Link) -> np.ndarray:
    if link.layer is not None:
        array = array[link.layer]
    if link.slot is None:
        return array
    index, parts = link.slot
    width = array.shape[-1] // parts
    return array[..., index * width : (index + 1) * width]


def _part_of_theirs(tensor: np.ndarray, link: Link) -> np.ndarray:
    if link.rows is None:
        return tensor
    first, last, parts = link.rows
    rows = len(tensor) // parts
    return tensor[first * rows : last * rows]


def _whole_shape(link: Link, shape: Shape) -> Shape:
    """The shape of their whole tensor, from the shape of our whole array."""
    if link.layer is not None:
        shape = shape[1:]
    if link.slot is not None:
        shape = (*shape[:-1], shape[-1] // link.slot[1])
    expected = _form(link).their_shape(tuple(shape))
    if link.rows is None:
        return expected
    first, last, parts = link.rows
    return (expected[0] * parts // (last - first), *expected[1:])
