"""A scene with depth, two cameras that see it, and a source that gives prepared keypoints."""

import numpy as np
import torch

from d2net.features import Features

SIZE = (800, 600)
K = np.array([[700.0, 0, 400], [0, 700, 300], [0, 0, 1]])  # pixel centres at integers
R = np.array([[0.96, 0.0, 0.28], [0.0, 1.0, 0.0], [-0.28, 0.0, 0.96]])
T = np.array([-1.0, 0.15, 0.3])  # x_b = R x_a + T


def project(X):
    x = X @ K.T
    return x[:, :2] / x[:, 2:]


def views(n, seed):
    """Both projections of n points."""
    X = np.random.default_rng(seed).uniform([-2, -1.5, 5], [2, 1.5, 12], (n, 3))
    return project(X), project(X @ R.T + T)


class Known:
    """Gives prepared keypoints by name, at most 200; rows of equal number match."""

    name = "known"

    def __init__(self, points, size=SIZE):
        self._points = points
        self._size = size
        self.provenance = {"points": {name: np.asarray(p).tolist() for name, p in points.items()}}

    def extract(self, photo, name):
        points = torch.tensor(np.asarray(self._points[name]), dtype=torch.float32).reshape(-1, 2)
        n = len(points)
        return Features(
            keypoints=points,
            scores=torch.ones(n),
            scales=torch.ones(n),
            descriptors=torch.eye(200)[:n],
            image_size=self._size,
            uncertainty=torch.ones(n),
        )
