"""A block as GPUs compute it, without one: errors of its gradients on a CPU, or its traffic on an H100.

    python benchmarks/gpu_block.py errors     # against float32, beside plain bfloat16
    python benchmarks/gpu_block.py traffic    # compiled, 256 images of ViT-B-16; needs JAX's CUDA plugin

XLA's form of the fused attention stands for cuDNN's in `errors`.
"""

import argparse
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.hardware import traced_for
from clip_jax.models import attention
from clip_jax.models.layers import Transformer
from clip_jax.planning import gpu_compiler
from clip_jax.planning.backends import start
from clip_jax.planning.hlo.module import read_program
from clip_jax.planning.roofline import step_time
from clip_jax.planning.topologies import parse_topology

H100 = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0")


def transformer(depth: int, heads: int, mlp_width: int, **changes) -> Transformer:
    settings = {"activation": "gelu", "norm_epsilon": 1e-5, "causal": False, "kind": "auto"}
    settings |= {"remat": "attention", "dtype": jnp.bfloat16}
    return Transformer(depth=depth, heads=heads, mlp_width=mlp_width, **settings | changes)


def gradients(model: Transformer):
    def loss(variables, x_BLD):
        return jnp.sin(model.apply(variables, x_BLD).astype(jnp.float32)).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def distance(found, exact) -> float:
    """Relative, of all gradients together."""
    found, exact = (
        np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (found, exact)
    )
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def errors(seed: int, bias: float, causal: bool):
    """Of two blocks of width 128, whose biases have this deviation."""
    rng = np.random.default_rng(seed)
    x_BLD = jnp.asarray(rng.normal(size=(4, 50, 128)), jnp.bfloat16)

    def model(**changes) -> Transformer:
        return transformer(2, 2, 512, causal=causal, **changes)

    def draw(path, leaf):
        name, values = jax.tree_util.keystr(path), rng.normal(size=leaf.shape)
        if "kernel" in name:
            values = values * leaf.shape[-2] ** -0.5
        else:
            values = 1 + 0.1 * values if "scale" in name else bias * values
        return jnp.asarray(values, leaf.dtype)

    shapes = jax.eval_shape(model().init, jax.random.key(0), x_BLD)
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    exact = gradients(model(dtype=jnp.float32))(variables, x_BLD.astype(jnp.float32))
    plain = distance(gradients(model())(variables, x_BLD), exact)
    fused = jax.nn.dot_product_attention
    attention.jax.nn.dot_product_attention = lambda *arrays, **settings: fused(
        *arrays, **settings | {"implementation": "xla"}
    )
    with traced_for(H100):
        found = distance(gradients(model())(variables, x_BLD), exact)
    attention.jax.nn.dot_product_attention = fused
    print(f"seed {seed}, biases {bias}, {causal=}: {found:.5f}, {found / plain:.3f} of plain's")


def traffic():
    topology = parse_topology("h100:1")
    start([topology])
    devices = gpu_compiler.compile_only_devices(topology)
    place = jax.sharding.SingleDeviceSharding(devices[0])
    model = transformer(1, 12, 3072)
    x_BLD = jax.ShapeDtypeStruct((256, 197, 768), jnp.bfloat16, sharding=place)
    with gpu_compiler.absent_gpu(devices[0]):
        shapes = jax.eval_shape(model.init, jax.random.key(0), x_BLD)
        variables = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes
        )
        lowered = gradients(model).lower(variables, x_BLD)
    program = read_program(lowered.compile().as_text())
    seconds = step_time(program, topology, devices).seconds
    print(f"{program.bytes / 1e9:.2f} GB, {seconds * 1e3:.2f} ms at best, {dict(program.kernels)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("errors", "traffic"))
    if parser.parse_args().part == "traffic":
        traffic()
        return
    for seed, bias, causal in ((0, 0.02, False), (1, 0.25, True)):
        errors(seed, bias, causal)


if __name__ == "__main__":
    main()
