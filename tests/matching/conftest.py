from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from d2net.features import Features

DATA = Path(__file__).parents[1] / "data"


def sift(path, limit):
    """RootSIFT of a photo: real features that do not need the network."""
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    found, descriptors = cv2.SIFT_create(limit).detectAndCompute(grey, None)
    found, descriptors = found[:limit], descriptors[:limit]
    rooted = np.sqrt(descriptors / descriptors.sum(axis=1, keepdims=True))
    return Features(
        keypoints=torch.tensor([keypoint.pt for keypoint in found]),
        scores=torch.tensor([keypoint.response for keypoint in found]),
        scales=torch.ones(len(found)),
        descriptors=torch.nn.functional.normalize(torch.from_numpy(rooted).float(), dim=1),
        image_size=grey.shape[::-1],
        uncertainty=torch.ones(len(found)),
    )


@pytest.fixture(scope="session")
def graf():
    """Features of both photos of the pair and the homography from the first to the second."""
    H = np.loadtxt(DATA / "H1to3p.txt")
    return sift(DATA / "graf1.jpg", 2000), sift(DATA / "graf3.jpg", 2000), H
