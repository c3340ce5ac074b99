"""The same conversion on Apache Beam, for data that outgrows one machine: Flink, Spark, Dataflow.

Every worker must reach the source and the output, so both are URLs or a shared folder.
"""

from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from clip_jax.config import DataConfig
from clip_jax.data.sources.registry import open_source
from clip_jax.data.tools import convert as local
from clip_jax.data.tools.shuffled import in_order


class _WriteShard(beam.DoFn):
    """Opens the source once in each worker, then writes whole files."""

    def __init__(self, spec: str, split: str, cfg: DataConfig, shuffle: int | None):
        self._opening, self._shuffle = (spec, split, cfg), shuffle
        self._source = None

    def setup(self):
        self._source = in_order(open_source(*self._opening), self._shuffle)

    def process(self, part: tuple[int, int, str]):
        yield local.write_shard(self._source, *part)


class _WriteManifest(beam.DoFn):
    """Says what was written, once all of it is."""

    def __init__(self, spec: str, split: str, cfg: DataConfig, shuffle: int | None, out: str):
        self._opening, self._shuffle = (spec, split, cfg), shuffle
        self._cfg, self._out = cfg, out

    def process(self, entries: list[dict]):
        source = in_order(open_source(*self._opening), self._shuffle)
        yield local.write_manifest(entries, source, self._out, self._cfg.max_bad_share)


def convert_on_beam(
    spec: str,
    cfg: DataConfig,
    out: str,
    *,
    split: str = "train",
    shard_samples: int = local.SHARD_SAMPLES,
    shuffle: int | None = None,
    options: Sequence[str] = (),
):
    """As `convert`, on the runner that `options` names, such as "--runner=FlinkRunner".

    An index of tar shards is built here first, so that workers only read it. Returns when the
    pipeline has ended; the files are those that `convert` writes, byte for byte.
    """
    source = open_source(spec, split, cfg)
    plan = local.plan_shards(len(source), out, shard_samples)
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "Files" >> beam.Create(plan)
            # Without it a runner fuses the steps, and one worker gets all the files.
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.ParDo(_WriteShard(spec, split, cfg, shuffle))
            | "Collect" >> beam.combiners.ToList()
            | "Manifest" >> beam.ParDo(_WriteManifest(spec, split, cfg, shuffle, out))
        )
