"""Photometric augmentation: another hour, other weather, another camera."""

from __future__ import annotations

from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from d2net.training.crops import RGB

_Light: TypeAlias = NDArray[Any]  # H x W x 3 float32, 0..1

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_MIN_HIGHLIGHT, _MAX_MEDIAN = 0.3, 0.8
"""Limits of a crop's brightness after augmentation: of its 98th percentile and of its median."""


def augment(image: RGB, strength: float, rng: np.random.Generator) -> RGB:
    """Change the light and the camera of an H x W x 3 crop; no pixel moves.

    The changes follow the path of the light: tone and colour of the scene, shadows and night, then
    the lens, the noise of the sensor and JPEG. Equal generators give equal crops. `strength` scales
    the size of each change and how often the rarer ones happen: 0 for no change, 1 for strong ones.
    """
    if strength <= 0:
        return image

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability * min(1.0, strength + 0.2))

    def factor() -> Any:  # noqa: ANN401 (float32 of numpy)
        """A factor as likely as its inverse."""
        return np.float32(2 ** rng.uniform(-strength, strength))

    light = image.astype(np.float32) / 255
    if happens(0.6):  # exposure
        light = light * factor()
    if happens(0.6):  # gamma
        light = light ** factor()
    if happens(0.4):  # contrast
        mean = light.mean(dtype=np.float32)
        light = np.maximum(mean + (light - mean) * factor(), 0)
    if happens(0.6):  # white balance, from candle to blue hour
        warm, green = rng.uniform(-0.6, 0.6) * strength, rng.uniform(-0.15, 0.15) * strength
        light = light * np.exp2(np.array([warm, green, -warm], np.float32))
    if happens(0.4):  # saturation
        grey = (light @ _LUMA)[..., None]
        saturation = np.float32(rng.uniform(max(0.0, 1 - strength), 1 + 0.6 * strength))
        light = np.maximum(grey + (light - grey) * saturation, 0)
    if happens(0.1):
        light = _other_sensor(light, strength, rng)
    if happens(0.25):
        light = _shadow(light, strength, rng)
    if happens(0.2):
        light = _uneven_light(light, strength, rng)
    if happens(0.15):  # haze
        share = np.float32(rng.uniform(0.1, 0.6) * min(1.0, strength))
        light = light * (1 - share) + share * np.float32(rng.uniform(0.5, 1.0))
    if happens(0.2):
        light = np.maximum(_night(light, strength, rng), 0)
    light = np.clip(_auto_exposure(light), 0, 1)
    if happens(0.25):
        light = _blur(light, strength, rng)
    if happens(0.4):
        light = _noise(light, strength, rng)
    augmented = np.rint(np.clip(light, 0, 1) * 255).astype(np.uint8)
    return _jpeg(augmented, strength, rng) if rng.random() < 0.3 else augmented


def remove_detail(image: RGB, rng: np.random.Generator) -> RGB:
    """Blur an H x W x 3 crop by 0.7 to 3.5 pixels, or reduce it and enlarge it again."""
    sigma = float(np.exp(rng.uniform(np.log(0.7), np.log(3.5))))
    if rng.random() < 0.6:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    height, width = image.shape[:2]
    size = max(2, round(width / (1 + sigma))), max(2, round(height / (1 + sigma)))
    reduced = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    enlarging = cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(reduced, (width, height), interpolation=enlarging), np.uint8)


def _other_sensor(light: _Light, strength: float, rng: np.random.Generator) -> _Light:
    """A sensor of another band, such as infrared: bright objects may turn dark."""
    weights = rng.uniform(-0.6, 1.0, 3).astype(np.float32)
    band = light @ (weights / max(float(np.abs(weights).sum()), 1e-3))
    low, high = np.percentile(band, (1, 99))
    band = np.clip((band - low) / max(float(high - low), 1e-3), 0, 1).astype(np.float32)
    if rng.random() < 0.3:
        band = 1 - band
    mix = np.float32(min(1.0, 0.5 + 0.5 * strength))
    return np.asarray(mix * band[..., None] + (1 - mix) * light, np.float32)


def _shadow(light: _Light, strength: float, rng: np.random.Generator) -> _Light:
    """A soft-edged polygonal shadow, like that of a building, bluer than the sunlight."""
    height, width = light.shape[:2]
    corners = rng.uniform(-0.4, 1.4, (int(rng.integers(3, 7)), 2)) * (width, height)
    mask = np.zeros((height, width), np.float32)
    cv2.fillPoly(mask, [cv2.convexHull(corners.astype(np.float32)).astype(np.int32)], 1.0)
    softness = rng.uniform(0.5, 6)
    mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), softness), np.float32)[..., None]
    depth = rng.uniform(0.3, 0.8) * min(1.0, strength)
    tint = np.array([1.0, 0.97, 0.9], np.float32)
    return np.asarray(light * (1 - mask * np.float32(depth) * tint), np.float32)


def _uneven_light(light: _Light, strength: float, rng: np.random.Generator) -> _Light:
    """Light that falls off across the crop: a low sun, a street lamp, a vignette."""
    height, width = light.shape[:2]
    x0, y0 = rng.uniform(-0.2, 1.2, 2) * (width, height)
    reach = rng.uniform(0.4, 1.5) * max(height, width)
    dx, dy = np.arange(width, dtype=np.float32) - x0, np.arange(height, dtype=np.float32) - y0
    fall = np.exp(-(dx[None] ** 2 + dy[:, None] ** 2) / (2 * reach**2)).astype(np.float32)
    depth = np.float32(rng.uniform(0.2, 0.8) * min(1.0, strength))
    return np.asarray(light * (1 - depth + depth * fall)[..., None], np.float32)


def _night(light: _Light, strength: float, rng: np.random.Generator) -> _Light:
    """Night: dark and high in contrast, coloured and partly lit, with the noise of a high gain."""
    dark = light ** np.float32(1 + rng.uniform(0.3, 1.2) * strength)
    lamps = np.array([1.0, 0.8, 0.45], np.float32)  # sodium
    sky = np.array([0.6, 0.75, 1.0], np.float32)
    mix = np.float32(rng.random())
    dark = _uneven_light(dark * (mix * lamps + (1 - mix) * sky), strength, rng)
    bright = np.percentile(dark[::4, ::4], 98)
    dark = dark * np.float32(rng.uniform(0.3, 0.9) / max(float(bright), 1e-2))
    return _noise(dark, strength, rng)


def _auto_exposure(light: _Light) -> _Light:
    """Keep the brightness within the limits of a camera, so that every crop shows something."""
    bright, median = np.percentile(light[::4, ::4], (98, 50))
    gain = max(1.0, _MIN_HIGHLIGHT / max(float(bright), 1e-3))
    gain = min(gain, max(1e-3, _MAX_MEDIAN / max(median, 1e-3)))
    return np.asarray(light * np.float32(gain), np.float32)


def _blur(light: _Light, strength: float, rng: np.random.Generator) -> _Light:
    """Defocus, or motion along a line."""
    if rng.random() < 0.6:
        return np.asarray(cv2.GaussianBlur(light, (0, 0), 0.3 + rng.uniform(0, 1.5) * strength))
    length = max(2, round(rng.uniform(2, 2 + 6 * strength)))
    kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
    angle = rng.uniform(0, np.pi)
    step = length / 2 * np.array([np.cos(angle), np.sin(angle)])
    ends = [tuple(np.rint((length + sign * step) * 16).astype(int).tolist()) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_AA, shift=4)
    return np.asarray(cv2.filter2D(light, -1, kernel / kernel.sum()), np.float32)


def _noise(light: _Light, strength: float, rng: np.random.Generator) -> _Light:
    """Photon noise, which grows with the light, and read noise, which does not."""
    photons, reading = rng.uniform(0, 0.05) * strength, rng.uniform(0, 0.04) * strength
    deviation = np.sqrt(np.float32(photons**2) * light + np.float32(reading**2))
    grain = rng.standard_normal(light.shape, np.float32)
    if rng.random() < 0.5:  # cameras remove colour noise
        grain = np.repeat(grain[..., :1], 3, axis=2)
    return np.asarray(light + deviation * grain, np.float32)


def _jpeg(image: RGB, strength: float, rng: np.random.Generator) -> RGB:
    quality = round(95 - rng.uniform(0, 65) * min(1.0, strength))
    bgr = np.ascontiguousarray(image[..., ::-1])
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Any = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(decoded[..., ::-1], dtype=np.uint8)
