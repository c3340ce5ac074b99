"""Evaluates a tiny model as one of several processes: FILE ADDRESS PROCESSES RANK."""

import sys

import jax
import numpy as np
from conftest import measure

from clip_jax import sharding
from clip_jax.config import MeshConfig


def main(file: str, address: str, processes: str, rank: str):
    jax.distributed.initialize(address, int(processes), int(rank))
    np.savez(file, **measure(sharding.make_mesh(MeshConfig(fsdp=2))))


main(*sys.argv[1:])
