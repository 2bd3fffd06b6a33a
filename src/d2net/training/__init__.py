"""Training: from any reconstruction to weights."""
