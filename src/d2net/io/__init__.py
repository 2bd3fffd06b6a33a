"""Files in and out: photos, masks, features, matches, camera poses and models.

- Photos: `images` (read, resize), `image_decoding`, `image_lists` (which photos), `exif`.
- Features and matches: `h5` (hloc's layout), `global_descriptors`, `release` (the 2019 release),
  `kapture`, `colmap_database`.
- Cameras and poses: `colmap_model`, `intrinsics`, `poses`, `pairs`.
- Writing: `atomic` (safe files and locks), `resume` (what is finished), `container` and `resumable`
  (large HDF5 files over long runs).
"""
