"""DataComp's large scale: ViT-B-16, 1.28 billion samples (arXiv:2304.14108; scale_configs.py).

clip-jax train --config configs/datacomp_large.py --data.source 'tar:/data/datacomp/{00000000..00128959}.tar'

Hardware: a v5e-64 or 8 H100. Time by the plan, at best (docs/plan.md): 11 hours on 8 H100.
To compare with: 63.1 % zero-shot on ImageNet
with the best filter of the paper.
"""

import dataclasses

import datacomp_small

from clip_jax.config import ModelSettings, TrainConfig


def get_config() -> TrainConfig:
    parent = datacomp_small.get_config()
    return dataclasses.replace(
        parent,
        workdir="runs/datacomp_large",
        steps=156_250,
        model=ModelSettings(name="ViT-B-16", remat="attention"),
        data=dataclasses.replace(parent.data, batch_size=8_192),
    )
