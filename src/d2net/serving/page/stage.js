// Two photos with their keypoints and matches drawn over them, and one match magnified. Everything is
// drawn on canvases that cover both photos, so that thousands of matches stay fast.

const RATIO = Math.min(2, window.devicePixelRatio || 1);
const MANY = 500; // from this number of matches on, canvases have one pixel per CSS pixel: ten times faster
const HUES = 24; // colours of lines; one path each
const REACH = { mouse: 14, touch: 28, pen: 20 }; // CSS pixels within which the end of a match is picked
const PATCH = 64, LOUPE = 112; // size of a magnified patch in the photo's pixels, and in CSS pixels
const OTHER = "#ffffff", REJECTED = "#ff5d47", PICKED = "#ffffff";

export class Stage {
  constructor(container, slots) {
    this.container = container;
    this.slots = slots;
    this.shown = { lines: true, rejected: false, keypoints: true };
    this.base = this.#canvas("base");
    this.top = this.#canvas("top");
    this.card = document.createElement("div");
    this.card.className = "card";
    this.card.hidden = true;
    this.loupes = [0, 1].map(() => {
      const loupe = Object.assign(document.createElement("canvas"), { width: 2 * LOUPE, height: 2 * LOUPE });
      this.card.append(loupe);
      return loupe;
    });
    this.words = document.createElement("p");
    this.words.setAttribute("role", "status");
    this.card.append(this.words);
    container.append(this.card);
    this.clear();
    this.#listen();
  }

  // points: [Float32Array, Float32Array] of x, y, x, y, ...; the first `inliers` matches are inliers.
  // others: keypoints without a match, x, y, ... of each photo.
  show({ others = [[], []], points = [[], []], inliers = 0, similarity = null }) {
    Object.assign(this, { others, points, inliers, similarity });
    this.count = points[0].length / 2;
    this.#pick(-1);
    this.container.classList.toggle("matched", this.count > 0);
    this.container.tabIndex = this.count ? 0 : -1;
    this.redraw();
  }

  clear() { this.show({}); }

  set(options) {
    Object.assign(this.shown, options);
    this.#pick(-1);
    this.redraw();
  }

  redraw() {
    if (!this.waiting) requestAnimationFrame(() => { this.waiting = false; this.#draw(); });
    this.waiting = true;
  }

  #canvas(name) {
    const canvas = document.createElement("canvas");
    canvas.className = name;
    canvas.setAttribute("aria-hidden", "true");
    this.container.append(canvas);
    return canvas;
  }

  // --- Positions on the stage, in CSS pixels ------------------------------------------------

  // Frames of the photos: x, y of the top-left corner, and the size of a pixel.
  #frames() {
    const stage = this.container.getBoundingClientRect();
    return this.slots.map(({ image, size }) => {
      if (image.hidden || !size) return null;
      const box = image.getBoundingClientRect();
      return { x: box.left - stage.left, y: box.top - stage.top, scale: box.width / size[0], size };
    });
  }

  // Pixel centres are at integers.
  #locate(frame, points) {
    const places = new Float32Array(points.length);
    for (let i = 0; i < points.length; i += 2) {
      places[i] = frame.x + (points[i] + 0.5) * frame.scale;
      places[i + 1] = frame.y + (points[i + 1] + 0.5) * frame.scale;
    }
    return places;
  }

  // --- Drawing ------------------------------------------------------------------------------

  #context(canvas, ratio) {
    const width = Math.round(this.container.clientWidth * ratio);
    const height = Math.round(this.container.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return context;
  }

  #draw() {
    const context = this.#context(this.base, this.count > MANY ? 1 : RATIO), frames = this.#frames();
    this.ends = null;
    frames.forEach((frame, i) => {
      if (!frame || !this.shown.keypoints) return;
      const count = this.others[i].length / 2;
      dots(context, this.#locate(frame, this.others[i]), 0, count, radius(frame, count, 1.1), OTHER, 0.7);
    });
    if (this.count && frames[0] && frames[1]) {
      this.ends = frames.map((frame, i) => this.#locate(frame, this.points[i]));
      if (this.shown.rejected) this.#drawRejected(context);
      else if (this.shown.keypoints) // draw the ends of rejected matches as unmatched keypoints
        for (const ends of this.ends) dots(context, ends, this.inliers, this.count, 1.1, OTHER, 0.7);
      this.#drawVerified(context, frames[0]);
    }
    this.#drawPicked();
  }

  #drawRejected(context) {
    const [a, b] = this.ends;
    context.globalAlpha = 0.35;
    context.strokeStyle = REJECTED;
    context.lineWidth = 0.8;
    if (this.shown.lines) lines(context, a, b, range(this.inliers, this.count));
    for (const ends of this.ends) dots(context, ends, this.inliers, this.count, 1.4, REJECTED, 0.9);
  }

  // The colour of a match is its height in the first photo, so that a wrong match stands out.
  #drawVerified(context, frame) {
    const [a, b] = this.ends, bins = Array.from({ length: HUES }, () => []);
    for (let i = 0; i < this.inliers; i++)
      bins[hueOf(this.points[0][2 * i + 1] / frame.size[1])].push(i);
    // All lines together cover about half of the photo, which stays visible.
    const alpha = Math.max(0.06, Math.min(0.9, (0.5 * frame.size[1] * frame.scale) / this.inliers));
    const size = radius(frame, this.inliers, 2.2);
    bins.forEach((rows, hue) => {
      context.strokeStyle = context.fillStyle = colour(hue);
      context.globalAlpha = alpha;
      context.lineWidth = 1;
      if (this.shown.lines) lines(context, a, b, rows);
      context.globalAlpha = 1;
      for (const i of rows)
        for (const ends of [a, b]) {
          context.beginPath();
          circle(context, ends[2 * i], ends[2 * i + 1], size);
          context.fill();
        }
    });
    context.globalAlpha = 1;
  }

  #drawPicked() {
    const context = this.#context(this.top, RATIO), i = this.picked;
    this.container.classList.toggle("picking", i >= 0 && !!this.ends);
    if (i < 0 || !this.ends) return;
    const [a, b] = this.ends.map((ends) => [ends[2 * i], ends[2 * i + 1]]);
    for (const [width, paint] of [[4, "#000a"], [2, i < this.inliers ? PICKED : REJECTED]]) {
      context.lineWidth = width;
      context.strokeStyle = paint;
      context.beginPath();
      context.moveTo(...a);
      context.lineTo(...b);
      for (const place of [a, b]) circle(context, ...place, 9);
      context.stroke();
    }
  }

  // --- The magnified match ------------------------------------------------------------------

  #last() { return this.shown.rejected ? this.count : this.inliers; }

  #nearest(x, y, reach) {
    let best = -1, least = reach * reach;
    for (const ends of this.ends ?? [])
      for (let i = 0; i < this.#last(); i++) {
        const away = (ends[2 * i] - x) ** 2 + (ends[2 * i + 1] - y) ** 2;
        if (away < least) [best, least] = [i, away];
      }
    return best;
  }

  #pick(index, aloud = false) {
    this.picked = index;
    this.card.hidden = index < 0;
    if (index >= 0) this.#fillCard(index, aloud);
    if (this.ends) this.#drawPicked();
  }

  #fillCard(index, aloud) {
    const verified = index < this.inliers;
    this.slots.forEach((slot, side) => {
      const [x, y] = this.points[side].slice(2 * index, 2 * index + 2);
      magnify(this.loupes[side], slot, x, y);
    });
    const parts = [verified ? "verified" : "rejected"];
    if (this.similarity) parts.push(`similarity ${this.similarity[index].toFixed(2)}`);
    if (aloud) parts.unshift(`match ${this.order.indexOf(index) + 1} of ${this.#last()}`);
    this.words.textContent = parts.join(" · ");
    this.#moveCard(index);
  }

  // Puts the card below, above or between, where it hides neither end of the match.
  #moveCard(index) {
    const free = ["below", "above", "between"].find((place) => {
      this.card.dataset.place = place;
      const card = this.card.getBoundingClientRect(), stage = this.container.getBoundingClientRect();
      return this.ends?.every((ends) => {
        const [x, y] = [stage.left + ends[2 * index], stage.top + ends[2 * index + 1]];
        return x < card.left - 12 || x > card.right + 12 || y < card.top - 12 || y > card.bottom + 12;
      });
    });
    this.card.dataset.place = free ?? "below";
  }

  // Steps through the matches from top to bottom.
  #step(by) {
    if (!this.#last()) return;
    this.order = range(0, this.#last()).sort((i, j) => this.points[0][2 * i + 1] - this.points[0][2 * j + 1]);
    const at = this.order.indexOf(this.picked);
    const next = at < 0 ? (by > 0 ? 0 : this.order.length - 1) : at + by;
    this.#pick(this.order[(next + this.order.length) % this.order.length], true);
  }

  #listen() {
    const { container } = this;
    container.setAttribute("role", "group");
    container.setAttribute("aria-label", "Photos with matches; the left and right arrow keys go from match to match");
    const at = (event) => {
      const box = container.getBoundingClientRect();
      return this.#nearest(event.clientX - box.left, event.clientY - box.top, REACH[event.pointerType] ?? 14);
    };
    container.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse") this.#hover(at(event));
    });
    container.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.#hover(-1);
    });
    container.addEventListener("click", (event) => {
      if (event.pointerType !== "mouse" && !event.target.closest("label, input")) this.#pick(at(event));
    });
    container.addEventListener("keydown", (event) => {
      if (event.target !== container) return;
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step && this.count) {
        event.preventDefault();
        this.#step(step);
      } else if (event.key === "Escape") {
        this.#pick(-1);
      }
    });
    new ResizeObserver(() => this.redraw()).observe(container);
    for (const { image } of this.slots) new ResizeObserver(() => this.redraw()).observe(image);
  }

  #hover(index) {
    if (index !== this.picked) this.#pick(index);
  }
}

// --- Small helpers ---------------------------------------------------------------------------

const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);
const hueOf = (share) => Math.max(0, Math.min(HUES - 1, Math.floor(HUES * share)));
const colour = (hue) => `hsl(${Math.round((300 * hue) / (HUES - 1))} 100% 66%)`;

// Radius of dots that together cover at most a sixteenth of a photo.
function radius({ scale, size }, count, most) {
  return Math.min(most, (Math.sqrt((size[0] * size[1]) / (count + 1)) * scale) / 8);
}

function circle(context, x, y, radius) {
  context.moveTo(x + radius, y);
  context.arc(x, y, radius, 0, 2 * Math.PI);
}

function lines(context, a, b, rows) {
  context.beginPath();
  for (const i of rows) {
    context.moveTo(a[2 * i], a[2 * i + 1]);
    context.lineTo(b[2 * i], b[2 * i + 1]);
  }
  context.stroke();
}

function dots(context, places, from, to, radius, paint, alpha) {
  context.globalAlpha = alpha;
  context.fillStyle = paint;
  for (let i = from; i < to; i++)
    context.fillRect(places[2 * i] - radius, places[2 * i + 1] - radius, 2 * radius, 2 * radius);
  context.globalAlpha = 1;
}

// Draws the patch of a photo around a position, magnified.
function magnify(loupe, { image, size }, x, y) {
  const context = loupe.getContext("2d"), ratio = image.naturalWidth / size[0];
  const edge = PATCH * ratio, scale = loupe.width / edge;
  context.fillStyle = "#181818";
  context.fillRect(0, 0, loupe.width, loupe.height);
  context.drawImage(
    image, loupe.width / 2 - (x + 0.5) * ratio * scale, loupe.height / 2 - (y + 0.5) * ratio * scale,
    image.naturalWidth * scale, image.naturalHeight * scale,
  );
  for (const [width, paint] of [[5, "#000a"], [2.5, PICKED]]) {
    context.lineWidth = width;
    context.strokeStyle = paint;
    context.beginPath();
    circle(context, loupe.width / 2, loupe.height / 2, 16);
    context.stroke();
  }
}
