"""Models on suites: results, failures, caches, files of results, the page."""

import csv
import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import stand_ins

from clip_jax import sharding
from clip_jax.config import DataConfig, EvaluationConfig, MeshConfig
from clip_jax.evaluation.bench import forms
from clip_jax.evaluation.bench.cache import model_fingerprint
from clip_jax.evaluation.bench.report import Report
from clip_jax.evaluation.bench.run import BenchConfig, run
from clip_jax.evaluation.bench.tasks import Suite, read_suite
from clip_jax.evaluation.encode import Encoder
from clip_jax.evaluation.evaluators import linear_probe

TASKS = {task.name: task for name in ("datacomp38", "clip_benchmark", "choice")
         for task in read_suite(name).tasks}  # fmt: skip
AVERAGES = {"Both": ("mnist", "wilds/fmow"), "More": ("mnist", "gtsrb")}
NAMES = ("mnist", "wilds/fmow", "gtsrb", "misc/winogavil", "winoground")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A few tasks, one of whose labels has no class, one of which is missing."""
    root = tmp_path_factory.mktemp("tasks")
    digits = [str(number) for number in range(10)]
    samples = stand_ins.labelled(TASKS["mnist"], 0, labels=range(10))
    stand_ins.write_set(root / "wds_mnist", samples, classes=digits, templates=["{c}"], tars=2)
    fmow = {"metadata": stand_ins.METADATA["wilds/fmow"], "each": 4}
    stand_ins.tar_task(root, TASKS["wilds/fmow"], "wds_wilds-fmow_test", 100, **fmow)
    samples = [
        *stand_ins.labelled(TASKS["gtsrb"], 200),
        {"png": stand_ins.picture(0), "cls": b"43"},
    ]
    names = [f"sign {number}" for number in range(43)]
    stand_ins.write_set(root / "wds_gtsrb", samples, classes=names, templates=["{c}"])
    stand_ins.winogavil(root, 300)
    return root


@pytest.fixture
def bench(root, tmp_path, loaded):
    """Runs a bench of these tasks; the results lie in `tmp_path`."""

    def bench_(
        *names, models=None, mesh=None, averages=None, probes=(), data=None, place=root, **settings
    ):
        suite = Suite(name="mine", tasks=tuple(TASKS[n] for n in names), averages=averages or {})
        config = BenchConfig(
            roots=(str(place),),
            out=str(tmp_path / "out"),
            cfg=EvaluationConfig(batch_size=8, **settings),
            data=DataConfig(data_dir=str(tmp_path / "data"), threads=1, **data or {}),
            save_every=8,
            probes=probes,
        )
        models = models or {"tiny": loaded}
        lazy = {name: (lambda model=model: model) for name, model in models.items()}
        return run(lazy, suite, mesh or sharding.make_mesh(MeshConfig()), config)

    return bench_


def no_images(monkeypatch):
    """From now on no image can be embedded."""

    def refuse(*args, **kwargs):
        raise AssertionError("images are embedded again")

    monkeypatch.setattr(Encoder, "encode_images", refuse)


def test_failures_and_missing_data_leave_the_other_tasks_alone(bench):
    report = bench(*NAMES, averages=AVERAGES)
    assert report.results.keys() == {("tiny", n) for n in ("mnist", "wilds/fmow", "misc/winogavil")}
    line = report.failed["tiny", "gtsrb"]
    assert re.search(r"wds_gtsrb/test/0\.tar: s0000004 does not fit the task: label-43-of-43", line)
    assert "facebook/winoground" in report.missing["winoground"]
    text = forms.text(report)
    assert "No data for 1 of 5 tasks" in text and "1 failed:" in text
    values = {name: report.results["tiny", name]["value"] for name in ("mnist", "wilds/fmow")}
    averages = forms.averages(report, "tiny")
    assert averages["Both"].value == pytest.approx(np.mean(list(values.values())))
    assert str(averages["More"]) == f"{values['mnist']:.4f} (1/2)"  # never silently of fewer tasks


def test_metrics_equal_those_counted_from_embeddings(bench, root, loaded):
    found = bench("wilds/fmow").results["tiny", "wilds/fmow"]
    groups = [
        value for name, value in found["metrics"].items() if re.fullmatch(r".*_group_\d_top1", name)
    ]
    assert len(groups) == 2 and found["value"] == pytest.approx(min(groups))
    assert found["samples"] == 8
    wrong = sum(pair["count"] for pair in found["confusions"])
    assert wrong == round(8 * (1 - found["metrics"]["zero_shot_top1"]))
    assert all(
        str(index) in found["pictures"] for pair in found["confusions"] for index in pair["shown"]
    )


def test_a_second_start_takes_everything_from_the_cache(bench, monkeypatch):
    before = bench("mnist", "misc/winogavil")
    no_images(monkeypatch)
    assert bench("mnist", "misc/winogavil").results == before.results


def test_other_weights_data_or_prompts_are_measured_again(
    bench, root, tmp_path, loaded, other_loaded, monkeypatch
):
    bench("mnist")
    digest = model_fingerprint(loaded.model.config, loaded.variables)
    assert digest == model_fingerprint(loaded.model.config, jax.device_get(loaded.variables))
    assert digest != model_fingerprint(other_loaded.model.config, other_loaded.variables)
    templates = root / "wds_mnist" / "zeroshot_classification_templates.txt"
    before = templates.read_text()
    no_images(monkeypatch)
    with pytest.raises(AssertionError, match="embedded again"):
        bench("mnist", models={"tiny": other_loaded})
    try:
        templates.write_text("the digit {c}\n")
        bench("mnist")  # other prompts need other texts, and the same images
        kept = list((tmp_path / "out/cache" / digest).glob("result-*.json"))
        assert len(kept) == 2
    finally:
        templates.write_text(before)
    with pytest.raises(AssertionError, match="embedded again"):
        bench("mnist", max_samples=5)


def test_images_that_are_kept_apart_are_measured_again(bench, tmp_path, monkeypatch):
    bench("mnist")
    no_images(monkeypatch)
    bench("mnist", data={"group_rows": False})  # of the same embeddings
    assert len(list((tmp_path / "out/cache").rglob("result-*.json"))) == 2


def test_the_files_of_two_tasks_stay_two_whatever_the_model_is_called(tmp_path):
    model, names = "m" * 300, ("mnist", "gtsrb")
    results = {
        (model, name): {"task": name, "kind": "classification", "metrics": {}} for name in names
    }
    for name in names:
        forms._clip_benchmark(
            tmp_path, model, forms.file_names([model])[model], results[model, name]
        )
    assert len(list(tmp_path.iterdir())) == 2


def test_an_average_is_over_what_was_measured_and_says_of_how_much():
    suite = Suite(name="s", tasks=(), averages={"All": ("a", "b", "c"), "None": ("c",)})
    results = {("m", "a"): {"value": 0.4}, ("m", "b"): {"value": 0.8}, ("other", "c"): {"value": 1}}
    averages = forms.averages(Report(suite, ("m", "other"), results, {}, {}), "m")
    assert {name: str(found) for name, found in averages.items()} == {
        "All": "0.6000 (2/3)", "None": "-",
    }  # fmt: skip


def test_another_group_of_a_task_is_read_again(bench, monkeypatch):
    bench("wilds/fmow")
    task = dataclasses.replace(TASKS["wilds/fmow"], group=1)
    monkeypatch.setitem(TASKS, "wilds/fmow", task)
    no_images(monkeypatch)
    with pytest.raises(AssertionError, match="embedded again"):
        bench("wilds/fmow")


def test_other_files_of_as_many_images_are_embedded_again(bench, tmp_path, monkeypatch):
    digits = [str(number) for number in range(10)]
    for tars in (1, 2):
        samples = stand_ins.labelled(TASKS["mnist"], 0, labels=range(10))
        folder = tmp_path / f"{tars}/wds_mnist"
        stand_ins.write_set(folder, samples, classes=digits, templates=["{c}"], tars=tars)
    bench("mnist", place=tmp_path / "1")
    no_images(monkeypatch)
    with pytest.raises(AssertionError, match="embedded again"):
        bench("mnist", place=tmp_path / "2")


def test_a_result_is_not_taken_where_images_are_read_in_another_way(bench, tmp_path):
    samples = stand_ins.labelled(TASKS["mnist"], 0, labels=range(10))
    samples[3]["webp"] = b"broken"
    digits = [str(number) for number in range(10)]
    stand_ins.write_set(tmp_path / "wds_mnist", samples, classes=digits, templates=["{c}"])
    cut = {"place": tmp_path, "data": {"max_bad_share": 0.5}}
    assert bench("mnist", **cut).results["tiny", "mnist"]["samples"] == len(samples) - 1
    for changes in ({"max_bad_share": 0.0}, {"max_bad_share": 0.5, "max_image_pixels": 10}):
        failed = bench("mnist", **cut | {"data": changes}).failed
        assert "samples cannot be used" in failed["tiny", "mnist"]


def test_images_that_a_library_stumbles_over_are_bad_samples(bench, tmp_path):
    stand_ins.aro(tmp_path, 5)
    name = "aro/visual_genome_relation"
    images = sorted((tmp_path / "aro/images").iterdir())
    png = stand_ins.picture(0)
    # A shorter header: Pillow raises a ValueError, and no OSError.
    images[0].write_bytes(png[:11] + bytes([png[11] ^ 1]) + png[12:])
    report = bench(name, place=tmp_path, data={"max_bad_share": 0.5})
    assert report.results["tiny", name]["metrics"]["choice_questions"] == 2
    failed = bench(name, place=tmp_path, data={"max_bad_share": 0.0}).failed["tiny", name]
    assert "1 of 3 samples cannot be used" in failed and "unreadable-ValueError" in failed


def test_a_model_whose_embeddings_are_not_finite_fails(bench, loaded):
    variables = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), loaded.variables)
    report = bench("mnist", models={"nan": loaded._replace(variables=variables)})
    assert "embeddings of 20 of 20 images" in report.failed["nan", "mnist"]


def test_models_whose_names_look_alike_have_files_of_their_own(bench, tmp_path, loaded):
    models = {"a/b": loaded, "a_b": loaded}
    bench("mnist", models=models)
    found = [json.loads(path.read_text()) for path in (tmp_path / "out/clip_benchmark").iterdir()]
    assert {entry["model"] for entry in found} == models.keys()
    assert len(list((tmp_path / "out/datacomp").iterdir())) == 2


def test_a_bench_that_is_cut_off_goes_on_within_a_task(bench, monkeypatch):
    embedded, whole = [], Encoder.encode_images

    def dies(self, batches, **kwargs):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(1)
        return whole(self, batches, **kwargs)

    monkeypatch.setattr(Encoder, "encode_images", dies)
    with pytest.raises(KeyboardInterrupt):  # of three parts of 8, 8 and 4 images
        bench("mnist")
    embedded[:] = [1]
    assert bench("mnist").results["tiny", "mnist"]["samples"] == 20  # one more part is enough


def test_one_device_and_eight_find_the_same(bench, tmp_path):
    many = bench("mnist", "misc/winogavil").results
    (tmp_path / "out").rename(tmp_path / "eight")
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    for key, found in bench("mnist", "misc/winogavil", mesh=one).results.items():
        assert found["metrics"] == pytest.approx(many[key]["metrics"], abs=1e-6)


def test_results_are_written_in_the_forms_of_others(bench, tmp_path, loaded, other_loaded):
    report = bench("mnist", "misc/winogavil", models={"a/b": loaded, "other": other_loaded})
    out = tmp_path / "out"
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    main = [row for row in rows if row["main"] == "1"]
    assert {(row["model"], row["dataset"]) for row in main} == report.results.keys()
    assert float(main[0]["value"]) == report.results["a/b", "mnist"]["value"]
    lines = (out / "datacomp" / "a_b" / "eval_results.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert (first["key"], first["dataset"]) == ("mnist", "MNIST")
    assert first["metrics"]["main_metric"] == first["metrics"]["acc1"]
    assert "jaccard_score_10-12" in json.loads(lines[1])["metrics"]
    entry = json.loads(
        (out / "clip_benchmark" / "mnist_other_en_zeroshot_classification.json").read_text()
    )
    assert entry["task"] == "zeroshot_classification" and entry["dataset"] == "wds/mnist"
    assert {"acc1", "acc5", "mean_per_class_recall"} <= entry["metrics"].keys()


def test_the_page_shows_all_models_and_needs_no_other_file(
    bench, tmp_path, loaded, other_loaded, root
):
    names = root / "wds_mnist" / "classnames.txt"
    before = names.read_text()
    try:
        names.write_text(before.replace("7", "<script>seven"))
        bench(*NAMES, models={"first": loaded, "other": other_loaded})
    finally:
        names.write_text(before)
    page = (tmp_path / "out" / "bench.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;seven" in page
    assert page.count("Taken for each other") >= 2 and "data:image/webp;base64," in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert 'class="bar b1"' in page and "does not fit the task" in page


def test_classes_of_imagenet_that_do_not_occur_are_left_out(tmp_path, loaded):
    stand_ins.tfds_imagenet(tmp_path, 0)
    (tmp_path / "short.txt").write_text("{c}\n")
    task = dataclasses.replace(TASKS["imagenet-a"], templates=str(tmp_path / "short.txt"))
    config = BenchConfig(
        roots=(str(tmp_path),), out=str(tmp_path / "out"), cfg=EvaluationConfig(batch_size=64),
        data=DataConfig(data_dir=str(tmp_path), threads=1),
    )  # fmt: skip
    suite = Suite(name="one", tasks=(task,), averages={})
    mesh = sharding.make_mesh(MeshConfig())
    found = run({"tiny": lambda: loaded}, suite, mesh, config).results["tiny", "imagenet-a"]
    assert found["metrics"]["zero_shot_chance"] == pytest.approx(1 / 200)
    assert [each["name"] for each in found["classes"]][:2] == ["tench", "electric ray"]


def test_probes_are_trained_on_the_training_split_where_there_is_one(bench, root, monkeypatch):
    monkeypatch.setattr(linear_probe, "EPOCHS", 2)
    samples = stand_ins.labelled(TASKS["mnist"], 500, labels=range(10), each=3)
    train = root / "wds_mnist" / "train"
    stand_ins.write_tar(train / "0.tar", samples)
    try:
        report = bench("mnist", "wilds/fmow", probes=("knn", "few_shot", "linear_probe"))
    finally:
        shutil.rmtree(train)
    found = report.results["tiny", "mnist"]["metrics"]
    assert {"knn_top1", "few_shot_1_top1", "linear_probe_top1"} <= found.keys()
    assert "knn_top1" not in report.results["tiny", "wilds/fmow"]["metrics"]
    shown = [row for row in forms.table(report) if row[1] in ("knn_top1", "linear_probe_top1")]
    assert shown == [
        ["MNIST", name, f"{found[name]:.4f}"] for name in ("knn_top1", "linear_probe_top1")
    ]
