"""CLIPA's cheap first part: ViT-B-16 on images of 112 pixels and 16 tokens (arXiv:2305.07017).

clip-jax train --config configs/clipa_b_16_pretrain.py --data.source 'tar:/data/{00000..41407}.tar'

Then `clipa_b_16_tune` goes on at the full length. Recipe: learning rate 8e-6 * batch / 256, b2 0.95, crops
of 40 to 100 % (CLIPA's open_clip example for B/16). Captions over length keep a random block of their tokens.
Hardware: a v5e-64 or 8 H100. Time by the plan, at best (docs/plan.md): 5.4 hours on 8 H100 if 126
cores feed them. To compare with: 63.2 % after both parts, in about two days on 8 A100 (open_clip's docs/clipa.md).
"""

from clip_jax.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelSettings,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/clipa_b_16_pretrain",
        steps=39_000,
        model=ModelSettings(name="ViT-B-16", image_size=112, context_length=16, remat="attention"),
        data=DataConfig(
            source=("tar:data/laion400m/{00000..41407}.tar",),
            batch_size=65_536,
            augment=AugmentConfig(crop_scale=(0.4, 1.0), text_mask="block"),
        ),
        optimizer=OptimizerConfig(learning_rate=2.048e-3, warmup_steps=782, b2=0.95),
        checkpoint=CheckpointConfig(every_minutes=10),
        logging=LoggingConfig(every_steps=20),
    )
