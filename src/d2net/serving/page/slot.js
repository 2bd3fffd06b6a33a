// A slot for a photo, which the user chooses or drops there. The server converts it to an upright
// JPEG, so browsers show every format.

import * as api from "./api.js";

const ACCEPT = "image/jpeg,image/png,image/webp,image/tiff,image/bmp,image/gif,.ppm,.pgm";

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export class Slot extends EventTarget {
  // Dispatches "change" when the photo changes or is removed.
  constructor(figure, limits) {
    super();
    this.figure = figure;
    this.limits = limits;
    this.key = null;
    this.size = null;
    this.image = element("img", { alt: "", hidden: true });
    this.name = element("b");
    this.pixels = element("span", { className: "quiet pixels" });
    this.note = element("span", { className: "quiet" });
    this.error = element("p", { className: "error", hidden: true });
    this.error.setAttribute("role", "alert");
    this.caption = element("figcaption", { hidden: true }, this.name, this.pixels, this.note);
    this.title = figure.dataset.title;
    if ("fixed" in figure.dataset) {
      this.drop = element("p", { className: "drop empty" }, element("b", { textContent: this.title }));
    } else {
      this.#makeInput();
    }
    figure.append(this.caption, this.drop, this.image, this.error);
  }

  #makeInput() {
    const id = `file-${this.title.toLowerCase().replaceAll(" ", "-")}`;
    this.input = element("input", { type: "file", id, accept: ACCEPT, className: "hidden-input" });
    this.drop = element("label", { htmlFor: id, className: "drop" },
      element("b", { textContent: this.title }),
      element("span", {}, element("i", { textContent: "Drop it here, or " }), "choose a file"));
    this.figure.append(this.input);
    this.caption.append(element("label", { htmlFor: id, className: "button", textContent: "Change" }));
    this.input.addEventListener("change", () => {
      if (this.input.files.length) this.take(this.input.files[0]);
      this.input.value = ""; // so that the same file can be chosen again
    });
    this.figure.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.figure.classList.add("over");
    });
    this.figure.addEventListener("dragleave", (event) => {
      if (!this.figure.contains(event.relatedTarget)) this.figure.classList.remove("over");
    });
    this.figure.addEventListener("drop", (event) => {
      event.preventDefault();
      this.figure.classList.remove("over");
      if (event.dataTransfer.files.length) this.take(event.dataTransfer.files[0]);
    });
  }

  // Sends a file and shows it. After an error, the previous photo stays.
  async take(file) {
    this.#fail("");
    if (file.size > this.limits.max_bytes) {
      const most = this.limits.max_bytes / 2 ** 20;
      return this.#fail(`${file.name} has ${Math.round(file.size / 2 ** 20)} MB, and photos may have up to ${most} MB.`);
    }
    this.sending?.abort();
    const sending = this.sending = new AbortController();
    const done = this.busy("sending");
    try {
      const sent = await api.send(file, sending.signal);
      if (this.key) api.forget(this.key);
      this.file = file;
      await this.show(sent.name, sent.size, api.pictureUrl(sent.key), sent.key);
    } catch (error) {
      if (error.name !== "AbortError") this.#fail(`${file.name}: ${error.message}`);
    } finally {
      done();
    }
  }

  // Sends the same file again, after the server has forgotten it.
  async again() {
    if (this.file) await this.take(this.file);
  }

  async show(name, size, url, key = null) {
    Object.assign(this, { key, size });
    this.name.textContent = this.name.title = name;
    this.pixels.textContent = `${size[0]} × ${size[1]}`;
    this.image.src = url;
    this.image.alt = `${this.title}: ${name}`;
    await this.image.decode().catch(() => {});
    this.figure.style.flexGrow = size[0] / size[1]; // so that neighbours get the same height
    this.figure.style.setProperty("--aspect", size[0] / size[1]);
    this.image.hidden = this.caption.hidden = false;
    this.drop.hidden = true;
    this.say("");
    this.dispatchEvent(new Event("change"));
  }

  clear() {
    Object.assign(this, { key: null, size: null });
    this.image.hidden = this.caption.hidden = true;
    this.drop.hidden = false;
    this.figure.style.flexGrow = "";
    this.dispatchEvent(new Event("change"));
  }

  // Shows a note beside the photo's name.
  say(text) { this.note.textContent = text; }

  // Shows the current work and its duration; returns a function that ends it.
  busy(what) {
    const start = performance.now(), seconds = element("span");
    const shown = element("p", { className: "busy" }, `${what} …`, seconds);
    shown.setAttribute("role", "status");
    seconds.setAttribute("aria-hidden", "true"); // screen readers would read it every second
    const timer = setInterval(() => {
      seconds.textContent = ` ${Math.round((performance.now() - start) / 1000)} s`;
    }, 1000);
    this.figure.append(shown);
    this.figure.setAttribute("aria-busy", "true");
    return () => {
      clearInterval(timer);
      shown.remove();
      if (!this.figure.querySelector(".busy")) this.figure.removeAttribute("aria-busy");
    };
  }

  #fail(sentence) {
    this.error.textContent = sentence;
    this.error.hidden = !sentence;
  }
}
