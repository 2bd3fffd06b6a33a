"""Training of weights from photos, aligned photos and reconstructions."""
