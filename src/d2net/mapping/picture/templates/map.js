"use strict";
// Draws the points and cameras of the map with WebGL 2, and turns them with pointer and keys.
// The scene's axes are x right, y forward, z up; the viewer's are x right, y down, z forward.

const MARGIN = 0.9; // share of the picture that the frame fills
const NEAR = 0.02, FAR = 200; // over the distance to the middle
const PICKED_COLOUR = [0.91, 0.35, 0.05];
const RATIO = 2; // drawn pixels per CSS pixel; browsers smooth while they reduce
const PICK_RADIUS = 24; // CSS pixels within which a camera is picked

const POINT_SHADER = `#version 300 es
precision highp float;
layout(location = 0) in vec3 position;
layout(location = 1) in vec4 look;
uniform mat3 viewFromWorld;
uniform vec3 target;
uniform vec2 focal; // clip space over tangents of the field of view
uniform float distance_, near, far, radius, pixels; // pixels: of a tangent of 1
out vec3 colour;
out float rim, rimDepth;
float depthOf(float z) { return 0.5 + 0.5 * ((far + near) - 2.0 * far * near / z) / (far - near); }
void main() {
  vec3 p = viewFromWorld * (position - target) + vec3(0.0, 0.0, distance_);
  float z = p.z;
  gl_Position = vec4(focal.x * p.x, -focal.y * p.y, (2.0 * depthOf(z) - 1.0) * z, z);
  float size = max(2.0 * radius * pixels / z, 3.0);
  gl_PointSize = min(size, 128.0) + 1.6;
  rim = 1.0 - 1.8 / gl_PointSize; // where the rim begins, over the radius
  rimDepth = depthOf(1.01 * z);
  colour = look.rgb;
}`;
// A disc with a dark rim that lies a little behind it, so that the rim shows only at the edges of
// surfaces.
const POINT_COLOURING = `#version 300 es
precision highp float;
in vec3 colour;
in float rim, rimDepth;
out vec4 result;
void main() {
  float d = length(2.0 * gl_PointCoord - 1.0);
  if (d > 1.0) discard;
  bool edge = d > rim;
  gl_FragDepth = edge ? rimDepth : gl_FragCoord.z;
  result = vec4(edge ? 0.45 * colour : colour, 1.0);
}`;
// A line is a rectangle across its direction on the screen; a face of a camera is a triangle.
const LINE_SHADER = `#version 300 es
precision highp float;
layout(location = 0) in vec3 start; // from the origin of the cameras
layout(location = 1) in vec3 end;
layout(location = 2) in float camera;
uniform mat3 viewFromWorld;
uniform vec3 shift;
uniform vec2 focal, size; // size of the picture in pixels
uniform float distance_, near, far, width, picked;
flat out float chosen;
vec4 clip(vec3 p) {
  return vec4(focal.x * p.x, -focal.y * p.y,
              ((far + near) * p.z - 2.0 * far * near) / (far - near), p.z);
}
void main() {
  chosen = camera == picked ? 1.0 : 0.0;
  vec3 a = viewFromWorld * (start + shift) + vec3(0.0, 0.0, distance_);
  vec3 b = viewFromWorld * (end + shift) + vec3(0.0, 0.0, distance_);
  if (min(a.z, b.z) < near) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
  vec4 p = clip(a), q = clip(b);
  vec2 along = (q.xy / q.w - p.xy / p.w) * size;
  vec2 across = vec2(-along.y, along.x) / max(length(along), 1e-6);
  vec4 own = (gl_VertexID & 1) == 0 ? p : q;
  float side = (gl_VertexID & 2) == 0 ? 1.0 : -1.0;
  gl_Position = own + vec4(side * across * (width * (1.0 + chosen)) / size * own.w, 0.0, 0.0);
}`;
const LINE_COLOURING = `#version 300 es
precision highp float;
flat in float chosen;
uniform vec3 colour, pickedColour;
uniform float opacity;
out vec4 result;
void main() { result = vec4(mix(colour, pickedColour, chosen), max(opacity, 0.8 * chosen)); }`;

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const canvas = byId("canvas");
const gl = canvas.getContext("webgl2", { antialias: true, alpha: false });

// --- The viewer's position ---------------------------------------------------------------

const view = {};
let moved = false, picked = -1, pinned = false;

function start(look = data.oblique) {
  Object.assign(view, { ...look, distance: fittingDistance(look) });
  moved = false;
  redraw();
}

// Of the canvas: data.tan_half_fov, or more along its longer side.
function tanHalfFov() {
  const aspect = canvas.clientWidth / canvas.clientHeight;
  const x = Math.max(data.tan_half_fov[0], data.tan_half_fov[1] * aspect);
  return [x, x / aspect];
}

function fittingDistance(look) {
  return Math.max(look.extent[0] / data.tan_half_fov[0], look.extent[1] / data.tan_half_fov[1]) / MARGIN;
}

// Rows: the viewer's right, down and forward directions in the world.
function viewFromWorld() {
  const [sy, cy, sp, cp] = [view.yaw, view.pitch].flatMap((a) => [Math.sin(a), Math.cos(a)]);
  const rows = [[cy, -sy, 0], [-sy * sp, -cy * sp, -cp], [sy * cp, cy * cp, -sp]];
  const s = data.scene_from_world;
  return rows.map((r) => [0, 1, 2].map((i) => r[0] * s[i] + r[1] * s[3 + i] + r[2] * s[6 + i]));
}

function dot(a, b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
function minus(a, b) { return a.map((value, i) => value - b[i]); }

// Position on the canvas in CSS pixels, and depth, of a point of the world.
function see(point, rows) {
  const p = rows.map((row) => dot(row, minus(point, view.target)));
  const depth = p[2] + view.distance, [x, y] = tanHalfFov();
  return [
    (canvas.clientWidth / 2) * (1 + p[0] / depth / x),
    (canvas.clientHeight / 2) * (1 + p[1] / depth / y),
    depth,
  ];
}

function turn(dx, dy) {
  view.yaw -= 0.006 * dx; // the scene follows the pointer
  view.pitch = Math.max(-1.55, Math.min(Math.PI / 2, view.pitch + 0.006 * dy));
}

function shift(dx, dy) {
  const scale = (2 * tanHalfFov()[0] * view.distance) / canvas.clientWidth, rows = viewFromWorld();
  view.target = view.target.map((t, i) => t - scale * (dx * rows[0][i] + dy * rows[1][i]));
}

function zoom(factor) {
  const fit = fittingDistance(data.oblique);
  view.distance = Math.max(0.01 * fit, Math.min(20 * fit, view.distance * factor));
}

// --- Drawing -------------------------------------------------------------------------------

let draw = () => {};
let waiting = false;

function redraw() {
  if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
  waiting = true;
}

function bytes(text) { return Uint8Array.from(atob(text), (c) => c.charCodeAt(0)); }

function program(vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const set = {}; // name -> function that sets the uniform
  const kinds = {
    [gl.FLOAT]: (at, value) => gl.uniform1f(at, value),
    [gl.FLOAT_VEC2]: (at, value) => gl.uniform2fv(at, value),
    [gl.FLOAT_VEC3]: (at, value) => gl.uniform3fv(at, value),
    [gl.FLOAT_MAT3]: (at, value) => gl.uniformMatrix3fv(at, true, value),
  };
  for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
    const { name, type } = gl.getActiveUniform(made, i), at = gl.getUniformLocation(made, name);
    set[name] = (value) => kinds[type](at, value);
  }
  return (values) => {
    gl.useProgram(made);
    for (const [name, value] of Object.entries(values)) if (set[name]) set[name](value);
  };
}

function buffer(content) {
  const made = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, made);
  gl.bufferData(gl.ARRAY_BUFFER, content, gl.STATIC_DRAW);
  return made;
}

function attribute(at, size, type, stride, offset, perInstance) {
  gl.enableVertexAttribArray(at);
  gl.vertexAttribPointer(at, size, type, type !== gl.FLOAT, stride, offset);
  gl.vertexAttribDivisor(at, perInstance ? 1 : 0);
}

function pointsArray() {
  const array = gl.createVertexArray();
  gl.bindVertexArray(array);
  buffer(bytes(data.positions));
  attribute(0, 3, gl.FLOAT, 12, 0, false);
  buffer(bytes(data.colours));
  attribute(1, 4, gl.UNSIGNED_BYTE, 4, 0, false);
  return array;
}

// Lines of all cameras, as (start, end, camera), relative to the page's first target.
function cameraLines() {
  const lines = [];
  data.cameras.forEach((camera, index) => {
    const corner = (i) => minus(camera.shape.slice(3 * i, 3 * i + 3), data.oblique.target);
    for (const [a, b] of [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]])
      lines.push(...corner(a), ...corner(b), index);
  });
  return new Float32Array(lines);
}

let linesBuffer;

function linesArray() {
  const array = gl.createVertexArray();
  gl.bindVertexArray(array);
  linesBuffer = buffer(cameraLines());
  attribute(0, 3, gl.FLOAT, 28, 0, true);
  attribute(1, 3, gl.FLOAT, 28, 12, true);
  attribute(2, 1, gl.FLOAT, 28, 24, true);
  return array;
}

// Call after changing data.cameras; the points stay in graphics memory.
function changeCameras() {
  gl.bindBuffer(gl.ARRAY_BUFFER, linesBuffer);
  gl.bufferData(gl.ARRAY_BUFFER, cameraLines(), gl.STATIC_DRAW);
  redraw();
}

function prepare() {
  const usePoints = program(POINT_SHADER, POINT_COLOURING);
  const useLines = program(LINE_SHADER, LINE_COLOURING);
  const points = pointsArray(), lines = linesArray();
  gl.enable(gl.DEPTH_TEST);
  gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
  gl.clearColor(1, 1, 1, 1);
  draw = () => {
    const [width, height] = [canvas.clientWidth * RATIO, canvas.clientHeight * RATIO];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const [x, y] = tanHalfFov(), distance_ = view.distance;
    const common = {
      viewFromWorld: viewFromWorld().flat(), focal: [1 / x, 1 / y], distance_,
      near: NEAR * distance_, far: FAR * distance_,
    };
    usePoints({
      ...common, target: view.target, pixels: width / 2 / x,
      radius: data.radius * 2 ** Number(byId("size").value),
    });
    gl.bindVertexArray(points);
    gl.drawArrays(gl.POINTS, 0, data.count);
    if (!byId("cameras").checked) return;
    useLines({
      ...common, shift: minus(data.oblique.target, view.target), size: [width, height],
      width: 1.3 * RATIO, picked, colour: data.camera_colour.map((c) => c / 255),
      pickedColour: PICKED_COLOUR,
    });
    gl.bindVertexArray(lines);
    gl.enable(gl.BLEND);
    gl.depthMask(false);
    for (const [test, opacity] of [[gl.GREATER, 0.25], [gl.LEQUAL, 0.95]]) { // hidden lines faintly
      gl.depthFunc(test);
      useLines({ opacity });
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, 8 * data.cameras.length);
    }
    gl.depthFunc(gl.LESS);
    gl.depthMask(true);
    gl.disable(gl.BLEND);
  };
}

// --- Cameras under the pointer -------------------------------------------------------------

function cameraAt(x, y) {
  if (!byId("cameras").checked) return -1;
  const rows = viewFromWorld();
  let best = -1, nearest = PICK_RADIUS;
  data.cameras.forEach(({ shape }, index) => {
    const middle = [0, 1, 2].map((i) => (shape[i] + (shape[3 + i] + shape[9 + i]) / 2) / 2);
    const [u, v, depth] = see(middle, rows);
    const away = Math.hypot(u - x, v - y);
    if (depth > 0 && away < nearest) [best, nearest] = [index, away];
  });
  return best;
}

function pick(index) {
  if (index === picked) return;
  picked = index;
  const camera = data.cameras[index];
  for (const item of document.querySelectorAll("#registered li"))
    item.classList.toggle("picked", item.dataset.name === camera?.name);
  byId("card").hidden = !camera;
  if (camera) {
    const photo = document.querySelector("#registered li.picked img");
    byId("card-photo").hidden = !photo;
    if (photo) byId("card-photo").src = photo.src;
    byId("card-name").textContent = camera.name;
    const error = camera.error === null ? "" : `, mean error ${camera.error.toFixed(2)} px`;
    byId("card-figures").textContent = `${camera.points.toLocaleString("en")} points${error}`;
  }
  redraw();
}

// --- Pointers and keys ---------------------------------------------------------------------

const pointers = new Map(); // pointers that are down: id -> position
let travelled = 0; // CSS pixels since the pointer went down; a click does not move

function position(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function middleAndGap() {
  const [a, b] = [...pointers.values()];
  return [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2, Math.hypot(a[0] - b[0], a[1] - b[1])];
}

function down(event) {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, position(event));
  if (pointers.size === 1) travelled = 0;
}

function move(event) {
  const [x, y] = position(event), before = pointers.get(event.pointerId);
  if (!before) {
    if (!pinned && event.pointerType === "mouse") pick(cameraAt(x, y));
    return;
  }
  const [dx, dy] = [x - before[0], y - before[1]];
  travelled += Math.hypot(dx, dy);
  if (pointers.size === 2) {
    const [x0, y0, gap0] = middleAndGap();
    pointers.set(event.pointerId, [x, y]);
    const [x1, y1, gap1] = middleAndGap();
    shift(x1 - x0, y1 - y0);
    zoom(gap0 / Math.max(gap1, 1));
  } else {
    pointers.set(event.pointerId, [x, y]);
    if (event.shiftKey || event.buttons > 1) shift(dx, dy);
    else turn(dx, dy);
  }
  moved = true;
  redraw();
}

function up(event) {
  if (!pointers.delete(event.pointerId) || event.type === "pointercancel" || travelled > 6) return;
  pick(cameraAt(...position(event)));
  pinned = picked >= 0;
}

function key(event) {
  const actions = {
    ArrowLeft: () => turn(-30, 0), ArrowRight: () => turn(30, 0),
    ArrowUp: () => turn(0, -30), ArrowDown: () => turn(0, 30),
    "+": () => zoom(0.85), "=": () => zoom(0.85), "-": () => zoom(1 / 0.85),
  };
  if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  actions[event.key]();
  moved = true;
  redraw();
}

function listen() {
  canvas.addEventListener("pointerdown", down);
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => { if (!pinned) pick(-1); });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("keydown", key);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(0.0015 * Math.max(-200, Math.min(200, event.deltaY * (event.deltaMode ? 30 : 1)))));
    moved = true;
    redraw();
  }, { passive: false });
  byId("size").addEventListener("input", redraw);
  byId("cameras").addEventListener("change", redraw);
  byId("start").addEventListener("click", () => start());
  byId("above").addEventListener("click", () => {
    start({ ...data.oblique, yaw: 0, pitch: Math.PI / 2 });
    moved = true;
  });
  byId("registered")?.addEventListener("click", (event) => {
    const name = event.target.closest("li")?.dataset.name;
    pick(data.cameras.findIndex((camera) => camera.name === name));
    pinned = picked >= 0;
    if (pinned) byId("viewer").scrollIntoView({ behavior: "smooth", block: "nearest" });
  });
  new ResizeObserver(() => (moved ? redraw() : start())).observe(canvas);
  // Free the graphics memory when the page is left, unless the browser may show it again.
  addEventListener("pagehide", ({ persisted }) => {
    if (!persisted) gl.getExtension("WEBGL_lose_context")?.loseContext();
  });
}

if (gl) {
  canvas.hidden = byId("controls").hidden = false;
  byId("help").textContent = "Drag to turn, scroll or pinch to come nearer, shift-drag or two "
    + "fingers to move; a camera shows its photo when you point at it.";
  prepare();
  listen();
  start();
}
