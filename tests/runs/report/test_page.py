"""The report of whole, partial and damaged runs."""

import dataclasses
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from clip_jax.config import TrainConfig
from clip_jax.evaluation.annotations import read_annotations
from clip_jax.evaluation.examples import choose_examples
from clip_jax.runs.report.page import LISTED, duration, number, percent, write_report
from clip_jax.runs.results import ClassResult, Evaluation, save_evaluation, save_snapshot

NASTY = '<script>alert("x")</script> & "quoted" \' ☃'
VOID = {"meta", "link", "img", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Text, tags and attributes; complains about tags that do not match."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(file) -> Page:
    return Page(file.read_text())


def write_config(folder):
    settings = dataclasses.asdict(TrainConfig(steps=100))
    (folder / "config.json").write_text(json.dumps(settings))


def write_metrics(folder, steps=100):
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(10, steps + 1, 10):
            values = {"loss": 50 / step, "images_per_second": 900.0, "cosine_pairs": 0.5}
            file.write(json.dumps({"step": step, **values}) + "\n")
        file.write('{"step": 110, "loss')


@pytest.fixture
def evaluation(source, unit):
    annotations = read_annotations(source, range(len(source)))
    annotations[3] = annotations[3]._replace(captions=(NASTY,))
    annotations = [a._replace(captions=(NASTY + str(a.index),)) for a in annotations]
    z_NE = unit(0, len(source), 8)
    captions = [a.captions[0] for a in annotations]
    owner = np.arange(len(source))
    examples = choose_examples(z_NE, z_NE, owner, captions, annotations, source, 10_000)
    metrics = {f"eval/zero_shot_{group}{name}": 0.75 for group in ("", "seen_", "held_out_")
               for name in ("top1", "top5", "mean_per_class")}  # fmt: skip
    metrics |= {"eval/zero_shot_chance": 0.25, "eval/text_to_image_recall_at_1": 0.5}
    classes = [
        ClassResult(name=f"<b>{i}</b>", group=("seen", "held_out")[i % 2], images=4, accuracy=i / 4)
        for i in range(4)
    ]
    return Evaluation(metrics=metrics, classes=tuple(classes), examples=examples)


@pytest.fixture
def run(tmp_path, evaluation):
    folder = tmp_path / "my_run"
    folder.mkdir()
    write_config(folder)
    write_metrics(folder)
    for step in (0, 50, 100):
        save_snapshot(folder, step, np.eye(6) * step / 100)
    save_evaluation(folder, 100, evaluation)
    return folder


def test_utilisation_is_shown_where_it_is_known(run):
    assert "utilisation" not in read(write_report(run)).text
    line = {"step": 90, "images_per_second": 900.0, "mfu": 0.4567}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert "Model FLOPs utilisation 45.7 %" in read(write_report(run)).text


def test_other_data_sets_have_their_figures_beside_the_first_ones(run, evaluation):
    more = {"eval/coco/zero_shot_top1": 0.123, "eval/coco/text_to_image_recall_at_1": 0.456}
    more["eval/coco/text_to_image_recall_at_1_chance"] = 0.01
    metrics = evaluation.metrics | more
    save_evaluation(run, 100, dataclasses.replace(evaluation, metrics=metrics))
    text = read(write_report(run)).text
    assert "zero-shot accuracy on coco 12.3 %" in text
    assert "captions that find their image first, of coco 45.6 % guessing: 1.0 %" in text


def test_what_has_no_part_of_its_own_is_among_the_facts(run, evaluation):
    metrics = evaluation.metrics | {"eval/modality_gap": 1.2345, "eval/loss": 2.0}
    save_evaluation(run, 100, dataclasses.replace(evaluation, metrics=metrics))
    text = read(write_report(run)).text
    assert "modality gap 1.23" in text and "zero shot" not in text


def test_a_whole_run_has_all_parts(run):
    page = read(write_report(run, facts={"Devices": "8 x CPU"}, goodput={"waiting_for_data": 63.0}))
    headings = ["The diagonal lights up", "Close up", "Zero-shot classification", "Retrieval"]
    headings += ["Training", "The run"]
    for said in (*headings, "my_run", "75.0 %", "held-out", "step 50", "Devices 8 x CPU"):
        assert said in page.text
    assert "waiting for data 1 min 3 s 100.0 %" in page.text
    assert page.tags.count("article") == 12


def test_captions_and_names_are_escaped(run):
    html = write_report(run).read_text()
    assert "<script" not in html and "<b>0</b>" not in html
    assert "&lt;b&gt;0&lt;/b&gt;" in html
    assert NASTY in read(run / "report.html").text


def test_nothing_is_loaded_from_elsewhere(run):
    html = write_report(run).read_text()
    page = Page(html)
    links = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href", "data")]
    assert links and all(value.startswith(("data:", "#")) for value in links)
    assert set(re.findall(r"https?://[^\s\"'<>]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_every_picture_is_told_in_words_and_every_id_is_unique(run):
    page = read(write_report(run))
    images = page.tags.count("img")
    assert images == sum(
        bool(v) for tag, name, v in page.attributes if (tag, name) == ("img", "alt")
    )
    labels = [v for tag, name, v in page.attributes if (tag, name) == ("div", "aria-label")]
    assert any(label.startswith("Loss: training from 5 at step 10 to 0.5") for label in labels)
    ids = [v for _, name, v in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)


def test_the_matrices_are_on_one_scale_of_colors(tmp_path):
    save_snapshot(tmp_path, 0, np.zeros((4, 4)))
    save_snapshot(tmp_path, 9, np.eye(4))
    html = write_report(tmp_path).read_text()
    first, last = re.findall(r'<img src="(data:image/png[^"]+)', html)
    save_snapshot(tmp_path, 9, np.zeros((4, 4)))
    assert (
        re.findall(r'<img src="(data:image/png[^"]+)', write_report(tmp_path).read_text())[1]
        == first
    )
    assert first != last


@pytest.mark.parametrize("steps", [[0], [0, 10], [0, 10, 20, 29, 40, 60]])
def test_first_middle_and_last_snapshot_are_shown(tmp_path, steps):
    for step in steps:
        save_snapshot(tmp_path, step, np.eye(3))
    page = read(write_report(tmp_path))
    shown = [int(step) for step in re.findall(r"step (\d+) matching", page.text)]
    assert shown == {1: [0], 2: [0, 10], 6: [0, 29, 60]}[len(steps)]


def test_an_empty_folder_has_a_report_too(tmp_path):
    assert "not trained yet" in read(write_report(tmp_path)).text


@pytest.mark.parametrize(
    "missing", ["config.json", "metrics.jsonl", "snapshots", "evaluation.json"]
)
def test_a_part_that_is_missing_is_left_out(run, missing):
    (run / missing).rename(run / "away")
    page = read(write_report(run))
    parts = {"metrics.jsonl": "Training", "snapshots": "The diagonal lights up"}
    parts |= {"evaluation.json": "Retrieval", "config.json": "Peak learning rate"}
    for file, heading in parts.items():
        there = any(text.strip() == heading for text in page.texts)
        assert there == (file != missing)


@pytest.mark.parametrize("content", ["", "[1]", '{"data": 3, "model": null, "loss": []}'])
def test_damaged_settings_do_not_keep_the_report_from_being_written(run, content):
    (run / "config.json").write_text(content)
    assert "The diagonal lights up" in read(write_report(run)).text


def test_an_evaluation_of_a_model_that_gives_no_numbers_is_reported(run, evaluation):
    close_up = evaluation.examples.close_up
    nothing = tuple(tuple(float("nan") for _ in row) for row in close_up.cosines)
    examples = dataclasses.replace(
        evaluation.examples, close_up=dataclasses.replace(close_up, cosines=nothing)
    )
    save_evaluation(run, 100, dataclasses.replace(evaluation, examples=examples))
    save_snapshot(run, 100, np.full((6, 6), np.nan))
    assert "nan" in read(write_report(run)).text


def test_of_very_many_classes_the_best_and_the_worst_are_listed(tmp_path):
    classes = tuple(
        ClassResult(name=f"class {i}", group=None, images=1, accuracy=i / 999) for i in range(1000)
    )
    names = ("top1", "top5", "mean_per_class")
    metrics = {f"eval/zero_shot_{name}": 0.5 for name in names}
    save_evaluation(tmp_path, 1, Evaluation(metrics=metrics, classes=classes))
    page = read(write_report(tmp_path))
    assert "class 999" in page.text and "class 0" in page.text and "class 500" not in page.text
    assert page.tags.count("li") == 2 * LISTED


def test_the_same_run_gives_the_same_page(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_a_long_run_is_reported_in_three_seconds(run):
    write_report(run)  # loads matplotlib
    write_metrics(run, steps=500_000)
    start = time.process_time()
    write_report(run)
    assert time.process_time() - start < 3


def test_values_are_written_as_a_person_would():
    assert [percent(x) for x in (0, 0.934, 1, 0.0002, 0.9996)] == [
        "0.0 %", "93.4 %", "100.0 %", "0.02 %", "99.96 %",
    ]  # fmt: skip
    assert [number(x) for x in (0, 0.68512, 12_345.6, 3.0)] == ["0", "0.685", "12,346", "3"]
    assert [duration(x) for x in (0.42, 12, 221, 15_120)] == [
        "0.4 s", "12 s", "3 min 41 s", "4 h 12 min",
    ]  # fmt: skip
