// A photo placed in the map: beside the photo of the map that it is most alike, and in 3D.

import * as api from "./api.js";
import { Slot } from "./slot.js";
import { Stage } from "./stage.js";

const VERDICTS = {
  localized: "Localized",
  doubtful: "Doubtful",
  lost: "Not found in the map",
};

// A pose that too few keypoints agree with says nothing, and is not shown.
function found(answer) { return answer.cam_from_world && answer.verdict !== "lost"; }

export class PlaceView {
  constructor(section, limits) {
    this.limits = limits;
    this.result = section.querySelector(".result");
    this.facts = section.querySelector("dl");
    this.frame = section.querySelector("iframe");
    const [query, partner] = [...section.querySelectorAll(".slot")].map((figure) => new Slot(figure, limits));
    Object.assign(this, { query, partner, slots: [query, partner] });
    this.stage = new Stage(section.querySelector(".stage"), this.slots);
    query.addEventListener("change", () => this.#place());
    this.frame.addEventListener("load", () => this.#sendCamera());
    const { name, photos, points } = limits.map;
    this.result.textContent = `The map “${name}” has ${photos.toLocaleString("en")} photos and `
      + `${points.toLocaleString("en")} points. Choose a photo of its place.`;
  }

  // The map is drawn when it is first looked at.
  open() {
    if (!this.frame.src) this.frame.src = "/map";
  }

  async #place() {
    this.placing?.abort();
    const { query } = this;
    if (!query.key) return;
    const placing = this.placing = new AbortController();
    this.stage.clear();
    if (this.partner.size) this.partner.clear();
    this.facts.replaceChildren();
    this.#camera(null);
    this.result.className = "result";
    this.result.textContent = "Looking for its place; this takes some seconds.";
    const done = query.busy("comparing with the map");
    try {
      const answer = await api.place(query.key, placing.signal);
      this.retried = false;
      await this.#show(answer, placing.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.#failed(error);
    } finally {
      done();
    }
  }

  async #show(answer, stopped) {
    const verdict = Object.assign(document.createElement("strong"), { textContent: VERDICTS[answer.verdict] });
    const reason = answer.reason || `${answer.inliers.toLocaleString("en")} keypoints agree with one pose`;
    this.result.className = `result ${answer.verdict}`;
    this.result.replaceChildren(verdict, ` ${reason}`);
    this.query.say(`${answer.keypoints.toLocaleString("en")} keypoints`);
    this.#list(answer);
    this.#camera(answer);
    const { partner } = answer;
    if (!partner) return;
    await this.partner.show(partner.name, partner.size, api.mapPictureUrl(partner.name));
    if (stopped.aborted) return;
    if (!this.partner.image.naturalWidth) {
      this.partner.image.hidden = true;
      return this.partner.say("is not where it was when the map was made");
    }
    this.partner.say(`${partner.inliers.toLocaleString("en")} matches`);
    this.stage.show({
      points: [Float32Array.from(partner.query_points), Float32Array.from(partner.points)],
      inliers: partner.inliers,
    });
  }

  #list(answer) {
    const facts = [];
    if (found(answer)) {
      const { camera } = answer, focal = camera.params[0];
      facts.push(["Position", answer.position.map((v) => v.toPrecision(4)).join(", ")
        + ` ± ${answer.position_deviation.toPrecision(2)} in the map’s unit`]);
      facts.push(["Rotation", `good to ${answer.rotation_deviation_deg.toFixed(2)}°`]);
      facts.push(["Focal length", `${focal.toFixed(0)} px, ${camera.known ? "from the photo’s EXIF data" : "estimated"}`]);
    }
    this.facts.replaceChildren(...facts.map(([name, text]) => {
      const row = document.createElement("div");
      row.append(Object.assign(document.createElement("dt"), { textContent: name }),
        Object.assign(document.createElement("dd"), { textContent: text }));
      return row;
    }));
  }

  // Draw the photo's camera in the map, or none.
  #camera(answer) {
    this.camera = answer && found(answer) && answer.shape ? { shape: answer.shape, points: answer.inliers } : null;
    this.#sendCamera();
  }

  // The map asks for it again when it is loaded.
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
    again.addEventListener("click", () => this.#place());
    this.result.className = "result error";
    this.result.replaceChildren(`${error.message} `, again);
  }
}
