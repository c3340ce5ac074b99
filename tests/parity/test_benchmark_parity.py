"""Our metrics against CLIP_benchmark's own functions, on the same embeddings of a random model."""

import types

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import (
    image_caption_selection,
    linear_probe,
    zeroshot_classification,
    zeroshot_retrieval,
)

from clip_jax import sharding
from clip_jax.config import MeshConfig
from clip_jax.evaluation.evaluators import linear_probe as ours
from clip_jax.evaluation.evaluators.choice import answered
from clip_jax.evaluation.evaluators.multilabel import average_precision
from clip_jax.evaluation.evaluators.retrieval import retrieval
from clip_jax.evaluation.evaluators.zero_shot import zero_shot
from clip_jax.evaluation.ranking import rank

# Its loader pins memory, which PyTorch warns of without a GPU.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory'")
N, S, E = 400, 12, 16


def unit(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(MeshConfig())


@pytest.fixture(autouse=True)
def numpy_of_today(monkeypatch):
    """Its accuracy takes float() of an array of one number, which NumPy 2.4 refuses."""
    monkeypatch.setattr(
        zeroshot_classification, "float", lambda x: np.asarray(x).item(), raising=False
    )


class Embedded:
    """A model of CLIP_benchmark's kind whose images and texts are embeddings already."""

    @staticmethod
    def encode_image(images):
        return images.reshape(len(images), -1)

    @staticmethod
    def encode_text(texts):
        return texts


class Loader(list):
    """Batches, with the names of classes where CLIP_benchmark looks for them."""

    def __init__(self, batches, classes=()):
        super().__init__(batches)
        self.dataset = types.SimpleNamespace(classes=classes)


def batches(*columns, size=64):
    return [
        tuple(column[at : at + size] for column in columns)
        for at in range(0, len(columns[0]), size)
    ]


def classification(images, targets, z_class_SE):
    """CLIP_benchmark's metrics, with a prompt of its own for each class."""
    names = [str(label) for label in range(len(z_class_SE))]

    def tokenizer(texts):
        return torch.from_numpy(z_class_SE[[int(text) for text in texts]])

    loader = Loader(batches(torch.from_numpy(images), torch.from_numpy(targets)), names)
    return zeroshot_classification.evaluate(
        Embedded, loader, tokenizer, names, ["{c}"], "cpu", amp=False
    )


def test_classification_is_the_same(mesh):
    z_class_SE, label_N = unit(0, S, E), np.random.default_rng(1).integers(0, S, N)
    z_NE = unit(2, N, E) + 0.5 * z_class_SE[label_N]
    z_NE /= np.linalg.norm(z_NE, axis=1, keepdims=True)
    theirs = classification(z_NE, label_N, z_class_SE)
    ranks = rank(z_NE, label_N, z_class_SE, np.arange(S), mesh=mesh)
    found = zero_shot(ranks, label_N)
    assert found["top1"] == pytest.approx(theirs["acc1"], abs=1e-4)
    assert found["top5"] == pytest.approx(theirs["acc5"], abs=1e-4)
    assert found["mean_per_class"] == pytest.approx(theirs["mean_per_class_recall"], abs=1e-4)


def test_mean_average_precision_is_the_same():
    z_class_SE, z_NE = unit(0, S, E), unit(2, N, E)
    shown_NS = (np.random.default_rng(3).random((N, S)) < 0.2).astype(np.int64)
    theirs = classification(z_NE, shown_NS, z_class_SE)["mean_average_precision"]
    found = [average_precision(z_NE @ z_class_SE[s], shown_NS[:, s] > 0) for s in range(S)]
    assert np.mean(found) == pytest.approx(theirs, abs=1e-4)


def test_retrieval_with_several_captions_is_the_same(mesh):
    z_image_NE = unit(0, N, E)
    z_text_ME = unit(1, 5 * N, E) + 0.4 * np.repeat(z_image_NE, 5, axis=0)
    z_text_ME /= np.linalg.norm(z_text_ME, axis=1, keepdims=True)
    texts = [list(range(5 * n, 5 * n + 5)) for n in range(N)]

    def tokenizer(numbers):
        return torch.from_numpy(z_text_ME[numbers])

    loader = Loader(batches(torch.from_numpy(z_image_NE), texts))
    theirs = zeroshot_retrieval.evaluate(
        Embedded, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    found = retrieval(z_image_NE, z_text_ME, np.repeat(np.arange(N), 5), mesh=mesh)
    for k in (1, 5, 10):
        ours_ = found[f"text_to_image_recall_at_{k}"], found[f"image_to_text_recall_at_{k}"]
        assert ours_[0] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-4)
        assert ours_[1] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-4)


@pytest.mark.parametrize("images", [1, 2])
def test_choices_are_the_same(images):
    z_image = unit(0, N, images, E)
    z_text = unit(1, N, 2, E)
    z_text[:, :images] += 0.3 * z_image
    texts = [[2 * n, 2 * n + 1] for n in range(N)]

    def tokenizer(numbers):
        return torch.from_numpy(z_text.reshape(-1, E)[numbers])

    pictures = torch.from_numpy(z_image).reshape(N, images, E, 1, 1)
    loader = Loader(batches(pictures, texts))
    theirs = image_caption_selection.evaluate(Embedded, loader, tokenizer, "cpu", amp=False)
    z_text /= np.linalg.norm(z_text, axis=-1, keepdims=True)
    right = tuple((i, i) for i in range(images))
    found = [answered(z_image[n] @ z_text[n].T, right) for n in range(N)]
    assert np.mean([each["text"] for each in found]) == pytest.approx(theirs["text_acc"], abs=1e-4)
    if images == 2:
        assert np.mean([f["image"] for f in found]) == pytest.approx(theirs["image_acc"], abs=1e-4)
        assert np.mean([f["group"] for f in found]) == pytest.approx(theirs["acc"], abs=1e-4)


def test_the_linear_probe_is_within_two_thousandths(tmp_path, mesh, monkeypatch):
    """Two seeds of CLIP_benchmark's own differ by up to two thousandths on 3,000 images, ours by as much."""
    for kind in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(kind, "cuda", lambda self: self)  # it insists on CUDA
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args: self)
    differences = [probed(seed, tmp_path / str(seed), mesh) for seed in range(5)]
    assert np.abs(np.mean(differences)) < 0.001, differences
    assert np.abs(differences).max() < 0.003, differences


def probed(seed: int, folder, mesh) -> float:
    """By how much our accuracy is above CLIP_benchmark's."""
    rng = np.random.default_rng(seed)
    center_SE = unit(seed, S, E)
    label = rng.integers(0, S, 6000)
    z = (center_SE[label] + 0.28 * rng.normal(size=(6000, E))).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    parts = {"train": slice(0, 2400), "val": slice(2400, 3000), "test": slice(3000, 6000)}
    # Its features are kept in files, so that no loader is asked.
    (folder / "id").mkdir(parents=True)
    for name, part in parts.items():
        torch.save(torch.from_numpy(z[part]), folder / f"id/features_{name}.pt")
        torch.save(torch.from_numpy(label[part]), folder / f"id/targets_{name}.pt")
    theirs = linear_probe.evaluate(
        torch.nn.Identity(), None, None, -1, 64, 0, 0.1, 10, "id", 0, str(folder), "cuda",
        val_dataloader=object(), amp=False,
    )  # fmt: skip
    fit, val, test = (parts[name] for name in ("train", "val", "test"))

    def accuracy(head_SE, part):
        return float((ours.predict(head_SE, z[part], mesh=mesh) == label[part]).mean())

    def accuracies(places):
        decays = ours.DECAYS[list(places)]
        heads_KSE = ours.fit(z[fit], label[fit], decays, classes=S, mesh=mesh)
        return [accuracy(head_SE, val) for head_SE in heads_KSE]

    decay, both = ours.DECAYS[ours.search(accuracies)], slice(0, 3000)
    heads = [
        ours.fit(z[both], label[both], [decay], classes=S, mesh=mesh, seed=draw)[0]
        for draw in range(ours.DRAWS)
    ]
    return float(np.mean([accuracy(head_SE, test) for head_SE in heads])) - float(theirs["lp_acc1"])
