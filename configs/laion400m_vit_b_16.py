"""ViT-B-16 on LAION-400M: as `laion400m_vit_b_32`, with patches of 16 pixels.

clip-jax train --config configs/laion400m_vit_b_16.py --data.source 'tar:/data/{00000..41407}.tar'

Hardware: a v5e-256, or 32 H100. Time by the plan, at best (docs/plan.md): 13 hours on a v5e-256, 28 on 32 H100.
One setting for both: on v5e alone --model.remat none fits too, and takes a tenth less (10.8 GiB and 100 ms at best for 111).
To compare with: 67.0 % zero-shot on ImageNet
for this model, data and number of samples (LAION's scaling-laws-openclip); 68.4 % for OpenAI's own.
"""

import dataclasses

import laion400m_vit_b_32

from clip_jax.config import ModelSettings, TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(
        laion400m_vit_b_32.get_config(),
        workdir="runs/laion400m_vit_b_16",
        model=ModelSettings(name="ViT-B-16", remat="attention"),
    )
