// Talking to the admin API as the session of this page; a session that has ended goes to the login.

const RENEW_MS = 5 * 60 * 1000;

let token = "";

/** What the API says of a request that it does not serve. `param` names the field that is wrong. */
export class Problem extends Error {
  constructor(status, error) {
    super(error?.message ?? `The gateway answered ${status}.`);
    this.status = status;
    this.code = error?.code ?? null;
    this.param = error?.param ?? null;
  }
}

/** Know the session, and keep it alive while the page is open. Gives what the gateway tells of it. */
export async function startSession() {
  setInterval(() => renew().catch(() => {}), RENEW_MS);
  return renew();
}

async function renew() {
  const session = await api("GET", "/session");
  token = session.csrf;
  return session;
}

/** The JSON of an answer. Throws a Problem, or a TypeError where the gateway is not reached. */
export async function api(method, path, body, headers = {}) {
  try {
    return await ask(method, path, body, headers);
  } catch (error) {
    if (error.code !== "csrf" || method === "GET") throw error;
    await renew(); // somebody signed in anew in another tab: the cookie is of that session, and so must be the token
    return ask(method, path, body, headers);
  }
}

async function ask(method, path, body, headers) {
  const answer = await fetch(path, {
    method,
    headers: {
      ...(method === "GET" ? {} : { "x-headgate-csrf": token }),
      ...(body === undefined ? {} : { "content-type": "application/json" }),
      ...headers,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
    credentials: "same-origin",
    cache: "no-store",
  });
  if (answer.status === 401) {
    location.assign("/login");
    throw new Problem(401, { message: "The session has ended." });
  }
  const content = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Problem(answer.status, content?.error);
  return content;
}

export async function signOut() {
  await api("POST", "/logout");
  location.assign("/login");
}
