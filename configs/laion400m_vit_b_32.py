"""ViT-B-32 on LAION-400M: 13 billion samples, OpenAI's recipe (arXiv:2103.00020, tables 18 and 20).

clip-jax train --config configs/laion400m_vit_b_32.py --data.source 'tar:/data/{00000..41407}.tar'

Data: shards as img2dataset writes them. Hardware: a v5e-64 or 8 H100. Time by the plan, at best (docs/plan.md): 45
hours on 8 H100 if 78 cores feed them. To compare with: 63.2 % zero-shot on ImageNet for this
model, data and number of samples (LAION's scaling-laws-openclip, trained_models_info.csv); 63.3 % for OpenAI's own.
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
        workdir="runs/laion400m_vit_b_32",
        steps=397_000,
        model=ModelSettings(name="ViT-B-32", remat="attention"),
        data=DataConfig(source=("tar:data/laion400m/{00000..41407}.tar",), batch_size=32_768),
        optimizer=OptimizerConfig(decay_positions=True, learning_rate=5e-4, warmup_steps=2_000),
        checkpoint=CheckpointConfig(every_minutes=10, keep_every_steps=50_000),
        logging=LoggingConfig(every_steps=50),
    )
