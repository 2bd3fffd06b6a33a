// Starts the page: asks what the server offers, and switches between the two views.

import * as api from "./api.js";
import { MatchView } from "./match.js";
import { LocalizeView } from "./localize.js";

const byId = (id) => document.getElementById(id);

async function start() {
  const limits = await api.about();
  const views = { match: new MatchView(byId("match"), limits) };
  if (limits.map) {
    views.localize = new LocalizeView(byId("localize"), limits);
    byId("modes").hidden = false;
  }
  const show = (mode) => {
    for (const name of Object.keys(views)) byId(name).hidden = name !== mode;
    views[mode].open?.();
  };
  for (const input of document.querySelectorAll("input[name=mode]"))
    input.addEventListener("change", () => show(input.value));
  document.querySelector(`input[name=mode][value=${limits.map ? "localize" : "match"}]`).checked = true;
  show(limits.map ? "localize" : "match");
  byId("about").textContent = `Weights ${limits.weights}. Photos may have up to `
    + `${limits.max_bytes / 2 ** 20} MB and ${limits.max_megapixels} megapixels; nothing is stored.`;
  const slots = Object.values(views).flatMap((view) => view.slots);
  addEventListener("pagehide", (event) => {
    if (!event.persisted) for (const { key } of slots) if (key) api.forget(key);
  });
  // Otherwise the browser would open a photo that is dropped beside a slot.
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
}

start().catch((error) => {
  const message = Object.assign(document.createElement("p"), { className: "error", textContent: error.message });
  document.querySelector("main").prepend(message);
});
