"""Small stand-ins of the tasks' data, each in a layout that the real data come in."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from PIL import Image

from clip_jax.evaluation.bench.layouts import shipped_classes
from clip_jax.evaluation.bench.tasks import Task, read_suite

SIDE = 16
LABELS = (0, 1)  # of which there are images, however many classes have a name


def picture(seed: int, ending: str = "png") -> bytes:
    """An image whose color tells it from others."""
    rng = np.random.default_rng(seed)
    pixels_HWC = rng.integers(0, 256, 3) * np.ones((SIDE, SIDE, 1)) + rng.integers(
        0, 20, (SIDE, SIDE, 3)
    )
    file = io.BytesIO()
    form = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}[ending]
    Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8)).save(file, form)
    return file.getvalue()


# ------------------------------------------------------------------------------------ tars


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def write_tar(path: Path, samples: list[dict[str, bytes]], first: int = 0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples, start=first):
            for ending, content in members.items():
                info = tarfile.TarInfo(f"s{number:07d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_set(
    folder: Path, samples: list, *, classes=None, templates=None, kind=None, tars: int = 1
):
    """A set as CLIP_benchmark's webdataset_builder.py leaves it."""
    each = -(-len(samples) // tars)
    for number in range(tars):
        own = samples[number * each : (number + 1) * each]
        write_tar(folder / "test" / f"{number}.tar", own, number * each)
    (folder / "test" / "nshards.txt").write_text(f"{tars}\n")
    if classes is not None:
        (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
    if templates is not None:
        text = "".join(f"{template}\n" for template in templates)
        (folder / "zeroshot_classification_templates.txt").write_text(text)
    if kind is not None:
        (folder / "dataset_type.txt").write_text(f"{kind}\n")


def labelled(task: Task, seed: int, *, metadata=None, labels=LABELS, each: int = 2, ending="webp"):
    """`each` images of every label, with metadata where the task has groups."""
    samples = []
    for number in range(each * len(labels)):
        sample = {
            ending: picture(seed + number, ending),
            "cls": str(labels[number % len(labels)]).encode(),
        }
        if metadata is not None:
            sample["npy"] = npy(metadata(number))
        samples.append(sample)
    return samples


def tar_task(root: Path, task: Task, folder: str, seed: int, **options):
    classes = shipped_classes(task) or [f"thing {number}" for number in range(task.classes)]
    if task.subset or task.classes != len(classes):
        classes = list(classes)[: task.classes]
    samples = labelled(task, seed, **options)
    write_set(root / folder, samples, classes=classes, templates=["a photo of a {c}.", "{c}"])


def captioned(seed: int, count: int = 4) -> list[dict[str, bytes]]:
    return [
        {
            "jpg": picture(seed + n, "jpg"),
            "txt": f"number {n}\nthe {n}. picture\nstill {n}".encode(),
        }
        for n in range(count)
    ]


# ------------------------------------------------------------------------------------ TFDS


def prepare(root: Path, name: str, split: str, features: dict, examples: list[dict]):
    """Prepare a data set of this name with `tensorflow_datasets`."""
    base, _, config = name.partition("/")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = base
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            names = split.partition("[")[0].split("+")
            return {each: self._generate_examples(each) for each in names}

        def _generate_examples(self, each):
            yield from ((number, dict(example)) for number, example in enumerate(examples))

    builder = Builder(data_dir=root, file_format="array_record", config=config or None)
    builder.download_and_prepare()


def image_of(seed: int) -> io.BytesIO:
    return io.BytesIO(picture(seed, "png"))


IMAGE = tfds.features.Image(encoding_format="png")


def tfds_labelled(root: Path, task: Task, seed: int, *, labels=LABELS, names=None, each: int = 2):
    known = names or shipped_classes(task) or [f"thing_{number}" for number in range(task.classes)]
    count = 5 * each if "[" in task.split else each  # the last fifth is measured
    features = {
        "image": IMAGE,
        "label": tfds.features.ClassLabel(names=[_plain(n, i) for i, n in enumerate(known)]),
    }
    examples = [
        {"image": image_of(seed + number), "label": labels[number % len(labels)]}
        for number in range(count * len(labels))
    ]
    prepare(root, task.tfds, task.split, features, examples)


def _plain(name: str, number: int) -> str:
    return name.replace(" ", "_") or f"class_{number}"


def tfds_clevr(root: Path, seed: int):
    parts = {
        "color": tfds.features.ClassLabel(names=["gray", "red"]),
        "pixel_coords": tfds.features.Tensor(shape=(3,), dtype=np.float32),
    }
    features = {"image": IMAGE, "objects": tfds.features.Sequence(parts)}
    examples = [
        {
            "image": image_of(seed + number),
            "objects": [
                {"color": 0, "pixel_coords": np.array([1, 2, depth], np.float32)}
                for depth in [7.0 + number % 4] + [12.0] * (2 + number % 3)
            ],
        }
        for number in range(6)
    ]
    prepare(root, "clevr", "validation", features, examples)


def tfds_kitti(root: Path, seed: int):
    kinds = ["Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc"]
    parts = {
        "type": tfds.features.ClassLabel(names=kinds),
        "location": tfds.features.Tensor(shape=(3,), dtype=np.float32),
    }
    features = {"image": IMAGE, "objects": tfds.features.Sequence(parts)}
    ahead = [(0, 5.0), (1, 15.0), (2, 30.0), (3, 5.0)]  # the last is no vehicle
    examples = [
        {
            "image": image_of(seed + number),
            "objects": [{"type": kind, "location": np.array([0, 0, z], np.float32)}],
        }
        for number, (kind, z) in enumerate(ahead)
    ]
    prepare(root, "kitti", "test", features, examples)


def tfds_voc(root: Path, seed: int):
    kind = tfds.features.ClassLabel(names=[f"thing_{number}" for number in range(20)])
    features = {
        "image": IMAGE,
        "objects": tfds.features.Sequence({"label": kind, "bbox": tfds.features.BBoxFeature()}),
        "labels": tfds.features.Sequence(kind),
    }
    box = tfds.features.BBox(ymin=0.0, xmin=0.25, ymax=0.5, xmax=1.0)
    examples = [
        {
            "image": image_of(seed + number),
            "objects": [{"label": number % 3, "bbox": box}, {"label": 2, "bbox": box}],
            "labels": sorted({number % 3, 2}),
        }
        for number in range(4)
    ]
    prepare(root, "voc/2007", "test", features, examples)


def tfds_coco(root: Path, seed: int):
    texts = tfds.features.Sequence(
        {"id": tfds.features.Scalar(np.int64), "text": tfds.features.Text()}
    )
    examples = [
        {
            "image": image_of(seed + number),
            "captions": [{"id": n, "text": f"caption {n} of {number}"} for n in range(6)],
        }
        for number in range(4)
    ]
    prepare(root, "coco_captions/2014", "test", {"image": IMAGE, "captions": texts}, examples)


# ----------------------------------------------------------------------- tables and questions


def arrow(path: Path, rows: list[dict]):
    """A table as the `datasets` library keeps it in its cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def parquet(path: Path, rows: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def cell(seed: int) -> dict:
    return {"bytes": picture(seed, "jpg"), "path": f"{seed}.jpg"}


def flickr(root: Path, seed: int):
    rows = [
        {"image": cell(seed + n), "caption": [f"caption {c} of {n}" for c in range(5)]}
        for n in range(4)
    ]
    folder = root / "hf_cache/nlphuji___flickr_1k_test_image_text_retrieval/TEST/1.1.0/0a1b"
    arrow(folder / "flickr_1k_test_image_text_retrieval-test.arrow", rows)


def winogavil_rows(seed: int) -> list[dict]:
    words = [f"word{number}" for number in range(14)]
    rows = []
    for size, cue in ((5, "Egg"), (6, "moon"), (10, "tree"), (12, "apple")):
        rows.append({
            "candidates": words[:size],
            "candidate_images": [cell(seed + number) for number in range(size)],
            "cue": cue,
            "associations": [words[1], words[3]],
        })  # fmt: skip
    return rows


def winogavil(root: Path, seed: int):
    arrow(
        root / "hf_cache/nlphuji___winogavil/TEST/1.1.0/0a1b/winogavil-test.arrow",
        winogavil_rows(seed),
    )


def winoground(root: Path, seed: int):
    rows = [
        {
            "id": n, "image_0": cell(seed + 2 * n), "image_1": cell(seed + 2 * n + 1),
            "caption_0": f"an old person kisses a young person {n}",
            "caption_1": f"a young person kisses an old person {n}",
        }
        for n in range(3)
    ]  # fmt: skip
    parquet(root / "winoground/data/test-00000-of-00001.parquet", rows)


def sugar_crepe(root: Path, seed: int):
    names = [
        task.name for task in read_suite("choice").tasks if task.name.startswith("sugar_crepe/")
    ]
    (root / "sugar_crepe/val2017").mkdir(parents=True)
    for n in range(3):
        (root / f"sugar_crepe/val2017/{n:012d}.jpg").write_bytes(picture(seed + n, "jpg"))
    for name in names:
        rows = {
            str(3 * n): {
                "filename": f"{n:012d}.jpg", "caption": f"a dog {n}", "negative_caption": f"a cat {n}"
            }
            for n in range(3)
        }  # fmt: skip
        (root / f"{name}.json").write_text(json.dumps(rows))


def aro(root: Path, seed: int):
    (root / "aro/images").mkdir(parents=True)
    for n in range(3):
        (root / f"aro/images/{n}.jpg").write_bytes(picture(seed + n, "jpg"))
    rows = [
        {
            "image_path": f"{n}.jpg", "true_caption": f"the horse eats the grass {n}",
            "false_caption": f"the grass eats the horse {n}", "bbox_x": 2, "bbox_y": 3, "bbox_w": 9,
            "bbox_h": 8,
        }
        for n in range(3)
    ]  # fmt: skip
    relation = [row | {"relation_name": "eating" if n else "on"} for n, row in enumerate(rows)]
    attributes = [row | {"attributes": ["red", "white"]} for row in rows]
    (root / "aro/visual_genome_relation.json").write_text(json.dumps(relation))
    (root / "aro/visual_genome_attribution.json").write_text(json.dumps(attributes))


def mmvp_vlm(root: Path, seed: int):
    folder = root / "mmvp_vlm"
    kinds = ["Color and Appearance", "Quantity and Count"]
    folder.mkdir(parents=True)
    with (folder / "Questions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Question ID", "Type", "Statement"])
        for n in range(4):
            kind = kinds[n // 2]
            rows.writerow([n + 1, kind, f"statement {n}"])
            place = folder / "MLLM_VLM Images" / kind
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{n + 1}.jpg").write_bytes(picture(seed + n, "jpg"))


# ---------------------------------------------------------------------------------- suites

TFDS_TASKS = {"vtab/caltech101", "vtab/cifar100", "vtab/dtd", "vtab/eurosat", "vtab/svhn", "vtab/pcam",
              "mnist"}  # fmt: skip
METADATA = {
    "wilds/iwildcam": lambda n: [n, 0, 2013, 1, 1, 1, 1, 1, n % 2],
    "wilds/camelyon17": lambda n: [0, n % 3, n % 2],
    "wilds/fmow": lambda n: [n % 2, 2017, n % 2],
    "fairness/dollar_street": lambda n: [n % 2, 0, 1],
    "fairness/geode": lambda n: [n % 2, 7],
}


def tfds_imagenet(root: Path, seed: int):
    """ImageNet v2, and ImageNet-A, whose labels are 200 of ImageNet's 1000."""
    by_name = {task.name: task for task in read_suite("datacomp38").tasks}
    names = [f"n{number:08d}" for number in range(1000)]
    tfds_labelled(root, by_name["imagenetv2"], seed, names=names)
    tfds_labelled(root, by_name["imagenet-a"], seed, names=names, labels=range(0, 1000, 5), each=1)


def datacomp(root: Path):
    """All 38 tasks of DataComp's suite."""
    for number, task in enumerate(read_suite("datacomp38").tasks):
        seed, dashed = 100 * number, task.name.replace("/", "-")
        if task.name in TFDS_TASKS:
            tfds_labelled(root, task, seed)
        elif task.derive == "clevr_count":
            tfds_clevr(root, seed)  # of both of its tasks
        elif task.derive == "kitti_distance":
            tfds_kitti(root, seed)
        elif task.derive == "voc_objects":
            tfds_voc(root, seed)
        elif task.name in METADATA:
            name = dashed.removeprefix("fairness-")
            tar_task(root, task, f"wds_{name}_test", seed, metadata=METADATA[task.name], each=4)
        elif task.kind == "classification" and not task.derive:
            folder = (f"wds/{task.name}", f"wds_{dashed}", f"wds_{dashed}_test")[number % 3]
            tar_task(root, task, folder, seed, ending=("webp", "png", "jpg")[number % 3])
    tfds_coco(root, 9000)
    flickr(root, 9100)
    winogavil(root, 9200)
