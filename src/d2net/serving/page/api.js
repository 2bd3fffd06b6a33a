// Requests to the server. Refusals and failures throw an ApiError whose message is shown to the user.

export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is d2net serve still running?");
  }
  if (answer.ok) return answer;
  let sentence = `The server answers with an error (${answer.status}).`;
  try {
    sentence = (await answer.json()).error;
  } catch { /* not JSON: uvicorn refuses too many connections */ }
  throw new ApiError(sentence[0].toUpperCase() + sentence.slice(1), answer.status);
}

const query = (values) => new URLSearchParams(values).toString();

export const pictureUrl = (key) => `/api/photos/${key}/picture`;
export const mapPictureUrl = (name) => `/api/map/picture?${query({ name })}`;

export const about = async () => (await ask("/api/about")).json();

export const send = async (file, signal) =>
  (await ask(`/api/photos?${query({ name: file.name })}`, { method: "POST", body: file, signal })).json();

export const forget = (key) => fetch(`/api/photos/${key}`, { method: "DELETE", keepalive: true }).catch(() => {});

// x, y, x, y, ... of the keypoints, best first.
export async function keypoints(key, preset, signal) {
  const answer = await ask(`/api/photos/${key}/keypoints?${query({ preset })}`, { signal });
  return new Float32Array(await answer.arrayBuffer());
}

export const match = async (values, signal) =>
  (await ask(`/api/match?${query(values)}`, { signal })).json();

export const localize = async (key, signal) => (await ask(`/api/photos/${key}/localize`, { signal })).json();
