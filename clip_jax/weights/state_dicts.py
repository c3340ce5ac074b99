"""Where the weights lie in what a training script saved, and their names without its wrappers."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax.weights.torch_pickles import Inert, Module, StoredTensor

log = logging.getLogger(__name__)

# Keys under which training scripts save the weights, in the order in which they are looked for.
KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
# What wraps a model or a part of it, anywhere in a name.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Attributes that hold the whole model.
OWNERS = ("model.", "clip.", "clip_model.")


def find_state_dict(content: Any, source: str) -> dict[str, StoredTensor]:
    """The tensors by their names, from what a .pt file holds.

    Raises:
      ValueError: it holds no state dict; the message names the keys that it has.
    """
    if isinstance(content, Module):
        content = dict(_parameters(content, ""))
    if type(content).__mro__[1:2] == (Inert,):
        raise ValueError(
            f"{source} holds an object of the class {type(content).__name__}, not a state dict: "
            "save model.state_dict() alone"
        )
    content = _descend(content, source)
    tensors = {}
    for name, value in content.items():
        if isinstance(value, StoredTensor):
            if not isinstance(name, str):
                raise ValueError(f"{source}: a tensor is called {name!r}, which is no name")
            tensors[name] = value
    _refuse_other_numbers(content, source)
    return tensors


def _refuse_other_numbers(content: Mapping, source: str):
    """Raise a ValueError for numbers that are none of the tensors that are read, such as float8."""
    for name, value in content.items():
        library = type(value).__name__.split(".")[0]
        may_be_numbers = isinstance(value, Inert) and library in ("torch", "numpy")
        if may_be_numbers and not str(name).endswith("_extra_state"):
            raise ValueError(
                f'{source}: "{name}" was saved as {type(value).__name__}, which is not read: save '
                "plain floating-point tensors"
            )


def _descend(content: Any, source: str) -> Mapping:
    """The dictionary whose values are tensors, at most three levels down."""
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        inner = [key for key, value in content.items() if _holds_tensors(value)]
        known = [key for key in KEYS if key in inner]
        if not known and any(isinstance(value, StoredTensor) for value in content.values()):
            return content
        if not known and len(inner) != 1:
            break
        taken = (known or inner)[0]
        if left := [key for key in inner if key != taken and _is_average(key)]:
            log.warning(
                '%s holds "%s" and the averaged weights "%s": read "%s"; save the other alone to '
                "load it",
                *(source, taken, '", "'.join(map(str, left)), taken),
            )
        elif _is_average(taken):
            log.warning('%s: read the averaged weights "%s"', source, taken)
        content = content[taken]
    if isinstance(content, Mapping):
        _refuse_other_numbers(content, source)
    keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else ""
    raise ValueError(f"{source} holds no state dict" + (f": its keys are {keys}" if keys else ""))


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    if not isinstance(value, Mapping) or isinstance(value, Module):
        return False
    found = any(isinstance(part, StoredTensor) for part in value.values())
    return found or (depth > 1 and any(_holds_tensors(v, depth - 1) for v in value.values()))


def _is_average(key: Any) -> bool:
    parts = str(key).lower().replace("-", "_").replace(".", "_").split("_")
    return bool({"ema", "averaged", "average", "swa", "shadow"} & set(parts))


def _parameters(module: Module, prefix: str):
    for name, value in module.items():
        if isinstance(value, Module):
            yield from _parameters(value, f"{prefix}{name}.")
        elif isinstance(value, StoredTensor):
            yield prefix + name, value


def unwrap(names: Iterable[str], source: str) -> dict[str, str]:
    """The names without wrappers and owners, in any nesting, and the names in the file.

    Raises:
      ValueError: two tensors would have one name.
    """
    plain = {
        name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names
    }
    while owner := next((owner for owner in OWNERS if _owns(owner, plain.values())), None):
        plain = {name: short.removeprefix(owner) for name, short in plain.items()}
    found: dict[str, str] = {}
    for name, short in plain.items():
        if short in found:
            raise ValueError(f'{source} has "{short}" twice, as {found[short]} and as {name}')
        found[short] = name
    return found


def _owns(owner: str, names: Iterable[str]) -> bool:
    """Whether the model lies under `owner`; beside it may lie tensors that belong to no CLIP."""
    owned = [name.startswith(owner) for name in names]
    has_scale = any(n.startswith(owner) and n.endswith("logit_scale") for n in names)
    return any(owned) and (all(owned) or (has_scale and "logit_scale" not in names))
