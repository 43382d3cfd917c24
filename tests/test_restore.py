"""Pairs of transforms over a dataset, and how well corrupted images come back."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

import refold
from refold.data.corruptions import Boxes, Downscale, GaussianNoise
from refold.data.pairs import Pairs, is_paired, stacked
from refold.errors import InputError, MissingExtraError
from refold.ops.images import shrink
from refold.uses.restore import enlarge, psnr, restoration, ssim

# ------------------------------------------------------------------ pairs


class Supervised(Dataset):
    """Items ``(x, label)``, as image datasets have them."""

    def __init__(self, n=10):
        self.x = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], index % 3


def darker(x):
    return x / 10


def negative(x):
    return -x


def test_input_and_target_have_transforms_of_their_own():
    data = Supervised()
    x, y = Pairs(data, input=darker, target=negative)[4]
    np.testing.assert_array_equal(x, data.x[4] / 10)
    np.testing.assert_array_equal(y, -data.x[4])
    a, b, label = Pairs(data, keep_label=True)[5]
    assert a is b
    assert label == 2
    assert len(Pairs(data)) == 10


@pytest.mark.parametrize("data", [[1.0, 2.0], torch.tensor([1.0, 2.0]), np.array([1.0, 2.0])])
def test_items_without_a_label_are_inputs_too(data):
    assert [tuple(map(float, Pairs(data, input=negative)[i])) for i in (0, 1)] == [(-1, 1), (-2, 2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_batches_pairs(workers):
    pairs = Pairs(Supervised(), input=darker, keep_label=True)
    batches = list(DataLoader(pairs, batch_size=4, num_workers=workers))
    assert [len(x) for x, _, _ in batches] == [4, 4, 2]
    x, y, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(y, torch.from_numpy(Supervised().x))
    torch.testing.assert_close(x, y / 10)
    assert labels.tolist() == [i % 3 for i in range(10)]


def test_stacked_makes_arrays_of_inputs_and_targets():
    x, y = stacked(Pairs(Supervised(), input=darker, target=lambda x: torch.tensor(x).flatten()))
    np.testing.assert_array_equal(x, Supervised().x / 10)
    np.testing.assert_array_equal(y, Supervised().x.reshape(10, 6))
    assert x.dtype == y.dtype == np.float32


def test_stacked_ignores_the_labels_of_any_other_dataset():
    x, y = stacked(Supervised())
    assert x is y
    np.testing.assert_array_equal(x, Supervised().x)
    alone, _ = stacked(TensorDataset(torch.arange(6).view(3, 2)))
    assert alone.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_stacked_sees_pairs_through_torchs_wrappers():
    pairs = Pairs(Supervised(), input=darker)
    joint = ConcatDataset([Subset(pairs, [3, 1]), pairs])
    x, y = stacked(joint)
    assert len(y) == 12
    np.testing.assert_array_equal(y[:2], Supervised().x[[3, 1]])
    np.testing.assert_array_equal(x, y / 10)
    assert not is_paired(ConcatDataset([pairs, Supervised()]))


def test_stacked_draws_what_is_random_once_and_as_the_caller_seeds_it():
    def drawn(seed):
        g = torch.Generator().manual_seed(seed)
        noise = GaussianNoise(std=0.5)
        return stacked(Pairs(Supervised(), input=lambda x: noise.corrupt(torch.tensor(x)[None], g)))

    assert np.array_equal(drawn(1)[0], drawn(1)[0])
    assert not np.array_equal(drawn(1)[0], drawn(2)[0])
    assert np.array_equal(drawn(1)[1], drawn(2)[1])


def test_pictures_are_read_as_pixels_and_a_model_learns_from_them():
    pictures = [(Pillow.fromarray((i * 16).astype(np.uint8)), 0) for i in load_digits().images[:40]]
    x, y = stacked(Pairs(pictures, input=lambda p: p.rotate(90)))
    assert y.shape == (40, 8, 8)
    assert y.dtype == np.uint8
    assert np.array_equal(x, np.rot90(y, axes=(1, 2)))
    assert refold.Autoencoder(2, hidden=(), epochs=1).fit(x).reconstruct(x).shape == x.shape


class Endless(IterableDataset):
    def __iter__(self):
        yield 1

    def __len__(self):
        return 3


class NoLength(Dataset):
    def __getitem__(self, index):
        return index


@pytest.mark.parametrize("data", [Endless(), NoLength(), iter([1, 2]), 7, {1, 2}])
def test_a_dataset_without_length_or_positions_is_told(data):
    with pytest.raises(InputError, match=f"{type(data).__name__} has no items by position"):
        Pairs(data)


def test_what_cannot_be_paired_or_stacked_is_told():
    with pytest.raises(InputError, match="input transform is a int; give a function"):
        Pairs([1], input=3)
    with pytest.raises(InputError, match="item 1 of the dataset has no label"):
        Pairs([1.0, 2.0], keep_label=True)[1]
    with pytest.raises(InputError, match="item 1 of the dataset has no label"):
        Pairs([(1.0,), (2.0,)], keep_label=True)[1]
    with pytest.raises(InputError, match="no items"):
        stacked([])
    uneven = [np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((5, 4))]
    with pytest.raises(
        InputError, match=r"input of item 2 has shape \(5, 4\).*item 0 has \(4, 4\)"
    ):
        stacked(uneven)
    with pytest.raises(InputError, match="target of item 2 has shape"):
        stacked(Pairs(uneven, input=np.sum))
    for wrong in ("text", {"image": 1}, [[1], [1, 2]], None):
        with pytest.raises(InputError, match=f"item 0 is a {type(wrong).__name__}"):
            stacked([(wrong, 0)])


# ------------------------------------------------------------------ metrics


@pytest.mark.parametrize("shape", [(5, 8, 9), (5, 16, 12, 3), (5, 4, 4), (5, 3, 11)])
@pytest.mark.parametrize("dtype", [np.float64, np.uint8])
def test_metrics_are_those_of_scikit_image(shape, dtype):
    r = np.random.default_rng(0)
    clean, other = (
        (r.random(shape) * (255 if dtype is np.uint8 else 1)).astype(dtype) for _ in "ab"
    )
    scale = 255 if dtype is np.uint8 else 1.0
    window = {8: 7, 16: 7, 4: 3, 3: 3}[shape[1]]
    options = {"data_range": scale, "channel_axis": -1 if len(shape) == 4 else None}
    expected = [
        structural_similarity(a, b, win_size=window, **options)
        for a, b in zip(clean, other, strict=True)
    ]
    np.testing.assert_allclose(ssim(clean, other), expected, atol=1e-6)
    expected = [
        peak_signal_noise_ratio(a, b, data_range=scale) for a, b in zip(clean, other, strict=True)
    ]
    np.testing.assert_allclose(psnr(clean, other), expected)
    # And by its own formula.
    error = np.square(clean.astype(float) - other).reshape(5, -1).mean(1)
    np.testing.assert_allclose(psnr(clean, other), 10 * np.log10(scale**2 / error))


def test_channels_may_come_first():
    r = np.random.default_rng(0)
    clean, other = r.random((2, 4, 16, 12, 3))
    first = [np.moveaxis(v, -1, 1) for v in (clean, other)]
    np.testing.assert_allclose(ssim(*first), ssim(clean, other))
    np.testing.assert_allclose(psnr(*first), psnr(clean, other))


def test_equal_images_are_perfect():
    x = np.random.default_rng(0).random((2, 8, 8))
    assert psnr(x, x).tolist() == [np.inf, np.inf]
    np.testing.assert_allclose(ssim(x, x), 1.0)


def test_what_cannot_be_measured_is_told():
    x = np.zeros((2, 8, 8))
    with pytest.raises(InputError, match=r"\(2, 8, 8\), the others \(1, 8, 8\)"):
        psnr(x, x[:1])
    with pytest.raises(InputError, match=r"8x2 pixels are too small for SSIM.*at least 3"):
        ssim(x[..., :2], x[..., :2])
    with pytest.raises(InputError, match=r"shape \(2, 8\); expected"):
        psnr(x[0, :2], x[0, :2])
    with pytest.raises(InputError, match="missing or infinite"):
        psnr(x, x + np.nan)
    with pytest.raises(InputError, match="uint8, the others float64"):
        psnr(x.astype(np.uint8), x)
    with pytest.raises(InputError, match="data_range is 0"):
        psnr(x, x, data_range=0)


def test_without_scikit_image_the_command_to_install_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'refold\[images\]'"):
        psnr(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)))


# ------------------------------------------------------------------ restoration


@pytest.fixture(scope="module")
def images():
    return load_digits().images / 16


@pytest.fixture(scope="module")
def denoiser(images):
    return refold.Autoencoder(16, corruption="gaussian(std=0.3)", epochs=8).fit(images[:1500])


def test_restoration_measures_what_was_corrupted_and_what_came_back(denoiser, images):
    clean = images[1500:]
    found = restoration(denoiser, clean, seed=3)
    noise = torch.from_numpy(clean.astype(np.float32))[:, None]
    given = GaussianNoise(std=0.3).corrupt(noise, torch.Generator().manual_seed(3))[:, 0].numpy()
    np.testing.assert_allclose(found.corrupted.psnr, psnr(clean, given), rtol=1e-5)
    np.testing.assert_allclose(found.corrupted.ssim, ssim(clean, given), atol=1e-5)
    back = denoiser.reconstruct(given.astype(np.float64))
    np.testing.assert_allclose(found.restored.psnr, psnr(clean, back), rtol=1e-4)
    np.testing.assert_allclose(found.restored.ssim, ssim(clean, back), atol=1e-4)
    assert found.restored.mean_psnr > found.corrupted.mean_psnr + 3
    assert found.restored.mean_ssim > found.corrupted.mean_ssim + 0.05
    assert found.restored.mean_psnr == pytest.approx(found.restored.psnr.mean())
    assert found.restored.mean_ssim == pytest.approx(found.restored.ssim.mean())
    assert found.corruption == "gaussian(std=0.3)"
    assert found.sentence().startswith("gaussian(std=0.3): PSNR from 10.")
    assert found.sentence().endswith("over 297 images")


def test_restoration_follows_its_seed_and_takes_more_rows_than_a_portion(denoiser, images):
    one, two, other = (restoration(denoiser, images, seed=s) for s in (1, 1, 2))
    assert len(one.restored.psnr) == len(images) > 1024
    assert np.array_equal(one.restored.psnr, two.restored.psnr)
    assert not np.array_equal(one.corrupted.psnr, other.corrupted.psnr)


def test_any_corruption_can_be_restored_from(denoiser, images):
    named = restoration(denoiser, images[:20], "boxes(size=3)")
    made = restoration(denoiser, images[:20], Boxes(size=3))
    assert np.array_equal(named.restored.psnr, made.restored.psnr)
    chain = restoration(denoiser, images[:20], ("boxes(size=3)", "gaussian(std=0.1)"))
    assert chain.corrupted.mean_psnr < named.corrupted.mean_psnr


def test_images_that_are_equal_leave_the_mean_a_number(denoiser, images):
    whole = restoration(denoiser, images[:20], "masking(fraction=0)")
    assert whole.corrupted.mean_psnr == np.inf
    boxed = restoration(denoiser, images, "boxes(size=3)").corrupted
    unchanged = np.isinf(boxed.psnr)
    assert 0 < unchanged.sum() < len(images)
    assert boxed.mean_psnr == pytest.approx(boxed.psnr[~unchanged].mean())


def test_pixels_of_eight_bits_are_measured_in_the_scale_of_the_model(images):
    X = (images[:200] * 255).astype(np.uint8)
    ae = refold.Autoencoder(8, corruption="downscale(factor=2)", epochs=1).fit(X)
    found = restoration(ae, X)
    low = Downscale(factor=2).corrupt(torch.from_numpy(X / 255)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(found.corrupted.psnr, psnr(X / 255, low), rtol=1e-4)


def test_several_images_are_told_apart_by_name(images):
    X = {"left": images[:60], "right": 1 - images[:60, ::-1], "label": np.arange(60.0) % 7}
    ae = refold.Autoencoder(4, hidden=(), epochs=1).fit(X)
    with pytest.raises(InputError, match="several images; say which with field=: left, right"):
        restoration(ae, X, "boxes")
    with pytest.raises(InputError, match="unknown image field 'rigth'; did you mean 'right'"):
        restoration(ae, X, "boxes", field="rigth")
    found = restoration(ae, X, "masking(fraction=1.0)", field="right")
    black = np.zeros_like(images[:60])
    np.testing.assert_allclose(found.corrupted.psnr, psnr(X["right"], black), rtol=1e-5)


def test_what_cannot_be_restored_is_told(images):
    ae = refold.Autoencoder(2, hidden=(), epochs=1).fit(images[:40])
    with pytest.raises(InputError, match="trained without a corruption; say which"):
        restoration(ae, images[:5])
    holed = images[:5].copy()
    holed[3, 0, 0] = np.nan
    with pytest.raises(InputError, match="image 3 has missing pixels"):
        restoration(ae, holed, "boxes")
    with pytest.raises(InputError, match="boxes of 9x9 pixels do not fit images of 8x8"):
        restoration(ae, images[:5], "boxes(size=9)")
    vectors = refold.Autoencoder(2, hidden=(), epochs=1).fit(images[:40].reshape(40, -1))
    with pytest.raises(InputError, match=r"has no images \(its fields: x\)"):
        restoration(vectors, images[:5].reshape(5, -1), "gaussian")


# ------------------------------------------------------------------ super-resolution


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_enlarging_small_images_is_what_downscale_gave_the_model(mode):
    x = torch.rand(4, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = shrink(x, 2).numpy()
    expected = Downscale(factor=2, mode=mode).corrupt(x).numpy()
    np.testing.assert_allclose(enlarge(small, 2, mode), expected, atol=1e-12)
    last = np.moveaxis(small, 1, -1)
    np.testing.assert_allclose(enlarge(last, 2, mode), np.moveaxis(expected, 1, -1), atol=1e-12)
    np.testing.assert_allclose(enlarge(small[:, 0], 2, mode), expected[:, 0], atol=1e-12)


def test_enlarging_keeps_the_type_and_reaches_sizes_that_are_no_multiple():
    small = np.random.default_rng(0).integers(0, 256, (3, 5, 4)).astype(np.uint8)
    large = enlarge(small, 2, mode="bicubic", size=(9, 7))
    assert large.shape == (3, 9, 7)
    assert large.dtype == np.uint8
    x = torch.rand(3, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    low = shrink(x, 2)[:, 0].numpy()
    expected = Downscale(factor=2).corrupt(x)[:, 0].numpy()
    np.testing.assert_allclose(enlarge(low, 2, size=(9, 7)), expected, atol=1e-6)


def test_a_model_trained_with_downscale_super_resolves(images):
    ae = refold.Autoencoder(24, corruption="downscale(factor=2)", epochs=15).fit(images[:1500])
    clean = images[1500:]
    small = shrink(torch.from_numpy(clean)[:, None], 2)[:, 0].numpy()
    large = enlarge(small, 2)
    sharp = ae.reconstruct(large)
    assert sharp.shape == clean.shape
    assert psnr(clean, sharp).mean() > psnr(clean, large).mean() + 1
    found = restoration(ae, clean)
    np.testing.assert_allclose(found.restored.psnr, psnr(clean, sharp), rtol=1e-3)


def test_what_cannot_be_enlarged_is_told():
    x = np.zeros((2, 4, 5))
    with pytest.raises(InputError, match="factor is 0"):
        enlarge(x, 0)
    with pytest.raises(InputError, match="unknown mode 'cubic'; did you mean 'bicubic'"):
        enlarge(x, 2, mode="cubic")
    with pytest.raises(InputError, match="4x5 pixels cannot be enlarged to 8x4"):
        enlarge(x, 2, size=(8, 4))
    with pytest.raises(InputError, match="channels"):
        enlarge(np.zeros((2, 7, 5, 6)), 2)


def test_a_model_that_has_not_learnt_cannot_restore(images):
    with pytest.raises(NotFittedError, match="not fitted"):
        restoration(refold.Autoencoder(2), images[:5], "boxes")
