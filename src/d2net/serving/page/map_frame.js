"use strict";
// Adds the camera of the photo that was placed last to those of the map; see map.js, whose names
// these are.

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
