"""Read photos and masks, and resize photos.

Inside the package a photo is an array of *pixels*: H x W x 3 RGB, uint8. Sources with more than
8 bits per channel give float32 in 0..255, so that no precision is lost.
"""

from __future__ import annotations

import io
import math
import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from d2net.errors import InputError
from d2net.geometry.coordinates import Size
from d2net.io.image_decoding import MAX_PIXELS, Samples, UnreadableError, decode

Pixels: TypeAlias = npt.NDArray[np.uint8 | np.float32]  # H x W x 3 RGB, uint8 or float32 in 0..255

ImageLike: TypeAlias = (
    str | os.PathLike[str] | io.BytesIO | Image.Image | npt.NDArray[Any] | torch.Tensor
)
"""A photo in any form that `to_pixels` accepts."""

MaskLike: TypeAlias = str | os.PathLike[str] | Image.Image | npt.NDArray[Any]
"""A mask in any form that `read_mask` accepts."""

_MAX_OUTLIERS = 0.01
"""Share of floating-point samples that may exceed the range; these highlights are clipped."""

_FLOAT_SLACK = 1e-3
"""Samples within this share of the range count as inside: resampling and rounding overshoot."""


def read_image(
    source: str | os.PathLike[str] | io.BytesIO | Image.Image,
    *,
    upright: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Read a photo: JPEG, PNG, TIFF, HEIC, WebP, PPM, PGM, BMP or GIF; the first of its frames.

    Grey becomes three equal channels; palette, CMYK, YCbCr and LAB become RGB. Embedded colour
    profiles are not applied. Alpha is dropped and the colours below it are kept, because blending
    with an invented background would draw edges that the camera never saw (use a mask to exclude
    keypoints). 16-bit samples are divided by 257. Floating-point samples are in 0..1,
    0..255 or 0..65535: the smallest range that contains at least 99 % of them. The others, for
    example highlights, are clipped.

    Args:
        source: a file on the disk or in memory, or the current frame of a pillow image. Prefer
            files: pillow reduces 16-bit RGB to 8 bits, and rotates a TIFF upright when it loads it.
        upright: apply the EXIF orientation; False keeps the stored one. HEIC is always upright.
        max_pixels: larger files are refused before memory is allocated for them.

    Raises:
        ImageError: the file is missing, unreadable, damaged, too large or not a photo.
    """
    return decode(source, _pixels_from_samples, upright=upright, max_pixels=max_pixels)


def to_pixels(image: ImageLike, *, upright: bool = True) -> Pixels:
    """Pixels of a photo that is given as a file, an array or a tensor.

    Args:
        image: a path, a file in memory or a pillow image (see `read_image`); an array H x W or
            H x W x 1, 3 or 4 in RGB order, of bool, uint8, uint16 or float; or a tensor 1 x H x W
            or 3 x H x W, with or without a batch dimension of one, of uint8 or float. The range of
            floats is found as in `read_image`; it should be [0, 1].
        upright: as for `read_image`; has no effect on arrays and tensors.

    Raises:
        ImageError: a file cannot be read.
        InputError: the image has another type, shape or range of values.
    """
    if isinstance(image, torch.Tensor):
        if image.layout != torch.strided or image.is_meta:
            raise InputError("an image tensor must be dense and hold values, not sparse or meta")
        tensor = image[0] if image.ndim == 4 and len(image) == 1 else image
        if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
            raise InputError(
                "an image tensor must be 1 x H x W or 3 x H x W, or one of these with a batch "
                f"dimension of one, not of shape {tuple(image.shape)}"
            )
        tensor = tensor.detach().cpu().permute(1, 2, 0)
        return _pixels_from_array(
            (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        )
    if isinstance(image, np.ndarray):
        if isinstance(image, np.ma.MaskedArray):
            mask = "~np.ma.getmaskarray(image)" + ".any(axis=2)" * (image.ndim == 3)
            raise InputError(f"masked arrays are refused: give image.filled(0) and mask={mask}")
        if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
            raise InputError(
                f"an image array must be H x W or H x W x 1, 3 or 4, not of shape {image.shape}"
            )
        return _pixels_from_array(image)
    if isinstance(image, (str, os.PathLike, io.BytesIO, Image.Image)):
        return read_image(image, upright=upright)
    raise InputError(
        "an image must be a path, a pillow image, a NumPy array or a torch tensor, not "
        f"{type(image).__name__}"
    )


def read_mask(mask: MaskLike, size: Size, *, upright: bool = True) -> npt.NDArray[np.bool_]:
    """Read a mask, H x W bool: keypoints are allowed where any channel is neither zero nor NaN.

    Save masks in a lossless format: JPEG puts small values beside every edge. Of 2 or 4 channels
    the last one is alpha, which is ignored. `size` is that of the photo, after it was rotated
    upright if `upright` is set; a mask of another size is an error.
    """
    if isinstance(mask, np.ndarray):
        if isinstance(mask, np.ma.MaskedArray):
            raise InputError("masked arrays are refused: give mask.filled(0)")
        if mask.ndim not in (2, 3):
            raise InputError(f"a mask must be H x W or H x W x C, not of shape {mask.shape}")
        has_alpha = mask.ndim == 3 and mask.shape[2] in (2, 4)
        allowed = _is_set(mask[..., :-1] if has_alpha else mask)
    else:
        allowed = decode(mask, _is_set, upright=upright)
    height, width = allowed.shape
    if (width, height) != tuple(size):
        named = f" {os.fspath(mask)!r}" if isinstance(mask, (str, os.PathLike)) else ""
        raise InputError(
            f"the mask{named} has {width} x {height} pixels but its photo has "
            f"{size[0]} x {size[1]}: save the mask in the photo's size and orientation"
        )
    return allowed


def limited_size(size: Size, max_edge: int | None, max_sum_edges: int | None) -> Size:
    """The size (width, height) to which a photo is reduced before extraction.

    One factor of at most 1 meets the limits of the longer edge and of width + height, so that the
    photo is resampled only once.
    """
    factor = min(1.0, (max_edge or math.inf) / max(size), (max_sum_edges or math.inf) / sum(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resize(pixels: Pixels, size: Size) -> Pixels:
    """Resample to `size` (width, height): bilinear, with anti-aliasing.

    Positions change as in `geometry.coordinates.resize`: borders map to borders. Pixels that have
    this size already are returned without a copy.
    """
    height, width = pixels.shape[:2]
    if (width, height) == tuple(size):
        return pixels
    if pixels.dtype == np.uint8:
        return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    resized = np.empty((size[1], size[0], 3), np.float32)  # pillow resizes single float channels
    for channel in range(3):
        plane = Image.fromarray(np.ascontiguousarray(pixels[:, :, channel]))
        resized[:, :, channel] = np.asarray(plane.resize(size, Image.Resampling.BILINEAR))
    return resized


def stretch_contrast(pixels: Pixels) -> Pixels:
    """Map the darkest and brightest 0.1 % of all samples to 0 and 255, and the others linearly.

    Returns:
        float32; `pixels` themselves if all samples are equal.
    """
    low, high = _range_of_samples(pixels)
    if low == high:
        return pixels
    return ((pixels.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255)


def has_low_contrast(pixels: Pixels) -> bool:
    """Whether a photo uses less than a tenth of its range, as 12 bits in 16 or thermal photos do.

    False for a constant image, in which there is nothing to stretch.
    """
    low, high = _range_of_samples(pixels)
    return 0 < high - low < 255 / 10


def raise_low_contrast(pixels: Pixels) -> Pixels:
    """Stretch the contrast of a photo that uses less than a tenth of its range."""
    return stretch_contrast(pixels) if has_low_contrast(pixels) else pixels


def for_screen(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Convert pixels to 8 bits for display; a low contrast is stretched."""
    return np.rint(raise_low_contrast(pixels)).astype(np.uint8)


def _range_of_samples(pixels: Pixels) -> tuple[float, float]:
    """The values below and above which 0.1 % of all samples lie."""
    step = math.ceil(math.sqrt(pixels.size / 100_000))  # this many samples are enough
    low, high = np.percentile(pixels[::step, ::step], (0.1, 99.9))
    return float(low), float(high)


def resize_like_release(
    pixels: Pixels, max_edge: int | None, max_sum_edges: int | None
) -> npt.NDArray[Any]:
    """Apply the size limits exactly as the 2019 release does.

    The release applies one limit after the other with `imresize` of SciPy 1.1, which rounds sizes
    down, resamples 8 bits bilinearly, and first stretches anything but uint8 to 0..255. The first
    result is converted to float, so the second resize stretches the contrast.

    Returns:
        H x W x 3 uint8, or `pixels` itself if they are within the limits.
    """
    resized: npt.NDArray[Any] = pixels
    height, width = resized.shape[:2]
    if max_edge is not None and max(height, width) > max_edge:
        resized = _imresize(resized, max_edge / max(height, width))
        height, width = resized.shape[:2]
    if max_sum_edges is not None and height + width > max_sum_edges:
        first = resized if resized is pixels else resized.astype(np.float64)
        resized = _imresize(first, max_sum_edges / (height + width))
    return resized


def _imresize(image: npt.NDArray[Any], fraction: float) -> npt.NDArray[np.uint8]:
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        stretched = (image.astype(np.float64) - low) * (255 / ((high - low) or 1.0))
        image = (stretched.clip(0, 255) + 0.5).astype(np.uint8)
    height, width = image.shape[:2]
    # Where a side would become empty, the release stops with an error; here it keeps one pixel.
    size = max(1, int(width * fraction)), max(1, int(height * fraction))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _is_set(samples: Samples) -> npt.NDArray[np.bool_]:
    is_set: npt.NDArray[np.bool_] = np.any(np.nan_to_num(np.atleast_3d(samples)), axis=2)
    return is_set


def _pixels_from_samples(samples: Samples) -> Pixels:
    """Convert the samples of a file to three channels in 0..255."""
    if samples.dtype.kind == "f":
        try:
            return _three_channels(_float_pixels(samples))
        except InputError as error:
            raise UnreadableError(str(error)) from None
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > 65535:  # pillow's 32-bit mode usually contains 16 bits
        raise UnreadableError(f"it has values from {low} to {high}, expected 0 to 65535")
    return _three_channels(_integer_pixels(samples))


def _integer_pixels(samples: Samples) -> Pixels:
    return samples if samples.dtype == np.uint8 else samples.astype(np.float32) / np.float32(257)


def _float_pixels(samples: Samples) -> Pixels:
    """Scale floating-point samples to 0..255; see `read_image`."""
    if not np.isfinite(samples).all():
        raise InputError("the image has NaN or infinite values")
    max_outliers = _MAX_OUTLIERS * samples.size
    for white in (1, 255, 65535):
        slack = _FLOAT_SLACK * white
        if np.count_nonzero(samples > white + slack) <= max_outliers:
            if np.count_nonzero(samples < -slack) > max_outliers:
                break
            return (samples.clip(0, white) * (255 / white)).astype(np.float32)
    raise InputError(
        f"the image has values from {samples.min():g} to {samples.max():g}; expected 0 to 1, 0 to "
        "255 or 0 to 65535"
    )


def _three_channels(pixels: Pixels) -> Pixels:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _pixels_from_array(array: npt.NDArray[Any]) -> Pixels:
    if 0 in array.shape:
        raise InputError(f"an image must have at least one pixel, not shape {array.shape}")
    if array.ndim == 3:
        array = array[:, :, 0] if array.shape[2] == 1 else array[:, :, :3]
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        array = _float_pixels(array)
    elif array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        array = _integer_pixels(array)
    else:
        raise InputError(f"image values must be bool, uint8, uint16 or float, not {array.dtype}")
    return np.require(_three_channels(array), requirements=["C", "W"])
