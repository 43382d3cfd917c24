"""Corruptions: exact counts, moments, places, and agreement with SciPy and with sums by hand."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter1d

import refold
from refold.data.corruptions import (
    Binarise,
    Blur,
    Boxes,
    Chain,
    Columns,
    Corruption,
    Downscale,
    GaussianNoise,
    Hide,
    Mask,
    Masking,
    Patches,
    SaltAndPepper,
    Shift,
    Swap,
    corruptions,
    resolve,
)
from refold.errors import InputError
from refold.ops.images import shrink
from refold.parts import PartSpec
from refold.types import Batch

FRACTIONS = (0.0, 0.1, 0.38, 0.5, 1.0)
# One example of each with no option at its default; a new corruption must be added.
EXAMPLES = {
    "binarise": Binarise(),
    "blur": Blur(sigma=0.8),
    "boxes": Boxes(count=2, size=(2, 3), value=-0.5),
    "chain": Chain(parts=(Blur(sigma=1.5), "swap(fraction=0.4)", GaussianNoise(variance=0.2))),
    "columns": Columns(fraction=0.4, value=0.7),
    "downscale": Downscale(factor=3, mode="bicubic"),
    "gaussian": GaussianNoise(std=0.4, mean=0.1, clip=(-0.2, 0.9)),
    "hide": Hide(rate=(0.2, 0.8), fields=0.3, whole=0.1, score="hidden"),
    "mask": Mask(fraction=0.6, patch=3, score="all"),
    "masking": Masking(fraction=0.4, value=-2.0, per="pixel"),
    "patches": Patches(size=3, fraction=0.4, value=0.2),
    "salt_and_pepper": SaltAndPepper(fraction=0.3, salt=0.2, low=-3.0, high=3.0, per="pixel"),
    "shift": Shift(pixels=3, value=0.3),
    "swap": Swap(fraction=0.4),
}
STEADY = ("blur", "downscale")  # nothing about them is random


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mixed(rows=40):
    """Images in colour, numbers with gaps, and classes, every number another."""
    g = seeded(11)
    return Batch(
        {
            "image": torch.rand(rows, 3, 9, 8, generator=g, dtype=torch.float64),
            "numeric": torch.randn(rows, 5, generator=g, dtype=torch.float64),
            "categorical": torch.randint(0, 4, (rows, 3), generator=g),
        },
        {
            "image": None,
            "numeric": torch.rand(rows, 5, generator=g) > 0.3,
            "categorical": None,
        },
    )


def tensors(batch):
    return {**batch.x, **{f"{k} seen": o for k, o in batch.observed.items() if o is not None}}


def same(one, two):
    a, b = tensors(one), tensors(two)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def ones(*shape):
    return torch.ones(shape, dtype=torch.float64)


# ------------------------------------------------------------------ what all of them promise


@pytest.mark.parametrize("name", sorted(corruptions))
def test_every_corruption_keeps_its_promises(name):
    part, batch, untouched = EXAMPLES[name], mixed(), mixed()
    drawn = part(batch, seeded(4))
    assert same(batch, untouched)
    assert same(drawn, part(batch, seeded(4)))
    assert not same(drawn, batch)
    assert same(drawn, part(batch, seeded(5))) == (name in STEADY)
    for k, x in drawn.x.items():
        assert x.shape == batch.x[k].shape
        assert x.dtype == batch.x[k].dtype
    if part.images_only and name != "chain":
        assert all(drawn.x[k] is batch.x[k] for k in ("numeric", "categorical"))
    nothing = part(batch.rows(slice(0, 0)), seeded())
    assert [len(x) for x in nothing.x.values()] == [0, 0, 0]


@pytest.mark.parametrize("name", sorted(corruptions))
def test_every_corruption_survives_json_and_its_own_text(name):
    part = EXAMPLES[name]
    spec = corruptions.spec(part)
    assert spec.name == name
    defaults = {k: v for k, v in corruptions.options(name).items() if spec.options[k] == v}
    assert set(defaults) <= {"variance"}, "the example leaves an option at its default"
    kept = json.loads(json.dumps(dict(spec.options)))
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
    for again in (PartSpec(name, plain), PartSpec.parse(str(spec)), corruptions.resolve(part)):
        corruptions.check(again)
        assert same(corruptions.build(again)(mixed(), seeded(2)), part(mixed(), seeded(2)))


@pytest.mark.parametrize("name", sorted(corruptions))
def test_every_corruption_trains_a_model_by_name(name):
    X = np.random.default_rng(0).random((30, 8, 8))
    text = str(corruptions.spec(EXAMPLES[name]))
    ae = refold.Autoencoder(2, hidden=(), corruption=text, epochs=1).fit(X)
    assert ae.spec_.corruption.name == name
    assert np.isfinite(ae.reconstruct(X)).all()


@pytest.mark.parametrize("name", sorted(n for n in EXAMPLES if EXAMPLES[n].images_only))
def test_without_an_image_the_error_says_what_is_needed(name):
    table = Batch({k: v for k, v in mixed().x.items() if k != "image"}, {})
    inner = "blur" if name == "chain" else name
    with pytest.raises(InputError, match=rf"'{inner}.*needs images.*numeric \(40, 5\).*swap"):
        EXAMPLES[name](table, seeded())


def test_images_only_is_known_before_anything_runs():
    always = {n for n in corruptions if corruptions[n].images_only}
    assert always == {"binarise", "blur", "boxes", "downscale", "patches", "shift"}
    assert Masking(per="pixel").images_only
    assert not Masking().images_only
    assert Chain(parts=("masking", "boxes")).images_only
    assert not Chain(parts=("masking", "swap")).images_only


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("name", sorted(corruptions))
def test_on_an_accelerator_nothing_leaves_it(name):
    batch, part = mixed().to("cuda"), EXAMPLES[name]
    draws = [part(batch, torch.Generator("cuda").manual_seed(3)) for _ in range(2)]
    assert same(*draws)
    assert all(x.device.type == "cuda" for x in tensors(draws[0]).values())
    if name in STEADY:
        host = part(mixed(), seeded()).x["image"]
        torch.testing.assert_close(draws[0].x["image"].cpu(), host)


def test_a_tensor_alone_follows_the_generator_or_torchs_own():
    x, noise = torch.zeros(5, 4), GaussianNoise()
    assert torch.equal(noise.corrupt(x, seeded(3)), noise.corrupt(x, seeded(3)))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one, two = noise.corrupt(x), noise.corrupt(x)
        torch.manual_seed(1)
        assert torch.equal(one, noise.corrupt(x))
    assert not torch.equal(one, two)


WRONG = {
    "gaussian(std=-0.1)": "std is -0.1.*0 or more",
    "gaussian(std=0.1, variance=0.01)": "std=0.1 and by variance=0.01; give one",
    "gaussian(variance=-1)": "variance is -1",
    "gaussian(std=1e999)": "finite",
    "gaussian(mean=1e999)": "mean is inf",
    "gaussian(clip=(1, 0))": r"clip is \(1, 0\)",
    "gaussian(clip=(1,))": r"clip is \(1,\)",
    "mask(fraction=1)": "fraction of tokens is 1; it must lie between 0 and 1, and be neither",
    "mask(fraction=0)": "hidden fraction of tokens is 0",
    "mask(patch=0)": "patch is 0; it must be 1 or more",
    "mask(score=hiden)": "did you mean 'hidden'",
    "masking(fraction=1.5)": "fraction is 1.5.*between 0 and 1",
    "masking(per='row')": "unknown unit in per 'row'.*element, pixel",
    "masking(value=1e999)": "value of masked entries is inf",
    "salt_and_pepper(fraction=-0.1)": "salt and pepper is -0.1",
    "salt_and_pepper(salt=2)": "share of salt is 2",
    "salt_and_pepper(per=pixels)": "did you mean 'pixel'",
    "salt_and_pepper(low=-1e999)": "extremes are -inf",
    "swap(fraction=2)": "swapped fraction is 2",
    "columns(fraction=-1)": "hidden fraction of columns is -1",
    "boxes(count=0)": "number of boxes is 0",
    "boxes(size=0)": "size of boxes is 0",
    "boxes(size=(3, 0))": r"size of boxes is \(3, 0\)",
    "boxes(size=(3, 3, 3))": "size of boxes",
    "patches(size=0)": "size of patches is 0",
    "patches(fraction=1.01)": "removed fraction of patches is 1.01",
    "blur(sigma=0)": "sigma is 0; it must be above 0",
    "blur(sigma=1e999)": "sigma is inf",
    "shift(pixels=0)": "the shift is 0; it must be 1 pixel or more",
    "downscale(factor=1)": "factor of downscale is 1; it must be 2 or more",
    "downscale(mode=bilinaer)": "did you mean 'bilinear'",
    "chain(parts=())": "has no parts",
    "chain": "has no parts",
    "chain(parts=('blurr',))": "did you mean 'blur'",
    "chain(parts=('masking(fraction=3)',))": "fraction is 3",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_options_are_told(text):
    with pytest.raises(InputError, match=WRONG[text]):
        corruptions.build(corruptions.resolve(text))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Boxes(size=(3, 9)), "boxes of 3x9 pixels do not fit images of 9x8"),
        (Patches(size=9), "size of patches is 9, but the images are 9x8 pixels"),
        (Downscale(factor=10), "factor of downscale is 10, but the images are 9x8 pixels"),
    ],
)
def test_what_does_not_fit_the_images_names_both_sizes(part, said):
    with pytest.raises(InputError, match=said):
        part(mixed(), seeded())


# ------------------------------------------------------------------ noise


def test_gaussian_noise_has_its_moments_and_is_normal():
    x = torch.full((200, 500), 3.0, dtype=torch.float64)
    noise = (GaussianNoise(std=0.7, mean=0.2).corrupt(x, seeded()) - x).numpy().ravel()
    # Five standard errors of the mean and of the standard deviation.
    assert abs(noise.mean() - 0.2) < 5 * 0.7 / noise.size**0.5
    assert abs(noise.std() - 0.7) < 5 * 0.7 / (2 * noise.size) ** 0.5
    assert stats.kstest(noise, "norm", args=(0.2, 0.7)).pvalue > 1e-4
    assert stats.kstest(noise, "norm", args=(0.2, 0.75)).pvalue < 1e-4


def test_a_variance_is_the_square_of_a_std():
    x = mixed()
    assert same(GaussianNoise(variance=0.25)(x, seeded()), GaussianNoise(std=0.5)(x, seeded()))
    assert same(GaussianNoise()(x, seeded()), GaussianNoise(std=0.3)(x, seeded()))
    assert same(GaussianNoise(variance=0.0)(x, seeded()), x)


@pytest.mark.parametrize(("clip", "low", "high"), [(True, 0.0, 1.0), ((0.2, 0.6), 0.2, 0.6)])
def test_clip_keeps_pixels_in_range_and_nothing_else(clip, low, high):
    free = GaussianNoise(std=2.0)(mixed(), seeded())
    kept = GaussianNoise(std=2.0, clip=clip)(mixed(), seeded())
    assert torch.equal(kept.x["image"], free.x["image"].clamp(low, high))
    assert torch.equal(kept.x["numeric"], free.x["numeric"])
    assert torch.equal(kept.x["categorical"], mixed().x["categorical"])
    assert free.x["image"].min() < low


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_salt_and_pepper_hits_an_exact_share(fraction):
    x = torch.full((50, 1, 8, 9), 0.5)
    hit = SaltAndPepper(fraction=fraction, low=-3, high=3).corrupt(x, seeded())
    assert (hit != 0.5).flatten(1).sum(1).unique().tolist() == [round(fraction * 72)]
    assert set(hit.unique().tolist()) <= {-3.0, 0.5, 3.0}


def test_salt_falls_with_its_own_share():
    x = torch.full((400, 50), 0.5)
    hit = SaltAndPepper(fraction=0.5, salt=0.2).corrupt(x, seeded())
    salt, pepper = int((hit == 1).sum()), int((hit == 0).sum())
    assert salt + pepper == 400 * 25
    assert stats.binomtest(salt, salt + pepper, 0.2).pvalue > 1e-4
    assert (SaltAndPepper(fraction=1, salt=1).corrupt(x) == 1).all()
    assert (SaltAndPepper(fraction=1, salt=0).corrupt(x) == 0).all()


def test_salt_and_pepper_by_pixel_hits_all_channels_alike():
    x = torch.full((30, 3, 6, 6), 0.5)
    hit = SaltAndPepper(fraction=0.25, per="pixel").corrupt(x, seeded())
    assert torch.equal(hit, hit[:, :1].expand_as(hit))
    assert (hit[:, 0] != 0.5).flatten(1).sum(1).unique().tolist() == [9]
    apart = SaltAndPepper(fraction=0.25).corrupt(x, seeded())
    assert not torch.equal(apart, apart[:, :1].expand_as(apart))


# ------------------------------------------------------------------ masks


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_masking_hides_an_exact_count_of_each_field(fraction):
    batch = mixed()
    hidden = Masking(fraction=fraction, value=-9.0)(batch, seeded())
    for name, mark, entries in (("image", -9, 216), ("numeric", -9, 5), ("categorical", -1, 3)):
        counts = (hidden.x[name] == mark).flatten(1).sum(1)
        assert counts.unique().tolist() == [round(fraction * entries)], name
    assert hidden.observed is batch.observed


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_masking_by_pixel_hides_whole_pixels(fraction):
    batch = mixed()
    image = Masking(fraction=fraction, value=-9.0, per="pixel")(batch, seeded()).x["image"]
    hidden = image == -9
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    assert hidden[:, 0].flatten(1).sum(1).unique().tolist() == [round(fraction * 72)]
    assert torch.equal(image[~hidden], batch.x["image"][~hidden])


def test_masking_treats_every_entry_alike_and_every_row_for_itself():
    hidden = Masking(fraction=0.25).corrupt(ones(4000, 16), seeded()) == 0
    # Each entry is a binomial count; 16 of them within 4.5 standard deviations.
    deviation = (4000 * 0.25 * 0.75) ** 0.5
    assert ((hidden.sum(0) - 1000).abs() < 4.5 * deviation).all()
    assert len(hidden.unique(dim=0)) > 1000


@pytest.mark.parametrize(("size", "h", "w"), [(None, 4, 3), (5, 5, 5), ((1, 7), 1, 7), (9, 9, 9)])
def test_a_box_lies_wholly_inside_and_is_everywhere_as_likely(size, h, w):
    hidden = Boxes(size=size).corrupt(ones(3000, 2, 12, 9), seeded()) == 0
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    rows, columns = hidden[:, 0].any(2), hidden[:, 0].any(1)
    assert torch.equal(hidden[:, 0], rows[:, :, None] & columns[:, None, :])
    for along, length, side in ((rows, h, 12), (columns, w, 9)):
        first = along.to(torch.uint8).argmax(1)
        at = torch.arange(side)
        inside = (at >= first[:, None]) & (at < first[:, None] + length)
        assert torch.equal(along, inside)
        starts = first.bincount(minlength=side).numpy()
        assert starts[side - length + 1 :].sum() == 0
        assert length == side or stats.chisquare(starts[: side - length + 1]).pvalue > 1e-4


def test_several_boxes_are_drawn_apart_and_other_pixels_stay():
    x = torch.rand(500, 1, 20, 20, generator=seeded())
    given = Boxes(count=3, size=4, value=-1.0).corrupt(x, seeded(1))
    hidden = given == -1
    counts = hidden.flatten(1).sum(1)
    assert counts.max() == 48
    assert counts.min() > 16
    assert torch.equal(given[~hidden], x[~hidden])


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_patches_are_an_exact_share_of_the_grid(fraction):
    hidden = Patches(size=4, fraction=fraction).corrupt(ones(20, 3, 12, 8), seeded()) == 0
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    cells = hidden[:, 0].view(20, 3, 4, 2, 4).transpose(2, 3).flatten(3)
    assert torch.equal(cells.any(3), cells.all(3))
    assert cells.all(3).flatten(1).sum(1).unique().tolist() == [round(fraction * 6)]


def test_the_last_patches_are_smaller_where_the_side_is_no_multiple():
    hidden = Patches(size=4, fraction=0.5).corrupt(ones(300, 1, 9, 7), seeded())[:, 0] == 0
    # The grid is 3 x 2 with rows of 4, 4, 1 and columns of 4, 3 pixels.
    corners = hidden[:, ::4][:, :, ::4]
    assert corners.shape[1:] == (3, 2)
    assert corners.flatten(1).sum(1).unique().tolist() == [3]
    rows, columns = torch.tensor([4, 4, 1]), torch.tensor([4, 3])
    whole = corners.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
    assert torch.equal(hidden, whole)


# ------------------------------------------------------------------ tables


def table(rows=60, columns=12, classes=8):
    """Every cell of a column another value, so that its origin can be told."""
    numbers = torch.arange(rows * columns, dtype=torch.float64).view(rows, columns)
    labels = torch.arange(rows * classes).view(rows, classes) + 10_000
    return Batch(
        {"numeric": numbers, "categorical": labels}, dict.fromkeys(("numeric", "categorical"))
    )


def together(batch):
    return torch.cat([x.double() for x in batch.x.values()], 1)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_swap_takes_an_exact_share_of_a_row_from_other_rows(fraction):
    batch = table()
    x, y = together(batch), together(Swap(fraction=fraction)(batch, seeded()))
    moved = x != y
    assert moved.sum(1).unique().tolist() == [round(fraction * 20)]
    for column in range(20):
        assert torch.isin(y[:, column], x[:, column]).all()


def test_swap_reaches_every_column_and_every_other_row_alike():
    batch = table(rows=5)
    hits, donors = torch.zeros(20), torch.zeros(5, 5)
    for seed in range(400):
        x, y = together(batch), together(Swap(fraction=0.15)(batch, seeded(seed)))
        moved = x != y
        hits += moved.sum(0)
        row, column = moved.nonzero(as_tuple=True)
        origin = (y[row, column] == x[:, column]).to(torch.uint8).argmax(0)
        donors.index_put_((row, origin), torch.ones(len(row)), accumulate=True)
    assert hits.sum() == 400 * 5 * 3
    assert stats.chisquare(hits.numpy()).pvalue > 1e-4
    assert (donors.diagonal() == 0).all()
    assert stats.chisquare(donors[~torch.eye(5, dtype=torch.bool)].numpy()).pvalue > 1e-4


def test_swap_draws_another_row_for_every_cell():
    batch = table()
    x, y = batch.x["numeric"], Swap(fraction=1.0)(batch, seeded()).x["numeric"]
    steps = (y - x) / 12 % 60  # column by column, rows are 12 apart
    assert 1 <= steps.min() <= steps.max() <= 59
    # Sixty (twelve) draws among 59 rows: fewer different ones would be no chance.
    assert all(len(column.unique()) > 25 for column in steps.T)
    assert all(len(row.unique()) > 5 for row in steps)


def test_swap_carries_along_whether_a_cell_was_observed():
    rows = 200
    x = torch.arange(rows * 6.0).view(rows, 6)
    seen = torch.rand(rows, 6, generator=seeded(1)) > 0.4
    swapped = Swap(fraction=0.5)(Batch({"x": x}, {"x": seen}), seeded())
    origin = swapped.x["x"].long() // 6
    assert torch.equal(swapped.observed["x"], seen.gather(0, origin))
    assert not torch.equal(swapped.observed["x"], seen)


def test_a_row_alone_has_nobody_to_swap_with():
    row = table(rows=1)
    assert same(Swap(fraction=1.0)(row, seeded()), row)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_columns_hides_the_same_exact_share_in_every_row(fraction):
    batch = table()
    hidden = Columns(fraction=fraction, value=-5.0)(batch, seeded())
    gone = torch.cat([hidden.x["numeric"] == -5, hidden.x["categorical"] == -1], 1)
    assert gone.sum(1).unique().tolist() == [round(fraction * 20)]
    assert torch.equal(gone, gone[:1].expand_as(gone))
    assert torch.equal(together(hidden)[~gone], together(batch)[~gone])


def test_columns_are_drawn_anew_for_every_batch_and_reach_all():
    batch, generator, hits = table(), seeded(), torch.zeros(20)
    for _ in range(400):
        hits += (together(Columns(fraction=0.25)(batch, generator)) != together(batch))[1]
    assert hits.sum() == 400 * 5
    assert stats.chisquare(hits.numpy()).pvalue > 1e-4


# ------------------------------------------------------------------ sharpness


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 50.0])
def test_blur_is_scipys(sigma):
    x = torch.rand(3, 2, 9, 14, generator=seeded(), dtype=torch.float64)
    expected = x.numpy()
    for axis, side in ((2, 9), (3, 14)):
        radius = min(int(np.ceil(3 * sigma)), side - 1)
        expected = gaussian_filter1d(expected, sigma, axis, mode="mirror", radius=radius)
    torch.testing.assert_close(Blur(sigma=sigma).corrupt(x), torch.from_numpy(expected))


def test_a_shift_is_a_roll_of_the_padded_image_and_every_distance_is_as_likely():
    x = torch.rand(2000, 2, 5, 6, generator=seeded())
    moved = Shift(pixels=2, value=7.0).corrupt(x, seeded(1))
    counts = torch.zeros(5, 5)
    for before, after in zip(x, moved, strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2), value=7.0)
        fits = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.equal(padded[:, i : i + 5, j : j + 6], after)
        ]
        assert len(fits) == 1
        counts[fits[0]] += 1
    assert float((counts - 80).square().sum() / 80) < 51  # chi-squared of 24, 0.1 % beyond


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("part", ["downscale", "blur"])
def test_a_constant_image_stays_what_it_is(part, mode):
    x = torch.full((2, 3, 9, 7), 0.3, dtype=torch.float64)
    given = (Downscale(factor=4, mode=mode) if part == "downscale" else Blur()).corrupt(x)
    torch.testing.assert_close(given, x)


def keys(t):
    """Cubic convolution with a = -0.75 (Keys, 1981), as image libraries have it."""
    t, a = abs(t), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def weights(mode):
    """Interpolation from 2 to 4 pixels by hand: ``[4, 2]``, the border repeated."""
    found = np.zeros((4, 2))
    for i in range(4):
        at = (i + 0.5) / 2 - 0.5
        for j in range(-3, 5):
            nearest = float(round(at + 1e-9) == j)
            weight = {"nearest": nearest, "bilinear": max(0.0, 1 - abs(at - j))}
            found[i, min(1, max(0, j))] += weight.get(mode, keys(at - j))
    return found


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_downscale_is_the_sum_by_hand(mode):
    x = torch.rand(2, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    small = x.numpy().reshape(2, 1, 2, 2, 2, 2).mean((3, 5))
    expected = weights(mode) @ small @ weights(mode).T
    given = Downscale(factor=2, mode=mode).corrupt(x).numpy()
    np.testing.assert_allclose(given, expected, atol=1e-12)
    assert np.abs(given - x.numpy()).max() > 0.1


def test_shrinking_by_what_does_not_divide_averages_areas_that_share_pixels():
    x = torch.rand(2, 3, 9, 7, generator=seeded(), dtype=torch.float64)
    small = shrink(x, 2)
    assert small.shape == (2, 3, 5, 4)
    for i in range(5):
        for j in range(4):
            rows = slice(i * 9 // 5, -(-(i + 1) * 9 // 5))
            columns = slice(j * 7 // 4, -(-(j + 1) * 7 // 4))
            torch.testing.assert_close(small[:, :, i, j], x[:, :, rows, columns].mean((2, 3)))


# ------------------------------------------------------------------ several


def test_a_chain_is_its_parts_in_order_with_one_generator():
    parts = (Masking(fraction=0.5), GaussianNoise(std=0.2))
    one, g = Chain(parts=parts)(mixed(), seeded(6)), seeded(6)
    assert same(one, parts[1](parts[0](mixed(), g), g))
    assert not same(one, Chain(parts=parts[::-1])(mixed(), seeded(6)))


def test_a_sequence_of_corruptions_resolves_to_a_chain():
    given = ("blur(sigma=1)", GaussianNoise(std=0.1))
    assert resolve(given) == corruptions.spec(Chain(parts=given))
    assert resolve("boxes(size=3)") == PartSpec("boxes", {"size": 3})
    assert resolve(Boxes(size=3)).options["size"] == 3
    nested = Chain(parts=(Chain(parts=given), "swap"))
    again = corruptions.build(PartSpec.parse(str(corruptions.spec(nested))))
    assert same(again(mixed(), seeded()), nested(mixed(), seeded()))


def test_a_corruption_of_the_users_own_is_named_by_its_class():
    class Rain(corruptions["blur"].__base__):
        def field(self, x, generator):
            return x

    assert issubclass(Rain, Corruption)
    with pytest.raises(InputError, match="'Rain' needs images"):
        Rain().corrupt(torch.zeros(3, 4))


# ------------------------------------------------------------------ masks


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(3, 28, 28), (2, 9, 8), (30, 5), (8,)])
def test_mask_hides_as_many_whole_tokens_of_every_row(shape, fraction):
    x = ones(50, *shape)
    hidden = ~Mask(fraction=fraction, patch=4)(Batch({"x": x}, {"x": None}), seeded()).observed["x"]
    hidden = hidden.view(50, *shape)
    if len(shape) == 3:  # by loops: squares of four pixels, fewer at the edges, all channels alike
        tokens = [
            hidden[:, :, i : i + 4, j : j + 4].flatten(1)
            for i in range(0, shape[1], 4)
            for j in range(0, shape[2], 4)
        ]
    elif len(shape) == 2:
        tokens = [hidden[:, i : i + 4].flatten(1) for i in range(0, shape[0], 4)]
    else:
        tokens = list(hidden[:, :, None].unbind(1))
    assert all(torch.equal(t.any(1), t.all(1)) for t in tokens)
    gone = torch.stack([t.any(1) for t in tokens], 1)
    assert (gone.sum(1) == round(fraction * len(tokens))).all()
    assert len({tuple(row) for row in gone.tolist()}) > 5  # rows differ


def test_mask_hides_every_token_and_every_pair_alike():
    x = ones(20_000, 1, 4, 4)
    batch = Mask(fraction=0.5, patch=2)(Batch({"x": x}, {"x": None}), seeded())
    gone = ~batch.observed["x"].view(-1, 4, 4)[:, ::2, ::2].flatten(1)
    pairs = gone.double().T @ gone.double() / len(x)
    expected = torch.full((4, 4), 1 / 6, dtype=torch.float64).fill_diagonal_(1 / 2)
    torch.testing.assert_close(pairs, expected, atol=0.012, rtol=0)


def test_mask_draws_the_cells_of_a_table_together():
    x = {"alone": ones(4000, 1), "numbers": ones(4000, 4), "classes": ones(4000, 3).long()}
    batch = Mask(fraction=0.75)(Batch(x, dict.fromkeys(x)), seeded())
    gone = ~torch.cat([batch.observed[k] for k in x], 1)
    assert (gone.sum(1) == 6).all()
    torch.testing.assert_close(gone.double().mean(0), ones(8) * 0.75, atol=0.03, rtol=0)
    image = Batch({"x": ones(4000, 1, 8, 8), "y": ones(4000, 1)}, {"x": None, "y": None})
    batch = Mask(fraction=0.75)(image, seeded())
    assert ((~batch.observed["x"]).sum(1) == 3 * 16).all()
    assert float((~batch.observed["y"]).double().mean()) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("fraction", "columns", "count"), [(0.75, 2, 1), (0.01, 5, 1), (0.99, 5, 4)]
)
def test_mask_hides_one_and_leaves_one(fraction, columns, count):
    batch = Mask(fraction=fraction)(Batch({"x": ones(9, columns)}, {"x": None}), seeded())
    assert ((~batch.observed["x"]).sum(1) == count).all()


def test_mask_hides_a_share_of_what_a_row_has():
    g = seeded(3)
    numbers = torch.rand(3000, 8, generator=g) < torch.rand(3000, 1, generator=g)
    image = torch.rand(3000, 1, 9, 8, generator=g) < 0.1 * torch.rand(3000, 1, 1, 1, generator=g)
    whole = {"numbers": numbers, "image": image.flatten(1)}
    batch = Batch({"numbers": ones(3000, 8), "image": ones(3000, 1, 9, 8)}, whole)
    drawn = Mask(fraction=0.7, patch=4)(batch, seeded())
    blocks = [image[:, :, i : i + 4, j : j + 4] for i in (0, 4, 8) for j in (0, 4)]
    left = drawn.observed["image"].view_as(image)
    kept = [left[:, :, i : i + 4, j : j + 4] for i in (0, 4, 8) for j in (0, 4)]
    had = {"numbers": numbers, "image": torch.stack([b.flatten(1).any(1) for b in blocks], 1)}
    has = {
        "numbers": drawn.observed["numbers"],
        "image": torch.stack([b.flatten(1).any(1) for b in kept], 1),
    }
    for before, after in zip(blocks, kept, strict=True):  # a square goes whole or stays as it was
        assert ((after == before).flatten(1).all(1) | ~after.flatten(1).any(1)).all()
    for k in had:
        for n in range(had[k].shape[1] + 1):
            gone = (had[k] & ~has[k])[had[k].sum(1) == n].sum(1)
            if n == 1:
                assert float(gone.double().mean()) == pytest.approx(0.7, abs=0.1)
            elif len(gone):
                assert (gone == (min(max(round(0.7 * n), 1), n - 1) if n else 0)).all()


def test_of_what_a_mask_hides_what_was_there_is_scored_and_no_more():
    batch = mixed(500)
    seen = batch.observed["numeric"]
    for score in ("hidden", "visible", "all"):
        part = Mask(fraction=0.6, patch=3, score=score)
        drawn = part(batch, seeded())
        target = part.target(batch, drawn)
        assert all(torch.equal(target.x[k], batch.x[k]) for k in batch.x)
        left = drawn.observed["numeric"]
        assert not (left & ~seen).any()
        scored = {"hidden": seen & ~left, "visible": left, "all": seen}[score]
        assert torch.equal(target.observed["numeric"], scored)
        if score == "hidden":
            assert torch.equal(target.observed["image"], ~drawn.observed["image"])
