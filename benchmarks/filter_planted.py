"""Plants faults into a dataset and counts what `clip-jax data filter` finds of them.

    python benchmarks/filter_planted.py --pairs 10000
    clip-jax train --config configs/shapes_tiny.py --workdir runs/shapes_tiny
    python benchmarks/filter_planted.py runs/shapes_tiny --pairs 4000

Without a model, the pairs are vectors: images of 60 kinds at cosines of 0.5 to 0.8 within a kind, copies
of them and of 500 test images at 0.955 to 0.999, scores of 0.30 +- 0.03, and of 0.08 +- 0.04 for wrong captions,
stored as float16; thresholds are 0.94 and 0.2.

With one, the pairs are pictures of `shapes` whose descriptions all differ, as PNG files in a list. Of each twenty,
one is a copy of an earlier one (encoded again as JPEG of quality 60, resized to 3/4, or cropped by 2 % at
each side), one is a copy of a test picture made in the same way, and one has the caption of a pair that
differs in color and shape. Thresholds are chosen on the first half of the pairs, so that they find the most of
what was planted with at most 0.5 % of the others, and measured on the second half. Printed is which share of what was planted
each rule finds by embeddings alone, and which share of the other pairs it drops; then the same of the command
where pixels confirm what is near, from 0.35 below the least cosine of what was planted in the first half.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from clip_jax.cli.main import main as clip_jax
from clip_jax.collection.embeddings import open_embeddings
from clip_jax.config import MeshConfig
from clip_jax.curation.duplicates import find_duplicates
from clip_jax.curation.filter import FilterConfig, by_evaluation, decide
from clip_jax.curation.vectors import ArrayRows, pair_scores
from clip_jax.data.sources import scenes
from clip_jax.sharding import make_mesh

SIDE = 64
COPIES = ("jpeg", "resized", "cropped")
MOST_FALSE = 0.005  # of the other pairs of the first half, where a threshold is chosen


class Drawn:
    """Scenes with descriptions that all differ, each drawn once."""

    def __init__(self, count: int, seed: int):
        self.rng = np.random.default_rng(seed)
        self.scenes, self.said = [], set()
        while len(self.scenes) < count:
            scene = scenes.random_scene(self.rng, scenes.PAIRS, two=bool(self.rng.random() < 0.8))
            figures = [(f.color, f.shape, f.size, f.x > 0.5, f.y > 0.5) for f in scene.figures]
            said = (scene.background, *sorted(figures))
            if said not in self.said:
                self.said.add(said)
                self.scenes.append(scene)
        self.pictures = [
            Image.fromarray(scenes.render(scene, self.rng, SIDE)) for scene in self.scenes
        ]
        self.captions = [scenes.full_caption(scene, self.rng) for scene in self.scenes]

    def copy(self, number: int, kind: str, path: Path) -> str:
        """Write a copy of a picture; its file name."""
        picture, path = (
            self.pictures[number],
            path.with_suffix(".jpg" if kind == "jpeg" else ".png"),
        )
        if kind == "resized":
            picture = picture.resize((3 * SIDE // 4,) * 2, Image.Resampling.BICUBIC)
        if kind == "cropped":
            edge = 0.02 * SIDE
            box = (edge, edge, SIDE - edge, SIDE - edge)
            picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
        picture.save(path, quality=60)
        return path.name

    def differing(self, number: int) -> int:
        """Another scene in which no color and no shape is one of this scene's."""
        mine = {word for f in self.scenes[number].figures for word in (f.color, f.shape)}
        while True:
            other = int(self.rng.integers(len(self.scenes)))
            if not mine & {word for f in self.scenes[other].figures for word in (f.color, f.shape)}:
                return other


def plant(folder: Path, pairs: int, seed: int) -> np.ndarray:
    """Write train.csv and test.csv with their pictures; what was planted in each row of train.csv."""
    train, test = Drawn(pairs, seed), Drawn(max(200, pairs // 20), seed + 1)
    kinds = np.array(["clean"] * pairs, dtype="U10")
    planted = train.rng.permutation(np.arange(pairs // 10, pairs))
    for number, kind in enumerate(("duplicate", "evaluation", "caption")):
        kinds[planted[number::20]] = kind
    rows = []
    clean = np.flatnonzero(kinds == "clean")
    for row, kind in enumerate(kinds):
        path, caption, how = folder / f"{row:06d}", train.captions[row], COPIES[row % 3]
        if kind == "duplicate":
            original = int(train.rng.choice(clean[clean < row]))
            name, caption = train.copy(original, how, path), train.captions[original]
        elif kind == "evaluation":
            original = int(train.rng.integers(len(test.scenes)))
            name, caption = test.copy(original, how, path), test.captions[original]
        else:
            name = train.copy(row, "png", path)
            if kind == "caption":
                caption = train.captions[train.differing(row)]
        rows.append((name, caption))
    write_list(folder / "train.csv", rows)
    names = [test.copy(n, "png", folder / f"test_{n:06d}") for n in range(len(test.scenes))]
    write_list(folder / "test.csv", list(zip(names, test.captions)))
    return kinds


def write_list(path: Path, rows: list):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])


def border(wrong: np.ndarray, right: np.ndarray) -> float:
    """The threshold with the most of `wrong` above it, of those with at most MOST_FALSE of `right`."""
    values = np.sort(np.concatenate([wrong, right]))
    found = 1 - np.searchsorted(np.sort(wrong), values) / len(wrong)
    false = 1 - np.searchsorted(np.sort(right), values) / len(right)
    allowed = np.flatnonzero(false <= MOST_FALSE)
    best = allowed[found[allowed] == found[allowed].max()]
    at = int(best[len(best) // 2])
    return float(values[max(0, at - 1)] + values[at]) / 2


def measure(folder: Path, kinds: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
    """For each rule its threshold, and a value for each row that is high where it is wrong."""
    train, test = open_embeddings(folder / "train"), open_embeddings(folder / "test")
    image, mesh = train.vectors["image"], make_mesh(MeshConfig())
    rows = np.arange(len(image))
    found = find_duplicates(image, rows, 1.0, mesh)
    near = np.where(found.partner_N >= 0, found.cosine_N, found.below_N)
    sets = {"test": test.vectors["image"]}
    values = {
        "caption": -pair_scores(image, train.vectors["text"]),
        "evaluation": by_evaluation(image, rows, sets, 1.0, mesh).value_N,
        "duplicate": near,
    }
    first = rows < len(rows) // 2
    return {
        kind: (border(value[first & (kinds == kind)], value[first & (kinds == "clean")]), value)
        for kind, value in values.items()
    }


def near(z_NE: np.ndarray, cosine, rng: np.random.Generator) -> np.ndarray:
    """For each unit vector another at this cosine from it."""
    other_NE = rng.normal(size=z_NE.shape)
    other_NE -= (other_NE * z_NE).sum(axis=1, keepdims=True) * z_NE
    other_NE /= np.linalg.norm(other_NE, axis=1, keepdims=True)
    cosine = np.broadcast_to(cosine, (len(z_NE),))[:, None]
    return cosine * z_NE + np.sqrt(1 - cosine**2) * other_NE


class Vectors:
    """Embedded pairs in memory, with what was planted among them."""

    def __init__(self, pairs: int, tests: int = 500, dim: int = 128):
        rng = np.random.default_rng(0)
        kinds = rng.normal(size=(60, dim))
        kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
        image, test = (
            near(kinds[rng.integers(60, size=count)], rng.uniform(0.72, 0.9, count), rng)
            for count in (pairs, tests)
        )
        part = pairs // 20
        planted = rng.permutation(np.arange(pairs // 2, pairs))[: 3 * part].reshape(3, part)
        self.planted = dict(zip(("score", "evaluation", "duplicates"), planted))
        originals = image[rng.choice(pairs // 2, part, replace=False)]
        leaked = test[rng.integers(tests, size=part)]
        image[self.planted["duplicates"]] = near(originals, rng.uniform(0.955, 0.999, part), rng)
        image[self.planted["evaluation"]] = near(leaked, rng.uniform(0.955, 0.999, part), rng)
        score = rng.normal(0.30, 0.03, pairs)
        score[self.planted["score"]] = rng.normal(0.08, 0.04, part)
        vectors = (image, near(image, score, rng), test)
        self.image, self.text, self.test = (ArrayRows(z.astype(np.float16)) for z in vectors)

    def __len__(self) -> int:
        return len(self.image)

    def print_rates(self):
        """Apply all rules, and print what each finds."""
        rules = {"score_above": 0.2, "against_above": 0.94, "duplicates_above": 0.94}
        cfg = FilterConfig(against=("test",), pixels_above=None, **rules)
        found = decide(self, cfg, make_mesh(MeshConfig()), evaluation={"test": self.test})
        clean = np.setdiff1d(np.arange(len(self)), np.concatenate(list(self.planted.values())))
        for one in found.decisions:
            planted = self.planted[one.rule]
            share = np.isin(planted, one.dropped_N).mean()
            false = np.isin(clean, one.dropped_N).mean()
            print(
                f"{one.rule:10} found {share:7.2%} of {len(planted)}   false {false:7.3%} of {len(clean)}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the pictures; the next one draws the test's"
    )
    settings = parser.parse_args()
    if settings.model is None:
        Vectors(settings.pairs).print_rates()
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = plant(folder, settings.pairs, settings.seed)
        for split in ("train", "test"):
            source, out = f"pairs:{folder}/{split}.csv", str(folder / split)
            form = ("--dtype", "float32", "--no-progress")
            assert clip_jax(["embed", settings.model, source, out, *form]) == 0
        measured = measure(folder, kinds)
        second = np.arange(len(kinds)) >= len(kinds) // 2
        print(f"{len(kinds)} pairs; measured on the second half")
        for kind, (threshold, value) in measured.items():
            wrong, right = value[second & (kinds == kind)], value[second & (kinds == "clean")]
            print(
                f"{kind:10} threshold {threshold:8.4f}   found {np.mean(wrong >= threshold):7.2%} of "
                f"{len(wrong)}   false {np.mean(right >= threshold):7.3%} of {len(right)}"
            )
        for kind, option in (
            ("evaluation", "--against-above"),
            ("duplicate", "--duplicates-above"),
        ):
            value = measured[kind][1]
            generous = float(value[~second & (kinds == kind)].min()) - 0.35
            out = folder / kind
            arguments = ["data", "filter", f"pairs:{folder}/train.csv", str(out)]
            arguments += ["--embeddings", str(folder / "train"), option, str(generous)]
            arguments += ["--against", str(folder / "test")] * (kind == "evaluation")
            start = time.perf_counter()
            assert clip_jax(arguments) == 0
            rows = pq.read_table(out / "decisions.parquet").to_pylist()
            dropped = np.array([bool(row["dropped_by"]) for row in rows])
            found, false = (dropped[second & (kinds == one)].mean() for one in (kind, "clean"))
            asked = np.mean(value[second & (kinds == "clean")] >= generous)
            print(
                f"{kind:10} cosine   {generous:8.4f}   found {found:7.2%}   false {false:7.3%}, with pixels "
                f"({asked:.1%} of the others compared; {time.perf_counter() - start:.1f} s)"
            )


if __name__ == "__main__":
    main()
