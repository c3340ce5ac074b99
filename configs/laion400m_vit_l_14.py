"""ViT-L-14 on LAION-400M: as `laion400m_vit_b_32`, at OpenAI's learning rate for this size.

clip-jax train --config configs/laion400m_vit_l_14.py --data.source 'tar:/data/{00000..41407}.tar'

Hardware: a v5p-512 or 64 H100. Time by the plan, at best (docs/plan.md): 23 hours on a v5p-512, 47 on 64 H100.
To compare with: 73.1 % zero-shot on ImageNet
for this model, data and number of samples (LAION's scaling-laws-openclip); 75.5 % for OpenAI's own.
"""

import dataclasses

import laion400m_vit_b_32

from clip_jax.config import ModelSettings, TrainConfig


def get_config() -> TrainConfig:
    parent = laion400m_vit_b_32.get_config()
    return dataclasses.replace(
        parent,
        workdir="runs/laion400m_vit_l_14",
        model=ModelSettings(name="ViT-L-14", remat="attention"),
        optimizer=dataclasses.replace(parent.optimizer, learning_rate=4e-4),
    )
