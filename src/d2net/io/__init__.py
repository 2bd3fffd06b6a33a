"""Files in and out: photos, masks, features, matches, camera poses and models."""
