r"""Fine-tuning released weights on your own pairs, on one GPU of 16 GB or more.

clip-jax train --config configs/finetune_pairs.py --data.source pairs:captions.csv \
    --data.eval-source pairs:test.csv --model.init-from open_clip_model.safetensors

Starts from ViT-B-32 (another with --model.name; OpenAI's own .pt is ViT-B-32-quickgelu). A small learning rate
keeps what the model knows, and the step with the best recall is kept: `clip-jax eval runs/finetune_pairs --step
best`, also of convert and export. Time: 1,000 steps of 256 pairs, by the plan half a minute on an H100, and 11
cores to feed it (docs/plan.md). To compare with: `clip-jax eval open_clip_model.safetensors --source pairs:test.csv`, which is where it starts.
"""

from clip_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ModelSettings,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/finetune_pairs",
        steps=1_000,
        model=ModelSettings(name="ViT-B-32", init_from="open_clip_model.safetensors"),
        data=DataConfig(
            source=("pairs:captions.csv",),
            eval_source="pairs:test.csv",
            batch_size=256,
            exif_rotation=True,  # photographs from phones lie on their side without it
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-5, warmup_steps=50, weight_decay=0.1, clip_norm=1.0
        ),
        checkpoint=CheckpointConfig(every_steps=100, keep_best_by="eval/text_to_image_recall_at_1"),
        evaluation=EvaluationConfig(every_steps=100),
    )
