"""Photos of the corner of a room with pictures on its walls, rendered for known cameras."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

DATA = Path(__file__).with_name("data")
SIZE = (400, 300)
K = np.array([[400.0, 0, 199.5], [0, 400, 149.5], [0, 0, 1]])  # pixel centres at integers
_HEIGHT = 3.0  # of the walls; each is as wide as its picture makes it


def room_view(x: float, turn: float = 0.0) -> np.ndarray:
    """What a camera sees x to the side and 5 in front of the corner, turned by some degrees."""
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    centre = np.array([x, 0.15 * np.sin(3 * x), -5.0])
    image = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    for name, direction in (("graf1", (-0.8, 0.0, -0.6)), ("graf3", (0.8, 0.0, -0.6))):
        with Image.open(DATA / f"{name}.jpg") as picture:
            texture = np.asarray(picture.convert("RGB"))
        if direction[0] < 0:
            texture = texture[:, ::-1]  # its columns run away from the corner
        along = np.array(direction) * (_HEIGHT / len(texture))
        down = np.array([0, _HEIGHT / len(texture), 0])
        corner = np.array([0, -_HEIGHT / 2, 0])
        wall = np.column_stack([along, down, corner])  # world from pixel of the picture
        H = K @ rotation @ (wall - np.outer(centre, [0, 0, 1]))
        seen = cv2.warpPerspective(texture, H, SIZE, flags=cv2.INTER_AREA)
        mask = cv2.warpPerspective(np.ones(texture.shape[:2], np.uint8), H, SIZE)
        image[mask > 0] = seen[mask > 0]
    return image


def write_room(folder: Path, views: dict[str, tuple[float, float]]) -> None:
    """A photo for each name: (x, turn)."""
    for name, (x, turn) in views.items():
        Image.fromarray(room_view(x, turn)).save(folder / name, quality=95)
