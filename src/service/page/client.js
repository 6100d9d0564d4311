// The endpoints of the service. The token is sent in the header Authorization only, never in a URL, and is stored for this tab
// only (sessionStorage).

const STORED = "qstage-token";

export const token = {
  get: () => sessionStorage.getItem(STORED) ?? "",
  set: (value) => (value ? sessionStorage.setItem(STORED, value) : sessionStorage.removeItem(STORED)),
};

// A refusal or failure, with the status and the code of the answer; status 0: the service was not reached.
export class Failure extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

function headers() {
  return token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
}

async function send(method, path, body, signal) {
  const options = { method, headers: headers(), cache: "no-store", credentials: "omit", redirect: "error", signal };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure(0, "", "the service does not answer");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let error = {};
  try {
    error = JSON.parse(text);
  } catch {
    // A proxy's page, for example: the status says enough.
  }
  throw new Failure(answer.status, error.error_class ?? "", error.description || `the answer was ${answer.status}`);
}

export async function get(path) {
  return (await send("GET", path)).json();
}

// The report of a change; null if the answer has none.
export async function post(path, body) {
  const text = await (await send("POST", path, body)).text();
  return text ? JSON.parse(text) : null;
}

// Calls `show` with each status that the service sends, until `signal` aborts. EventSource cannot send a token, so the stream is
// read here: lines "event: NAME" and "data: TEXT", ended by an empty line (HTML standard, 9.2).
export async function events(show, signal) {
  const answer = await send("GET", "/v1/qstage/events", undefined, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r\n\r\n|\n\n|\r\r/);
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r\n|\n|\r/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data) show(JSON.parse(data));
    }
  }
}
