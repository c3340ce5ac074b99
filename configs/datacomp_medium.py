"""DataComp's medium scale: as `datacomp_small`, ten times the samples.

clip-jax train --config configs/datacomp_medium.py --data.source 'tar:/data/datacomp/{00000000..00012895}.tar'

Hardware: 8 H100 or a v5e-16. Time by the plan, at best (docs/plan.md): 27 minutes on 8 H100 if 77 cores feed
them. To compare with: 29.7 % zero-shot on ImageNet
with the best filter of the paper (arXiv:2304.14108).
"""

import dataclasses

import datacomp_small

from clip_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(
        datacomp_small.get_config(), workdir="runs/datacomp_medium", steps=31_250
    )
