r"""SigLIP B-16 at 224 pixels on your own shards: sigmoid loss, bidirectional text (arXiv:2303.15343).

clip-jax train --config configs/siglip_b_16.py --data.source 'tar:/data/{00000..41407}.tar' \
    --tokenizer.path spiece.model

Data: Google's WebLI is not public; LAION or DataComp shards take its place. The tokenizer is the T5-style
SentencePiece file that lies with the released weights; without --tokenizer.path none is found.
Hardware: a v5e-256 or 32 H100. Time by the plan, at best (docs/plan.md): 29 hours on 32 H100.
The paper finds a batch of 32 k enough (section
4.2) and b2 = 0.95 needed for stability at this size (section 4.4). To compare with: SigLiT's 84.5 % with
a frozen g/14 tower (its abstract); on public data 63 to 67 % are what softmax reaches, see
`laion400m_vit_b_16`.
"""

from clip_jax.config import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    LossConfig,
    ModelSettings,
    OptimizerConfig,
    TokenizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/siglip_b_16",
        steps=397_000,
        model=ModelSettings(name="ViT-B-16-SigLIP", remat="attention"),
        loss=LossConfig(kind="sigmoid", distributed="ring", tile=1024),
        data=DataConfig(source=("tar:data/laion400m/{00000..41407}.tar",), batch_size=32_768),
        tokenizer=TokenizerConfig(kind="siglip", path="spiece.model"),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, warmup_steps=10_000, b2=0.95, weight_decay=1e-4, clip_norm=1.0
        ),
        checkpoint=CheckpointConfig(every_minutes=10, keep_every_steps=50_000),
        logging=LoggingConfig(every_steps=50),
    )
