r"""Locked-image tuning: a new text tower learns to read a frozen, released ViT-L-14 (arXiv:2111.07991).

clip-jax train --config configs/lit_l_14.py --model.init-from open_clip_model.safetensors \
    --data.source 'tar:/data/{00000..41407}.tar'

The image tower has no optimizer state and no backward pass. Data: any image-caption shards. Hardware: 8 H100 or
a v5e-64. Time by the plan, at best (docs/plan.md): 10 hours on 8 H100. To compare with: the paper's 85.2 % zero-shot on ImageNet, with a larger
tower (g/14) and four billion private pairs (its abstract).
"""

from clip_jax.config import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelSettings,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/lit_l_14",
        steps=60_000,
        model=ModelSettings(
            name="ViT-L-14",
            init_from="open_clip_model.safetensors",
            init_towers="image",
            freeze="image",
        ),
        data=DataConfig(source=("tar:data/laion400m/{00000..41407}.tar",), batch_size=16_384),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10_000, weight_decay=1e-4),
        checkpoint=CheckpointConfig(every_minutes=10),
        logging=LoggingConfig(every_steps=50),
    )
