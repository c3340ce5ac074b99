"""DataComp's small scale: ViT-B-32, 12.8 million samples (github.com/mlfoundations/datacomp, scale_configs.py).

clip-jax train --config configs/datacomp_small.py --data.source 'tar:/data/datacomp/{00000000..00001287}.tar'

Data: the filtered shards of the small pool. Hardware: one GPU of 80 GB and 10 cores.
Time by the plan, at best (docs/plan.md): 21 minutes on an H100.
To compare with: 3.9 % zero-shot on ImageNet with the best filter of the paper (arXiv:2304.14108).
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
        workdir="runs/datacomp_small",
        steps=3_125,
        model=ModelSettings(name="ViT-B-32", remat="attention"),
        data=DataConfig(source=("tar:data/datacomp/{00000000..00001287}.tar",), batch_size=4_096),
        optimizer=OptimizerConfig(decay_positions=True, learning_rate=5e-4, warmup_steps=500),
        checkpoint=CheckpointConfig(every_minutes=10),
        logging=LoggingConfig(every_steps=20),
    )
