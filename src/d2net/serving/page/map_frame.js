"use strict";
// Adds the camera of the last localized photo to those of the map. `data`, `pick` and other names
// are from map.js.

const inMap = data.cameras.length;

addEventListener("message", ({ origin, data: camera }) => {
  if (origin !== location.origin || !gl) return;
  data.cameras.length = inMap;
  if (camera) data.cameras.push({ ...camera, name: "your photo", error: null });
  changeCameras();
  pick(-1);
  pick(camera ? inMap : -1);
  pinned = picked >= 0;
});
