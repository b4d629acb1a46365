// Calls to the server: JSON, event streams, and the API key where one is asked for.
const KEY = "hildanext-key";

export class ApiProblem extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

export function useKey(key) { sessionStorage.setItem(KEY, key); }

function headers(extra) {
  const key = sessionStorage.getItem(KEY);
  return { ...extra, ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function checked(response) {
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error.message; } catch { /* not one of ours */ }
  if (response.status === 401) document.dispatchEvent(new Event("key-needed"));
  throw new ApiProblem(response.status, message);
}

export async function get(path) {
  return (await checked(await fetch(path, { headers: headers() }))).json();
}

// An image that was fetched with the API key, as a data URL.
export async function image(path) {
  const blob = await (await checked(await fetch(path, { headers: headers() }))).blob();
  return new Promise(done => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
}

export async function health() { return (await fetch("/health")).json(); }

export async function send(method, path, body, signal) {
  const options = { method, signal, headers: headers({ "content-type": "application/json" }) };
  if (body !== undefined) options.body = JSON.stringify(body);
  const response = await checked(await fetch(path, options));
  return response.status === 204 ? null : response.json();
}

// Yields {event, data} of a server-sent event stream that answers a POST.
export async function* events(path, body, signal) {
  const options = { method: "POST", signal, body: JSON.stringify(body), headers: headers({ "content-type": "application/json" }) };
  const response = await checked(await fetch(path, options));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const data = lines.filter(line => line.startsWith("data: ")).map(line => line.slice(6)).join("\n");
      const name = lines.find(line => line.startsWith("event: "));
      if (data) yield { event: name ? name.slice(7) : "message", data: JSON.parse(data) };
    }
  }
}

// The file that answers a POST.
export async function file(path, body) {
  const options = { method: "POST", body: JSON.stringify(body), headers: headers({ "content-type": "application/json" }) };
  return (await checked(await fetch(path, options))).blob();
}
