"""What classic autoencoders reach on MNIST, beside the published figures.

    python bench/mnist.py FOLDER TASK [--seeds 3]

FOLDER holds the four IDX files; TASK is one of: compression, patient, plane, topk, lifetime,
denoising, labels, linear, joint. Pixels lie in [0, 1], the split is the standard one. A line per
seed, then mean and spread (lowest to highest). ``plane`` shows UMAP as well where umap-learn is
installed, and ``denoising`` needs scikit-image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

import refold
from refold.data.sources import read
from refold.estimator import seeded
from refold.inference import outputs
from refold.uses.complete import drawing
from refold.uses.restore import psnr

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Figures = dict[str, float]


@dataclass(frozen=True)
class Mnist:
    """Images ``[n, 28, 28]`` in [0, 1] and their labels."""

    train: Images
    train_labels: Labels
    test: Images
    test_labels: Labels

    @classmethod
    def read(cls, folder: Path) -> Mnist:
        """Read the four files."""

        def images(name: str) -> Images:
            return np.float32(read(folder / name).columns["image"]) / np.float32(255)

        def labels(name: str) -> Labels:
            return np.asarray(read(folder / name).columns["label"]).astype(np.int64)

        return cls(
            images("train-images-idx3-ubyte.gz"),
            labels("train-labels-idx1-ubyte.gz"),
            images("t10k-images-idx3-ubyte.gz"),
            labels("t10k-labels-idx1-ubyte.gz"),
        )


PIXELS = {"image": "image(likelihood='bernoulli')"}
CENTRED = {"x": "vector(scale='centred')"}
NOISES = {
    "variance 0.1": ("gaussian(variance=0.1)", 0.1**0.5),
    "variance 0.5": ("gaussian(variance=0.5)", 0.5**0.5),
    "mask 25 %": ("masking(fraction=0.25)", 0.0),
    "mask 50 %": ("masking(fraction=0.5)", 0.0),
}  # and the deviation that non-local means is told
SHOWN = 500  # test images that are denoised: non-local means takes a while
LAYERWISE = (("silu", 1e-2, 0.1), ("sigmoid", 3e-3, 0.4))  # activation, lr, share of the steps
RIDGE = 60_000e-3  # of a linear classifier: this over the number of labels


def flat(images: Images) -> Images:
    return images.reshape(len(images), -1)


def error(labels: Labels, found: NDArray[Any]) -> float:
    """Percent of labels that were not found."""
    return 100 * float((labels != found).mean())


def compression(data: Mnist, seed: int, epochs: int = 40, decay: float = 0.15) -> Figures:
    """784-1000-500-250-30: squared error per test image."""
    ae = refold.Autoencoder(
        30,
        hidden=(1000, 500, 250),
        fields=PIXELS,
        fusion="concat(activation='silu')",
        optimizer=f"adamw(weight_decay={decay})",
        epochs=epochs,
        patience=epochs,
        batch_size=512,
        lr=5e-3,
        validation=0.02,
        precision="bfloat16",
        seed=seed,
    ).fit(data.train)
    return {"squared error": ae.squared_error(data.test)}


def plane(data: Mnist, seed: int) -> Figures:
    """784-128-64-32-2, layer by layer and at once: squared error, 15-NN accuracy in the plane."""
    found: Figures = {}
    for activation, lr, share in LAYERWISE:
        for name, pretrain in (("at once", None), ("layer-wise", f"layerwise(share={share})")):
            ae = refold.Autoencoder(
                2,
                hidden=(128, 64, 32),
                fields=PIXELS,
                fusion=f"concat(linear=False, activation='{activation}')",
                pretrain=pretrain,
                epochs=10,
                lr=lr,
                batch_size=256,
                validation=0.02,
                seed=seed,
            ).fit(data.train)
            found[f"{activation}, lr {lr:g}, {name}: error"] = ae.squared_error(data.test)
            accuracy = neighbours(ae.transform(data.test), data.test_labels)
            found[f"{activation}, lr {lr:g}, {name}: 15-NN %"] = accuracy
    test = flat(data.test)
    pca = PCA(2, svd_solver="full").fit(flat(data.train))
    back = pca.inverse_transform(pca.transform(test))
    found["PCA: error"] = float(np.square(test - back).sum(1).mean())
    found["PCA: 15-NN %"] = neighbours(pca.transform(test), data.test_labels)
    tsne = TSNE(2, random_state=seed).fit_transform(test)
    found["t-SNE: 15-NN %"] = neighbours(tsne, data.test_labels)
    if find_spec("umap"):
        found["UMAP: 15-NN %"] = neighbours(umap(test, seed), data.test_labels)
    return found


def umap(rows: Images, seed: int) -> Images:
    from umap import UMAP

    return UMAP(2, init="pca", random_state=seed, n_jobs=1).fit_transform(rows)


def neighbours(codes: NDArray[Any], labels: Labels) -> float:
    """Percent of test images whose 15 nearest others in the plane, by vote, name their label."""
    return 100 * float(cross_val_score(KNeighborsClassifier(15), codes, labels, cv=10).mean())


def features(data: Mnist, seed: int, latent: str, epochs: int) -> refold.Autoencoder:
    """One tied layer of sparse units, on centred pixels."""
    return refold.Autoencoder(
        latent,
        hidden=(),
        fields=CENTRED,
        fusion="concat(init='orthogonal')",
        tied=True,
        optimizer="adamw(weight_decay=0.0)",
        epochs=epochs,
        batch_size=128,
        lr=2e-3,
        validation=0.02,
        precision="bfloat16",
        seed=seed,
    ).fit(flat(data.train))


def classified(data: Mnist, ae: refold.Autoencoder) -> Figures:
    """Error of a linear classifier on frozen features."""
    known = ae.classifier(C=1 / RIDGE).fit(flat(data.train), data.train_labels)
    return {"test error %": error(data.test_labels, known.predict(flat(data.test)))}


def topk(data: Mnist, seed: int) -> Figures:
    """1,000 units, the 25 largest of each image."""
    return classified(data, features(data, seed, "topk(size=1000, k=25, alpha=3)", 10))


def lifetime(data: Mnist, seed: int) -> Figures:
    """2,000 units, each active in 5 % of a batch."""
    return classified(data, features(data, seed, "lifetime(size=2000, fraction=0.05)", 10))


def denoising(data: Mnist, seed: int) -> Figures:
    """784-64 and a U-Net against PCA, non-local means and total variation: PSNR in dB."""
    shown = data.test[:SHOWN]
    components = PCA(64).fit(flat(data.train))
    found: Figures = {}
    for name, (noise, sigma) in NOISES.items():
        part = refold.corruptions.corruptions.build(refold.corruptions.resolve(noise))
        draw = torch.Generator().manual_seed(seed)
        noisy = part.corrupt(torch.from_numpy(shown)[:, None], draw)[:, 0].numpy()
        rebuilt = components.inverse_transform(components.transform(flat(noisy)))
        best = classical(shown, noisy, sigma)
        found[f"{name}: noisy"] = float(psnr(shown, noisy).mean())
        found[f"{name}: PCA-64"] = float(psnr(shown, rebuilt.reshape(shown.shape)).mean())
        found |= {f"{name}: {k}": v for k, v in best.items()}
        for kind, options in DENOISERS.items():
            ae = refold.Autoencoder(corruption=noise, seed=seed, **options).fit(data.train)
            found[f"{name}: {kind}"] = float(psnr(shown, ae.reconstruct(noisy)).mean())
    return found


DENOISERS: dict[str, dict[str, Any]] = {
    "784-64": {
        "latent": "l1(size=64, weight=0.0)",
        "hidden": (),
        "fields": PIXELS,
        "epochs": 20,
        "batch_size": 128,
        "lr": 3e-3,
    },
    "U-Net": {
        "recipe": "unet",
        "latent": 32,
        "fields": {
            "image": "image(likelihood='bernoulli', backbone='conv(channels=(16, 32), skips=True)')"
        },
        "epochs": 2,
        "batch_size": 128,
        "lr": 3e-3,
    },
}


def classical(clean: Images, noisy: Images, sigma: float) -> Figures:
    """PSNR of non-local means and total variation, each with the best of its strengths."""
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    def best(restored: list[Images]) -> float:
        return max(float(psnr(clean, each).mean()) for each in restored)

    strengths = [h * sigma for h in (0.3, 0.4, 0.6, 0.8)] if sigma else [0.03, 0.06, 0.1, 0.2]
    means = [
        np.stack([denoise_nl_means(i, 5, 6, h=h, sigma=sigma) for i in noisy]) for h in strengths
    ]
    variation = [
        np.stack([denoise_tv_chambolle(i, weight=w) for i in noisy])
        for w in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
    ]
    return {"non-local means": best(means), "total variation": best(variation)}


def labels(data: Mnist, seed: int) -> Figures:
    """100 and 1,000 labels: a linear classifier on codes learnt without labels, and on pixels."""
    ae = features(data, seed, "topk(size=1000, k=25, alpha=3)", 20)
    train, test = flat(data.train), flat(data.test)
    found: Figures = {}
    for count in (100, 1000):
        few, _ = train_test_split(
            np.arange(len(train)), train_size=count, stratify=data.train_labels, random_state=seed
        )
        known = data.train_labels[few]
        plain = {
            "logistic regression on pixels": GridSearchCV(
                LogisticRegression(max_iter=1000), {"C": [0.01, 0.1, 1.0, 10.0]}
            ),
            "MLP on pixels": MLPClassifier(256, max_iter=500, random_state=seed),
        }
        for name, model in plain.items():
            answer = model.fit(train[few], known).predict(test)
            found[f"{count} labels: {name}"] = error(data.test_labels, answer)
        ours = ae.classifier(C=100 / count).fit(train[few], known)
        found[f"{count} labels: codes"] = error(data.test_labels, ours.predict(test))
    return found


def patient(data: Mnist, seed: int) -> Figures:
    """Train the same as for compression for longer, with more weight decay."""
    return compression(data, seed, epochs=120, decay=0.4)


def linear(data: Mnist, seed: int) -> Figures:
    """A linear autoencoder of 32 numbers from random weights: degrees from the principal axes."""
    ae = refold.Autoencoder(
        32,
        hidden=(),
        fields=CENTRED,
        fusion="concat(init='orthogonal')",
        optimizer="adamw(weight_decay=0.0)",
        epochs=60,
        batch_size=1000,
        lr=1e-2,
        validation=0.0,
        patience=1000,
        seed=seed,
    ).fit(flat(data.train))
    path = ae.model_.fusion.linear_path()
    assert path is not None
    axes = PCA(32, svd_solver="full").fit(flat(data.train).astype(np.float64)).components_.T
    angles = np.degrees(subspace_angles(path.up.detach().double().numpy(), axes))
    return {"greatest angle": float(angles.max()), "mean angle": float(angles.mean())}


def joint(data: Mnist, seed: int) -> Figures:
    """Images and labels of one code by a product of experts: each from the other, and the bound.

    The label's cost counts fifty times in training. The bound is of images whose pixels are read as
    probabilities, in nats, one draw of the code for each test image, every cost counted once.
    """
    ae = refold.Autoencoder(
        "gaussian(size=64)",
        recipe="vae",
        hidden=(512, 512),
        fusion="poe",
        fields={"image": "image", "label": "categorical"},
        weights={"label": 50.0},
        corruption="hide(rate=0.0, fields=0.5, whole=0.3)",
        epochs=20,
        lr=1e-3,
        seed=seed,
    ).fit({"image": data.train, "label": data.train_labels})
    answer = ae.predict({"image": data.test}, "label")["label"]
    wanted = np.arange(10)
    drawn = ae.sample(200, given={"label": wanted})["image"]
    judge = MLPClassifier(256, early_stopping=True, random_state=seed)
    judge.fit(flat(data.train), data.train_labels)
    seen = judge.predict(flat(drawn))
    return {
        "label from image, right %": 100 - error(data.test_labels, answer),
        "image from label, recognised %": 100 - error(np.repeat(wanted, 200), seen),
        "the classifier itself, right %": 100
        - error(data.test_labels, judge.predict(flat(data.test))),
        **bound(ae, {"image": data.test, "label": data.test_labels}),
    }


@torch.inference_mode()
def bound(ae: refold.Autoencoder, rows: dict[str, NDArray[Any]]) -> Figures:
    """Mean negative evidence bound of rows, and its terms, in nats, every cost counted once."""
    batch, _ = ae.schema_.encode(read(rows))
    ae.model_.weigh(dict.fromkeys(ae.model_.outputs, (1.0,)))
    totals: Figures = {"bound": 0.0}
    with seeded(0), drawing(ae.model_):
        for output, count in outputs(ae.model_, batch, ae.schema_):
            for name, cost in {**output.nll, **output.code.terms}.items():
                mean = float(cost[:count].double().sum()) / len(batch)
                totals[name] = totals.get(name, 0.0) + mean
                totals["bound"] += mean
    return totals


TASKS: dict[str, Callable[[Mnist, int], Figures]] = {
    task.__name__: task
    for task in (compression, patient, plane, topk, lifetime, denoising, labels, linear, joint)
}


def main() -> None:
    """Run one task for every seed and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    data = Mnist.read(given.folder)
    rows: list[Figures] = []
    for seed in range(given.seeds):
        began = time.perf_counter()
        figures = TASKS[given.task](data, seed)
        figures["seconds"] = time.perf_counter() - began
        rows.append(figures)
        print(f"seed {seed}:", ", ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
    print(f"{given.task}, {given.seeds} seeds, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads: mean (lowest to highest)")  # fmt: skip
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"  {name}: {np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})")


if __name__ == "__main__":
    main()
