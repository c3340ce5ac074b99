"""The commands `clip-jax data filter` and `clip-jax data map`: what is kept of a source, and what is in it."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from clip_jax import sharding, storage
from clip_jax.cli.collection import EmbedSettings, embed_into
from clip_jax.config import DataConfig, MeshConfig
from clip_jax.curation.filter import FilterConfig, check_rules
from clip_jax.curation.settings import MapConfig
from clip_jax.data.sources import registry
from clip_jax.redaction import redact

Spec = Annotated[str, tyro.conf.Positional]
DataSettings = Annotated[DataConfig, tyro.conf.arg(name="data")]  # --data.NAME, as in training
# Each by itself, as an option that begins with "--" would else be one of ours.
BeamOptions = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
DATA, RULES, MAP = DataConfig(), FilterConfig(), MapConfig()


def filter_source(
    source: Spec,
    out: Spec,
    embeddings: str | None = None,
    model: str | None = None,
    rules: Annotated[FilterConfig, tyro.conf.OmitArgPrefixes] = RULES,
    beam: bool = False,
    beam_options: BeamOptions = (),
    cfg: DataSettings = DATA,
) -> int:
    """Keep the samples that all rules keep: by score, evaluation sets, duplicates, concepts.

    Args:
        source: such as "tar:/data/{00000..00999}.tar".
        out: a new folder for kept.safetensors (for --data.subset), decisions.parquet and report.html.
        embeddings: the folder that clip-jax embed has written of the source.
        model: without embeddings, what to embed the source with: a run, or released weights.
        rules: which rules are applied.
        beam: on Apache Beam, where one machine is too small.
        beam_options: Beam's own, each by itself, such as --beam-options=--runner=FlinkRunner.
        cfg: columns, cache folder and the like.
    """
    # pyarrow, of an extra, is loaded for the commands that need it alone.
    from clip_jax.curation.collection import EvaluationSet
    from clip_jax.curation.concepts import read_entries
    from clip_jax.curation.filter import decide
    from clip_jax.curation.write import refuse_full, write_outcome

    check_rules(rules)
    refuse_full(out)
    refuse_without_beam(beam, beam_options)
    collection = _open(source, f"{out}/embeddings", embeddings, model, cfg)
    sets = [
        EvaluationSet(_embedded(spec, f"{out}/evaluation_{number}", model, cfg), collection.model)
        for number, spec in enumerate(rules.against)
    ]
    entries = read_entries(rules.concepts) if rules.concepts is not None else None
    mesh, facts = sharding.make_mesh(MeshConfig()), {"model fingerprint": collection.model}
    clusters_NC = _clusters(collection.image, rules, facts)
    names = [f"{number} {one.name}" for number, one in enumerate(sets)]
    own, others = None, {}
    if rules.compares_pixels:
        own = collection.pixels(cfg)
        others = dict(zip(names, [one.pixels(cfg) for one in sets]))
    if beam:
        # Apache Beam is a heavy extra that only this needs.
        from clip_jax.curation.on_beam import decide_on_beam

        outcome = decide_on_beam(
            collection, rules, sets, entries, f"{out}/beam", data=cfg, options=beam_options
        )
    else:
        outcome = decide(
            collection,
            rules,
            mesh,
            evaluation=dict(zip(names, [one.rows for one in sets])),
            entries=entries,
            clusters_NC=clusters_NC,
            pixels=own,
            evaluation_pixels=others,
            say=print,
        )
        if bad := sum(one.unreadable for one in (own, *others.values()) if one is not None):
            facts["pictures that could not be compared"] = f"{bad:_}, which are kept"
            print(f"{bad:_} pictures could not be read to be compared, and are kept")
    more = {"data": cfg, "sets": sets, "entries": entries, "facts": facts}
    counts = write_outcome(collection, outcome, out, rules, **more)
    print(f"{out}: {counts['kept']:_} of {counts['samples']:_} samples are kept (report.html)")
    return 0


def refuse_without_beam(beam: bool, options: tuple[str, ...]):
    """Refuse options that nobody would read.

    Raises:
      ValueError: there are some, and Beam is not asked for.
    """
    if options and not beam:
        raise ValueError(f"--beam-options {' '.join(options)} has no effect without --beam")


def map_source(
    source: Spec,
    out: Annotated[Path, tyro.conf.Positional] = Path("map.html"),
    embeddings: str | None = None,
    model: str | None = None,
    settings: Annotated[MapConfig, tyro.conf.OmitArgPrefixes] = MAP,
    cfg: DataSettings = DATA,
) -> int:
    """A page with a source's images in two dimensions, and clusters with the captions nearest to them.

    Args:
        source: such as "tar:/data/{00000..00999}.tar".
        out: the page.
        embeddings: the folder that clip-jax embed has written of the source.
        model: without embeddings, what to embed the source with: a run, or released weights.
        settings: how it is drawn.
        cfg: columns, cache folder and the like.
    """
    from clip_jax.curation import map as maps  # scikit-learn, of an extra

    collection = _open(source, f"{out}.embeddings", embeddings, model, cfg)
    page = maps.render(collection, maps.make_map(collection, settings), settings, data=cfg)
    storage.atomic_write(out, page)
    print(out)
    return 0


def _open(source: str, folder: str, embeddings: str | None, model: str | None, cfg: DataConfig):
    """The embeddings of a source, made if there are none, with the source."""
    from clip_jax.collection.embeddings import open_embeddings
    from clip_jax.curation.collection import EmbeddedSource

    if embeddings is None:
        if model is None:
            raise ValueError(
                "name the embeddings of the source with --embeddings (clip-jax embed MODEL SOURCE OUT "
                "makes them), or a model with --model"
            )
        what = "both" if registry.has_captions(source) else "images"
        embeddings = _embed(source, folder, model, cfg, what)
    return EmbeddedSource(open_embeddings(embeddings), registry.open_source(source, "train", cfg))


def _embedded(spec: str, folder: str, model: str | None, cfg: DataConfig) -> str:
    """The folder of an evaluation set's embeddings: `spec` itself, or of a source that is embedded."""
    if Path(spec).expanduser().is_dir():
        return spec
    if model is None:
        raise ValueError(
            f"against={spec!r} is no folder of embeddings: embed the evaluation set with clip-jax embed, "
            "or name a model with --model"
        )
    return _embed(spec, folder, model, replace(cfg, subset=()), "images", split="test")


def _embed(
    source: str,
    folder: str,
    model: str,
    cfg: DataConfig,
    what: Literal["images", "both"],
    split: str = "train",
) -> str:
    print(f"Embedding {redact(source)} into {folder}")
    names = {"model": model, "source": source, "out": folder, "what": what}
    embed_into(EmbedSettings(**names, split=split, data=cfg))
    return folder


def _clusters(image, rules: FilterConfig, facts: dict[str, str]):
    """The clusters of each row where they are asked for, and their recall as a fact."""
    if rules.duplicates_clusters is None or image is None:
        return None
    from clip_jax.curation import clusters

    found = clusters.assign(image, rules.duplicates_clusters, rules.duplicates_probes, rules.seed)
    assert rules.duplicates_above is not None
    facts["duplicates within clusters"] = str(
        clusters.recall(image, found, rules.duplicates_above, rules.seed)
    )
    print(f"duplicates within clusters: {facts['duplicates within clusters']}")
    return found
