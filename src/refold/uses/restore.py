"""Denoise, inpaint, super-resolve: how much of corrupted images a model brings back."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from refold import inference
from refold.casting import as_dtype
from refold.data.corruptions import Corruption, corruptions, resolve
from refold.data.schema import Schema
from refold.data.sources import read
from refold.errors import InputError, missing_extra, unknown
from refold.fields import Image
from refold.ops.images import MODES, resize
from refold.types import Batch

if TYPE_CHECKING:
    from refold.estimator import Autoencoder

Floats = NDArray[np.float64]
CHANNELS = (1, 3, 4)
WINDOW = 7  # pixels a side over which SSIM compares, where the images are as large
SMALLEST = 3


@dataclass(frozen=True)
class Likeness:
    """How like the clean images others are: ``psnr`` ``[n]`` in dB, ``ssim`` ``[n]``, at most 1."""

    psnr: Floats
    ssim: Floats

    @property
    def mean_psnr(self) -> float:
        """Mean in dB over the images that differ from the clean ones; infinite where none does.

        A box on black ground changes nothing, and one such image would make every mean infinite.
        """
        differing = self.psnr[np.isfinite(self.psnr)]
        return float(differing.mean()) if len(differing) else float("inf")

    @property
    def mean_ssim(self) -> float:
        """Mean over the images."""
        return float(self.ssim.mean())

    @classmethod
    def of(cls, clean: NDArray[Any], other: NDArray[Any]) -> Likeness:
        """Measure images beside their clean originals, with pixels in [0, 1]."""
        return cls(psnr(clean, other, data_range=1.0), ssim(clean, other, data_range=1.0))


@dataclass(frozen=True)
class Restoration:
    """How like the clean images their corrupted copies were, and how like them they came back.

    Measured on pixels in [0, 1], as the model sees them, and not clipped to that range.
    """

    corruption: str
    corrupted: Likeness
    restored: Likeness

    def sentence(self) -> str:
        """Say it in words."""
        before, after = self.corrupted, self.restored
        return (
            f"{self.corruption}: PSNR from {before.mean_psnr:.2f} to {after.mean_psnr:.2f} dB, "
            f"SSIM from {before.mean_ssim:.3f} to {after.mean_ssim:.3f}, over "
            f"{len(before.psnr):,} images"
        )


def restoration(
    ae: Autoencoder,
    X: Any,
    corruption: str | Corruption | Sequence[str | Corruption] | None = None,
    seed: int = 0,
    field: str | None = None,
) -> Restoration:
    """Corrupt clean images, let the model restore them, and measure both.

    ``X`` is whatever ``ae`` takes. ``corruption`` is named as in the estimator (None: the one the
    model was trained with), and drawn from ``seed``. ``field`` names the images to measure, where
    there are several. Raises :class:`InputError` without images, without a corruption, and for
    missing pixels, which nothing can be compared with.

    >>> from sklearn.datasets import load_digits
    >>> from refold import Autoencoder
    >>> images = load_digits().images[:400] / 16
    >>> ae = Autoencoder(16, corruption="gaussian(std=0.3)", epochs=1).fit(images)
    >>> found = restoration(ae, images[:50])
    >>> found.restored.mean_psnr > found.corrupted.mean_psnr
    True
    """
    check_is_fitted(ae)
    schema: Schema = ae.schema_
    name = image_field(schema, field)
    spec = ae.spec_.corruption if corruption is None else resolve(corruption)
    if spec is None:
        raise InputError(
            "the model was trained without a corruption; say which to restore from, as in "
            "corruption='gaussian(std=0.1)'"
        )
    clean, _ = schema.encode(read(X))
    if len(clean) == 0:
        raise InputError("the data has no images to restore; give at least one")
    seen = clean.observed[name]
    if seen is not None and not seen.all():
        row = int((~seen).any(1).nonzero()[0])
        raise InputError(
            f"image {row} has missing pixels, which cannot be compared; leave such images out"
        )
    given, back = restore(ae, clean, corruptions.build(spec), seed, name)
    original = pixels(clean.x[name])
    return Restoration(
        str(spec), Likeness.of(original, pixels(given)), Likeness.of(original, pixels(back))
    )


@torch.inference_mode()
def restore(
    ae: Autoencoder, clean: Batch, corruption: Corruption, seed: int, name: str
) -> tuple[Tensor, Tensor]:
    """Corrupt rows portion by portion; images ``[n, C, H, W]`` as given, and as they come back."""
    generator = torch.Generator().manual_seed(seed)
    given: list[Tensor] = []
    back: list[Tensor] = []
    for start in range(0, len(clean), inference.PORTION):
        part = corruption(clean.rows(slice(start, start + inference.PORTION)), generator)
        given.append(part.x[name])
        for output, count in inference.outputs(ae.model_, part, ae.schema_):
            back.append(inference.points(ae.model_, output.params)[name][:count])
    whole = torch.cat(given)
    return whole, torch.cat(back).view_as(whole)


def image_field(schema: Schema, wish: str | None) -> str:
    """Name the one image field, or the one asked for."""
    names = [k for k, own in schema.fields.items() if isinstance(own, Image)]
    if not names:
        raise InputError(
            f"the model has no images (its fields: {', '.join(schema.fields)}), and PSNR and SSIM "
            f"are of images; use squared_error"
        )
    if wish is not None and wish not in names:
        raise unknown("image field", wish, names)
    if wish is None and len(names) > 1:
        raise InputError(f"the model has several images; say which with field=: {', '.join(names)}")
    return names[0] if wish is None else wish


def pixels(x: Tensor) -> NDArray[Any]:
    """Images ``[n, C, H, W]`` as an array ``[n, H, W, C]``."""
    return x.cpu().movedim(1, -1).numpy()


def psnr(clean: Any, other: Any, data_range: float | None = None) -> Floats:
    r"""Peak signal-to-noise ratio of each image ``[n]``, in dB; infinite for equal images.

    .. math:: 10 \log_{10} \frac{R^2}{\operatorname{mean}((x - y)^2)}

    ``clean`` and ``other`` are ``[n, H, W]`` or ``[n, H, W, C]`` (or channels first).
    ``data_range`` :math:`R` is 255 for 8-bit images and 1 for others where it is not given. The
    figures are scikit-image's.

    >>> psnr(np.zeros((1, 8, 8)), np.full((1, 8, 8), 0.1)).round(6).tolist()
    [20.0]
    """
    x, y, scale = comparable(clean, other, data_range)
    with np.errstate(divide="ignore"):
        ratios = [
            metrics().peak_signal_noise_ratio(a, b, data_range=scale)
            for a, b in zip(x, y, strict=True)
        ]
    return np.array(ratios, dtype=np.float64)


def ssim(clean: Any, other: Any, data_range: float | None = None) -> Floats:
    """Structural similarity of each image ``[n]``: 1 for equal images; the mean over channels.

    Arguments are those of :func:`psnr`. Windows have 7 pixels a side, fewer where the images are
    smaller. The figures are scikit-image's, with its defaults in all else.

    Source: Wang et al., Image Quality Assessment, 2004.

    >>> images = np.random.default_rng(0).random((2, 8, 8))
    >>> ssim(images, images).tolist()
    [1.0, 1.0]
    """
    x, y, scale = comparable(clean, other, data_range)
    side = min(x.shape[1:3])
    if side < SMALLEST:
        raise InputError(
            f"images of {x.shape[1]}x{x.shape[2]} pixels are too small for SSIM; every side needs "
            f"at least {SMALLEST}"
        )
    window = min(WINDOW, side - 1 + side % 2)  # the largest odd number that fits
    ratios = [
        metrics().structural_similarity(a, b, data_range=scale, channel_axis=-1, win_size=window)
        for a, b in zip(x, y, strict=True)
    ]
    return np.array(ratios, dtype=np.float64)


def enlarge(
    images: Any, factor: int, mode: str = "bilinear", size: tuple[int, int] | None = None
) -> NDArray[Any]:
    """Enlarge images the way the corruption ``downscale`` does, for a model trained with it.

    ``images`` are ``[n, h, w]``, ``[n, h, w, C]`` or ``[n, C, h, w]``; the result is alike in
    layout and type, with sides ``factor`` times as long, or of the given ``size`` (height, width)
    where the model's are no multiple. ``ae.reconstruct(enlarge(small, 2))`` then super-resolves.

    >>> enlarge(np.array([[[0.0, 1.0]]]), 2, mode="nearest").tolist()
    [[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]]
    """
    if factor < 1:
        raise InputError(f"the factor is {factor}; it must be 1 or more")
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    array = np.asarray(images)
    last, layout = channels_last(array, "images")
    x = torch.from_numpy(last.astype(np.float64)).movedim(-1, 1)
    wish = (factor * x.shape[2], factor * x.shape[3]) if size is None else size
    if wish[0] < x.shape[2] or wish[1] < x.shape[3]:
        raise InputError(
            f"images of {x.shape[2]}x{x.shape[3]} pixels cannot be enlarged to "
            f"{wish[0]}x{wish[1]}; give a larger size"
        )
    large = resize(x, wish, mode)
    whole = {"grey": large[:, 0], "last": large.movedim(1, -1), "first": large}[layout]
    return as_dtype(np.ascontiguousarray(whole.numpy()), array.dtype)


def comparable(
    clean: Any, other: Any, data_range: float | None
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Bring two sets of images to ``[n, H, W, C]`` in floats, and settle their range."""
    x, y = np.asarray(clean), np.asarray(other)
    if x.shape != y.shape:
        raise InputError(
            f"the clean images have shape {x.shape}, the others {y.shape}; give one for each"
        )
    bytes_ = x.dtype == np.uint8
    if data_range is None and bytes_ != (y.dtype == np.uint8):
        raise InputError(
            f"the clean images hold {x.dtype}, the others {y.dtype}; bring them to one scale, or "
            f"give data_range"
        )
    scale = (255.0 if bytes_ else 1.0) if data_range is None else data_range
    if not scale > 0:
        raise InputError(f"data_range is {scale}; it must be above 0")
    # In double precision, so that what is measured is the images' error and not the sums'.
    a, b = (channels_last(v, "the images")[0].astype(np.float64) for v in (x, y))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("the images hold missing or infinite pixels; compare whole images")
    return a, b, scale


def channels_last(images: NDArray[Any], what: str) -> tuple[NDArray[Any], str]:
    """Return images as ``[n, H, W, C]``, and the layout they came in."""
    if images.ndim == 3:
        return images[..., None], "grey"
    if images.ndim == 4 and images.shape[3] in CHANNELS:
        return images, "last"
    if images.ndim == 4 and images.shape[1] in CHANNELS:
        return np.moveaxis(images, 1, -1), "first"
    raise InputError(
        f"{what} have shape {images.shape}; expected (n, height, width) or (n, height, width, "
        f"channels) with 1, 3 or 4 channels"
    )


def metrics() -> Any:
    """scikit-image's metrics, imported when first needed: most models never are judged by them."""
    try:
        return importlib.import_module("skimage.metrics")
    except ImportError as error:
        raise missing_extra("scikit-image", "images", "measuring PSNR and SSIM") from error
