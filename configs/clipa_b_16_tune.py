"""CLIPA's second part: `clipa_b_16_pretrain` goes on at 224 pixels and 32 tokens, for 131 million samples.

clip-jax train --config configs/clipa_b_16_tune.py --data.source 'tar:/data/{00000..41407}.tar'

Starts from runs/clipa_b_16_pretrain; its position embeddings are resized. Recipe: batch 16,384, learning
rate 8e-7 * batch / 256 (CLIPA's clipa_jax). Hardware: a v5e-64 or 8 H100. Time by the plan, at
best (docs/plan.md): 58 minutes on 8 H100.
To compare with: see `clipa_b_16_pretrain`.
"""

import dataclasses

import clipa_b_16_pretrain

from clip_jax.config import AugmentConfig, ModelSettings, OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    parent = clipa_b_16_pretrain.get_config()
    return dataclasses.replace(
        parent,
        workdir="runs/clipa_b_16_tune",
        steps=8_000,
        model=ModelSettings(
            name="ViT-B-16",
            image_size=224,
            context_length=32,
            remat="attention",
            init_from=parent.workdir,
        ),
        data=dataclasses.replace(
            parent.data, batch_size=16_384, augment=AugmentConfig(text_mask="block")
        ),
        optimizer=OptimizerConfig(learning_rate=5.12e-5, warmup_steps=800, b2=0.95),
    )
