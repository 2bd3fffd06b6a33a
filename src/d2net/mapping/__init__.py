"""Maps: made from photos, and used to localize other photos."""
