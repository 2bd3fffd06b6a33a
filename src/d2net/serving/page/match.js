// Two photos, their keypoints, and verified matches of the best keypoints.

import * as api from "./api.js";
import { Slot } from "./slot.js";
import { Stage } from "./stage.js";

const HINTS = {
  default: "The features of the weights that this page was started with.",
  light: "The small network light alone: fast.",
  deep: "D2-Net’s detections and descriptors, as in the paper.",
  original: "As the 2019 release computes them, including its offset of two pixels.",
};
const VERDICTS = {
  same: "Same place",
  doubtful: "Doubtful whether this is the same place",
  none: "No evidence that these show the same place",
};
const MIN_KEYPOINTS = 50;
const PAUSE = 80; // milliseconds after the last movement of a slider, before matches are requested
const byId = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");

export class MatchView {
  constructor(section, limits) {
    this.result = section.querySelector(".result");
    this.slots = [...section.querySelectorAll(".slot")].map((figure) => new Slot(figure, limits));
    this.stage = new Stage(section.querySelector(".stage"), this.slots);
    this.keypoints = [null, null]; // of the two slots, for the current preset
    this.finding = [null, null]; // abort controllers of the requests for them
    this.slots.forEach((slot, i) => slot.addEventListener("change", () => this.#find(i)));
    this.#makePresets(limits.presets);
    this.#listen();
    this.#tell();
  }

  #makePresets(presets) {
    for (const preset of presets) {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "preset", value: preset, checked: preset === presets[0] });
      const name = Object.assign(document.createElement("span"), { textContent: preset });
      label.append(input, name);
      byId("presets").append(label);
      input.addEventListener("change", () => this.#choose(preset));
    }
    this.preset = presets[0];
    byId("preset-hint").textContent = HINTS[this.preset];
  }

  #choose(preset) {
    this.preset = preset;
    byId("preset-hint").textContent = HINTS[preset];
    this.slots.forEach((_, i) => this.#find(i));
  }

  #listen() {
    byId("number").addEventListener("input", () => this.#update());
    byId("threshold").addEventListener("input", () => {
      byId("automatic").checked = false;
      this.#update();
    });
    byId("automatic").addEventListener("change", () => this.#update());
    for (const name of ["lines", "rejected", "keypoints"]) {
      const box = byId(`show-${name}`);
      const set = () => this.stage.set({ [name]: box.checked });
      box.addEventListener("change", set);
      set(); // browsers restore check boxes when a page is reloaded
    }
    byId("automatic").checked = true;
  }

  // --- Keypoints ----------------------------------------------------------------------------

  async #find(i) {
    const slot = this.slots[i];
    this.finding[i]?.abort();
    this.keypoints[i] = null;
    this.#update();
    if (!slot.key) return;
    const finding = this.finding[i] = new AbortController();
    const done = slot.busy("finding keypoints");
    slot.say("");
    try {
      this.keypoints[i] = await api.keypoints(slot.key, this.preset, finding.signal);
      slot.say(`${count(this.keypoints[i].length / 2)} keypoints`);
      this.#update();
    } catch (error) {
      if (error.name !== "AbortError") this.#failed(error);
    } finally {
      done();
    }
  }

  // The number of keypoints at the slider's position, on a logarithmic scale.
  #number() {
    const most = Math.max(...this.keypoints.map((found) => (found ? found.length / 2 : 0)));
    const share = byId("number").value / 100;
    if (share === 1 || most <= MIN_KEYPOINTS) return most;
    const number = MIN_KEYPOINTS * (most / MIN_KEYPOINTS) ** share;
    const step = 10 ** (Math.floor(Math.log10(number)) - 1);
    return Math.round(number / step) * step;
  }

  // x, y, x, y, ... of the best keypoints of a slot.
  #best(i) {
    return this.keypoints[i]?.subarray(0, 2 * this.#number()) ?? [];
  }

  // --- Matches ------------------------------------------------------------------------------

  // Shows keypoints and requests matches. The old matches stay until the new ones arrive.
  #update() {
    const ready = this.keypoints.every(Boolean);
    byId("number").disabled = !this.keypoints.some(Boolean);
    byId("threshold").disabled = !ready;
    this.#tell();
    this.matching?.abort();
    clearTimeout(this.pause);
    const best = this.slots.map((_, i) => this.#best(i));
    if (!ready || !this.stage.count) this.stage.show({ others: best });
    if (ready) this.pause = setTimeout(() => this.#match(best), PAUSE);
  }

  async #match(best) {
    const matching = this.matching = new AbortController();
    const values = { first: this.slots[0].key, second: this.slots[1].key, preset: this.preset, number: Math.max(1, this.#number()) };
    if (!byId("automatic").checked) values.threshold = byId("threshold").value;
    this.result.classList.add("waiting");
    try {
      const found = await api.match(values, matching.signal);
      this.#show(best, found);
    } catch (error) {
      if (error.name !== "AbortError") this.#failed(error);
    } finally {
      if (this.matching === matching) this.result.classList.remove("waiting");
    }
  }

  #show(best, found) {
    this.retried = false;
    const rows = [found.first, found.second];
    const points = best.map((places, i) => picked(places, rows[i]));
    const others = best.map((places, i) => unmatched(places, rows[i]));
    const inliers = found.verdict === "none" ? 0 : found.inliers;
    this.stage.show({ others, points, inliers, similarity: found.similarity });
    if (byId("automatic").checked) {
      byId("threshold").max = Math.max(20, Math.ceil(2 * found.threshold));
      byId("threshold").value = found.threshold;
    }
    this.#tell(found);
  }

  #tell(found) {
    byId("number-value").textContent = this.keypoints.some(Boolean)
      ? (byId("number").value === "100" ? "all" : count(this.#number())) : "";
    const threshold = Number(byId("threshold").value);
    byId("threshold-value").textContent = this.keypoints.every(Boolean) ? `${threshold.toFixed(1)} px` : "";
    if (found) {
      const all = found.first.length, share = all ? Math.round((100 * found.inliers) / all) : 0;
      this.result.className = `result ${found.verdict}`;
      this.result.replaceChildren(strong(VERDICTS[found.verdict]),
        `: ${count(found.inliers)} verified of ${count(all)} matches (${share} %)`);
    } else if (!this.keypoints.every(Boolean)) {
      const chosen = this.slots.filter((slot) => slot.key).length;
      this.result.className = "result";
      this.result.textContent = [
        "Choose two photos of the same scene.", "Choose the other photo.",
        "Finding keypoints; this takes some seconds.",
      ][chosen];
    }
  }

  // Sends a photo again that the server has forgotten, but only once.
  #failed(error) {
    if ((error.status === 410 || error.status === 409) && !this.retried) {
      this.retried = true;
      for (const slot of this.slots) slot.again();
      return;
    }
    const again = Object.assign(document.createElement("button"), { type: "button", textContent: "Try again" });
    again.addEventListener("click", () => {
      this.slots.forEach((_, i) => this.keypoints[i] || this.#find(i));
      this.#update();
    });
    this.result.className = "result error";
    this.result.replaceChildren(`${error.message} `, again);
  }
}

function strong(text) {
  return Object.assign(document.createElement("strong"), { textContent: text });
}

function picked(places, rows) {
  const found = new Float32Array(2 * rows.length);
  rows.forEach((row, i) => found.set(places.subarray(2 * row, 2 * row + 2), 2 * i));
  return found;
}

function unmatched(places, rows) {
  const taken = new Set(rows), left = [];
  for (let row = 0; row < places.length / 2; row++)
    if (!taken.has(row)) left.push(places[2 * row], places[2 * row + 1]);
  return left;
}
