"""Exact attention, by the fastest form that a device has."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax.config import AttentionKind
from clip_jax.hardware import target_device
from clip_jax.models import short_attention

# cuDNN's fused attention, forward and backward, as JAX and cuDNN 9 check it: from Ampere (sm_80)
# on, in 16 bits, with heads whose width is a multiple of 8. Hopper takes widths up to 256 also.
CUDNN_CAPABILITY = 8
CUDNN_HEAD_WIDTH = 128


def attention(
    q_BLNK: jax.Array,
    k_BMNK: jax.Array,
    v_BMNK: jax.Array,
    *,
    causal: bool = False,
    kind: AttentionKind = "auto",
    length: int | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v for every head, the softmax in float32 (arXiv:1706.03762, 3.2.1).

    Args:
      causal: position l sees only positions up to l.
      kind: the form; "auto" takes the fastest one of the device.
      length: keys from there on are padding, which no query before it sees. None: all count.
    """
    kind = resolve_kind(kind, q_BLNK.dtype, q_BLNK.shape[-1])
    form = plain_attention if kind == "plain" else cudnn_attention
    return form(q_BLNK, k_BMNK, v_BMNK, causal=causal, length=length)


def resolve_kind(kind: AttentionKind, dtype: Any, head_width: int) -> AttentionKind:
    """The form that is taken on the device that is traced for: never "auto".

    Raises:
      ValueError: a form that the device does not have.
    """
    device = target_device()
    check_kind(kind, dtype, head_width=head_width, device=device)
    return fastest_kind(dtype, head_width, device=device) if kind == "auto" else kind


def kind_for_blocks(
    kind: AttentionKind, dtype: Any, shape: tuple[int, int, int], *, heads: int, mesh: Mesh | None
) -> AttentionKind:
    """The form that blocks take whose activations have this shape (B, L, D): never "auto".

    Args:
      mesh: what the batch is split over, as far as the model knows.

    Raises:
      ValueError: a form that the device or the shape does not allow.
    """
    B, L, D = shape
    if kind not in ("auto", "pallas"):
        return resolve_kind(kind, dtype, D // heads)
    lack = short_attention.obstacle(dtype, L, D, heads)
    if lack and kind == "pallas":
        raise ValueError(f"attention=pallas needs {lack}: auto takes the fastest form that works")
    wanted = kind == "pallas" or target_device().platform == "tpu"
    if wanted and not lack and _can_be_split(B, mesh):
        return "pallas"
    return resolve_kind("auto", dtype, D // heads)


def _can_be_split(batch: int, mesh: Mesh | None) -> bool:
    """Whether each device can be given its rows: XLA does not partition a kernel."""
    around = jax.sharding.get_abstract_mesh()
    if not around.empty and around.manual_axes:
        return len(around.manual_axes) == len(around.axis_names)
    if mesh is not None:
        return batch % mesh.size == 0
    return jax.device_count() == 1


def kernel_attention(
    qkv_BLX: jax.Array, *, heads: int, causal: bool, mesh: Mesh | None
) -> jax.Array:
    """Attention (B, L, D) of q, k and v side by side by the TPU's kernel, on each device's rows."""

    def own_rows(qkv_BLX: jax.Array) -> jax.Array:
        interpret = target_device().platform != "tpu"
        return short_attention.short_attention(qkv_BLX, heads, causal, interpret)

    if mesh is None or jax.sharding.get_abstract_mesh().manual_axes:
        return own_rows(qkv_BLX)
    rows = P(mesh.axis_names)
    return jax.shard_map(own_rows, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(
        qkv_BLX
    )


def fastest_kind(dtype: Any, head_width: int, *, device: jax.Device) -> AttentionKind:
    """cuDNN's kernel where the device, the type and the width allow it, else the plain form."""
    usable = has_cudnn_attention(device) and not _obstacle(dtype, head_width)
    return "cudnn" if usable else "plain"


def has_cudnn_attention(device: jax.Device) -> bool:
    """Whether a device is an NVIDIA GPU of Ampere's generation or later.

    AMD's GPUs have the platform "gpu" too; their capability reads "gfx942".
    """
    capability = re.match(r"(\d+)\.", str(getattr(device, "compute_capability", "")))
    return device.platform == "gpu" and bool(capability) and int(capability[1]) >= CUDNN_CAPABILITY


def check_kind(
    kind: AttentionKind,
    dtype: Any,
    *,
    device: jax.Device,
    head_width: int | None = None,
    setting: str = "attention",
):
    """Refuse a kernel, by the name of the setting that asks for it, where it cannot work."""
    if kind == "pallas" and device.platform != "tpu":
        raise ValueError(
            f"{setting}=pallas needs a TPU, not {device.device_kind}: {setting}=auto takes the "
            "fastest form that works"
        )
    if kind != "cudnn":
        return
    lack = _obstacle(dtype, head_width)
    if not lack and not has_cudnn_attention(device):
        lack = f"an NVIDIA GPU of compute capability 8.0 or higher, not {device.device_kind}"
    if lack:
        raise ValueError(
            f"{setting}=cudnn needs {lack}: {setting}=auto takes the fastest form that works"
        )


def _obstacle(dtype: Any, head_width: int | None) -> str:
    """What cuDNN's kernel lacks for a type and a width of heads, or nothing."""
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"dtype=bfloat16, not {dtype}"
    if head_width is not None and (head_width % 8 or head_width > CUDNN_HEAD_WIDTH):
        return f"heads of a multiple of 8 and at most {CUDNN_HEAD_WIDTH} numbers, not {head_width}"
    return ""


def even(length: int) -> int:
    """The next even number: JAX refuses odd lengths in the gradient of cuDNN's kernel."""
    return length + length % 2


def cudnn_attention(
    q_BLNK: jax.Array,
    k_BMNK: jax.Array,
    v_BMNK: jax.Array,
    *,
    causal: bool,
    length: int | None = None,
) -> jax.Array:
    """cuDNN's fused kernel, which writes no logits to memory.

    JAX 0.10.2 to 0.12.0 take their own empty stand-in for "no bias" as a bias, which needs even
    lengths. So an odd sequence gets one position more, a key that is masked: causally it comes
    after every query that counts, else its place is beyond `key_value_seq_lengths`. The added
    query sees what others see, so that its result is finite; it is dropped, and its gradient is 0.
    """
    L, M = q_BLNK.shape[1], k_BMNK.shape[1]
    length = M if length is None else length
    unseen = causal and L == M  # by the queries that count
    q_BLNK, k_BMNK, v_BMNK = (
        jnp.pad(x, ((0, 0), (0, even(x.shape[1]) - x.shape[1]), (0, 0), (0, 0)))
        for x in (q_BLNK, k_BMNK, v_BMNK)
    )
    lengths = {}
    if length < k_BMNK.shape[1] and not unseen:
        # Made of q, whatever its values, so that they are split over devices as q is: the kernel is
        # given each device's own rows, and XLA would leave constants whole.
        bits = jnp.dtype(f"int{8 * q_BLNK.dtype.itemsize}")
        any_B = jax.lax.bitcast_convert_type(q_BLNK[:, 0, 0, 0], bits).astype(jnp.int32)
        L_even = q_BLNK.shape[1]
        lengths["query_seq_lengths"] = jax.lax.clamp(L_even, any_B, L_even)
        lengths["key_value_seq_lengths"] = jax.lax.clamp(length, any_B, length)
    x_BLNK = jax.nn.dot_product_attention(
        q_BLNK,
        k_BMNK,
        v_BMNK,
        is_causal=causal,
        implementation="cudnn",
        **lengths,
    )
    return x_BLNK[:, :L]


def plain_attention(
    q_BLNK: jax.Array,
    k_BMNK: jax.Array,
    v_BMNK: jax.Array,
    *,
    causal: bool,
    length: int | jax.Array | None = None,
) -> jax.Array:
    """The reference that every other form must equal; `length` may be one for each sequence (B,)."""
    precision = None if q_BLNK.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    logits_BNLM = jnp.einsum(
        "BLNK,BMNK->BNLM",
        q_BLNK * q_BLNK.shape[-1] ** -0.5,
        k_BMNK,
        precision=precision,
        preferred_element_type=jnp.promote_types(q_BLNK.dtype, jnp.float32),
    )
    L, M = logits_BNLM.shape[-2:]
    if causal or length is not None:
        lengths_B = jnp.asarray(M if length is None else length).reshape(-1)
        key_11M = jnp.arange(M)[None, None]
        visible_BLM = key_11M < lengths_B[:, None, None]
        if causal:
            visible_BLM = visible_BLM & (key_11M <= jnp.arange(L)[None, :, None])
        logits_BNLM = jnp.where(visible_BLM[:, None], logits_BNLM, jnp.finfo(logits_BNLM.dtype).min)
    weights_BNLM = jax.nn.softmax(logits_BNLM, axis=-1).astype(q_BLNK.dtype)
    return jnp.einsum("BNLM,BMNK->BLNK", weights_BNLM, v_BMNK, precision=precision)
