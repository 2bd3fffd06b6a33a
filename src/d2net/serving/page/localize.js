// A photo localized in the map: beside the map photo with the most inliers, and in 3D.

import * as api from "./api.js";
import { Slot } from "./slot.js";
import { Stage } from "./stage.js";

const VERDICTS = {
  localized: "Localized",
  doubtful: "Doubtful",
  lost: "Lost",
};

// Poses of lost photos are not shown.
function isShown(answer) { return answer.cam_from_world && answer.verdict !== "lost"; }

export class LocalizeView {
  constructor(section, limits) {
    this.limits = limits;
    this.result = section.querySelector(".result");
    this.facts = section.querySelector("dl");
    this.frame = section.querySelector("iframe");
    const [query, partner] = [...section.querySelectorAll(".slot")].map((figure) => new Slot(figure, limits));
    Object.assign(this, { query, partner, slots: [query, partner] });
    this.stage = new Stage(section.querySelector(".stage"), this.slots);
    query.addEventListener("change", () => this.#localize());
    this.frame.addEventListener("load", () => this.#sendCamera());
    const { name, photos, points } = limits.map;
    this.result.textContent = `The map “${name}” has ${photos.toLocaleString("en")} photos and `
      + `${points.toLocaleString("en")} points. Choose a photo of the same scene.`;
  }

  // Loads the map when this view is first opened.
  open() {
    if (!this.frame.src) this.frame.src = "/map";
  }

  async #localize() {
    this.request?.abort();
    const { query } = this;
    if (!query.key) return;
    const request = this.request = new AbortController();
    this.stage.clear();
    if (this.partner.size) this.partner.clear();
    this.facts.replaceChildren();
    this.#camera(null);
    this.result.className = "result";
    this.result.textContent = "Localizing the photo; this takes some seconds.";
    const done = query.busy("comparing with the map");
    try {
      const answer = await api.localize(query.key, request.signal);
      this.retried = false;
      await this.#show(answer, request.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.#failed(error);
    } finally {
      done();
    }
  }

  async #show(answer, stopped) {
    const verdict = Object.assign(document.createElement("strong"), { textContent: VERDICTS[answer.verdict] });
    const reason = answer.reason || `${answer.inliers.toLocaleString("en")} keypoints agree with the pose`;
    this.result.className = `result ${answer.verdict}`;
    this.result.replaceChildren(verdict, ` ${reason}`);
    this.query.say(`${answer.keypoints.toLocaleString("en")} keypoints`);
    if (JSON.stringify(answer.about) !== JSON.stringify(this.limits.map)) { // d2net serve was started again
      this.limits.map = answer.about;
      this.frame.src = "/map";
    }
    this.#list(answer);
    this.#camera(answer);
    const { partner } = answer;
    if (!partner) return;
    await this.partner.show(partner.name, partner.size, api.mapPictureUrl(partner.name));
    if (stopped.aborted) return;
    if (!this.partner.image.naturalWidth) {
      this.partner.image.hidden = true;
      return this.partner.say("cannot be shown: its file has moved or changed since the map was opened");
    }
    this.partner.say(`${partner.inliers.toLocaleString("en")} matches`);
    this.stage.show({
      points: [Float32Array.from(partner.query_points), Float32Array.from(partner.points)],
      inliers: partner.inliers,
    });
  }

  #list(answer) {
    const facts = [];
    if (isShown(answer)) {
      const { camera } = answer, focal = camera.params[0];
      facts.push(["Position", answer.position.map((v) => v.toPrecision(4)).join(", ")
        + ` ± ${answer.position_deviation.toPrecision(2)} in the map’s units`]);
      if (answer.map) facts.push(["Map", `sparse/${answer.map}, which has its own coordinates; this page draws sparse/0`]);
      facts.push(["Rotation", `± ${answer.rotation_deviation_deg.toFixed(2)}°`]);
      facts.push(["Focal length", `${focal.toFixed(0)} px, ${camera.known ? "from the photo’s EXIF data" : "estimated"}`]);
    }
    this.facts.replaceChildren(...facts.map(([name, text]) => {
      const row = document.createElement("div");
      row.append(Object.assign(document.createElement("dt"), { textContent: name }),
        Object.assign(document.createElement("dd"), { textContent: text }));
      return row;
    }));
  }

  // Draws the photo's camera in the map; none without a pose.
  #camera(answer) {
    this.camera = answer && isShown(answer) && answer.shape ? { shape: answer.shape, points: answer.inliers } : null;
    this.#sendCamera();
  }

  // Called again when the map has loaded.
  #sendCamera() {
    if (this.frame.src) this.frame.contentWindow.postMessage(this.camera ?? null, location.origin);
  }

  #failed(error) {
    if (error.status === 410 && !this.retried) {
      this.retried = true;
      this.query.again();
      return;
    }
    const again = Object.assign(document.createElement("button"), { type: "button", textContent: "Try again" });
    again.addEventListener("click", () => this.#localize());
    this.result.className = "result error";
    this.result.replaceChildren(`${error.message} `, again);
  }
}
