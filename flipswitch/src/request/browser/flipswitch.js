// Connects the OpenFeature web SDK of a page to the flags of the application that serves the page.
//
//   import { connect } from "/flags/flipswitch.js";
//   const { client } = await connect(OpenFeature, OFREPWebProvider);
//
// The page starts with the values in <script type="application/json" id="flipswitch">, if the application has put them
// there (`to_ofrep_json`), and otherwise with one request. Changes arrive over an event stream.

const base = new URL(".", import.meta.url).href.replace(/\/$/, "");
// The path of the routes if the application sets one, or null if it is the path of this script.
const publicPath = PUBLIC_PATH_OR_NULL;
// Seconds after which a hidden tab closes its stream, or null without streams.
const inactivity = INACTIVITY_OR_NULL;

const TIMEOUT = 10_000;
// Milliseconds before the application is asked again while an answer is missing. They double.
const [FIRST_WAIT, LAST_WAIT] = [1_000, 60_000];
// Least milliseconds between two changes of the user. More changes are a mistake, such as instances with different secrets.
const BETWEEN_USERS = 10_000;

// Returns the body of an answer with these flags.
function answer(flags, user) {
  const { origin, pathname } = new URL(base);
  const hasStream = inactivity !== null && origin === location.origin;
  const url = `${publicPath ?? pathname.replace(/\/$/, "")}/ofrep/v1/events?user=${user}`;
  const eventStreams = hasStream ? [{ type: "sse", url, inactivityDelaySec: inactivity }] : undefined;
  return JSON.stringify({ flags, eventStreams });
}

// Returns the values in the page, unless the page comes from a cache, or was loaded long ago.
function startValues(id) {
  const element = document.querySelector(`script[type="application/json"]#${CSS.escape(id)}`);
  const [navigation] = performance.getEntriesByType("navigation");
  if (!element || navigation?.transferSize === 0 || performance.now() > 30_000) return undefined;
  try {
    const { etag, targetingKey, flags } = JSON.parse(element.textContent);
    if (!Array.isArray(flags)) throw new Error("no list of flags");
    return { user: targetingKey, etag, body: answer(flags, targetingKey ?? "") };
  } catch (error) {
    console.warn("flipswitch: the start values cannot be read:", error);
    return undefined;
  }
}

// Asks the application, which knows who the user is.
async function ask(context, send) {
  const headers = { "Content-Type": "application/json" };
  const request = new Request(`${base}/ofrep/v1/evaluate/flags`, {
    method: "POST", headers, body: JSON.stringify({ context }), signal: AbortSignal.timeout(TIMEOUT),
  });
  try {
    const response = await send(request, {});
    if (!hasFlags(response)) throw new Error(`status ${response.status}`);
    return { user: userOf(response), etag: response.headers.get("etag"), body: await response.text() };
  } catch (error) {
    console.warn("flipswitch: no flags to start with:", error);
    return undefined;
  }
}

const userOf = (response) => response.headers.get("flipswitch-user") ?? undefined;

// A login page, for example, has another type, and names no user.
const hasFlags = (response) =>
  response.status === 200 && /json/.test(response.headers.get("content-type")) && userOf(response) !== undefined;

/**
 * Sets a provider that asks the application, and waits until it is ready. If the application has no flags at present, the
 * client returns defaults until it has.
 *
 * @param OpenFeature the API of `@openfeature/web-sdk`
 * @param OFREPWebProvider the class of `@openfeature/ofrep-web-provider`
 * @param {object} [settings] further options of the provider, and:
 * @param {object} [settings.context] attributes that the application lets browsers add
 * @param {string} [settings.domain] the domain of OpenFeature, if it is not the default
 * @param {string} [settings.element] the id of the element with the values that the page starts with
 * @param {typeof fetch} [settings.fetch] the function that sends requests, for example with cookies to another origin
 * @returns the client, and `refresh`, to be called when the user logs in or out without leaving the page
 */
export async function connect(OpenFeature, OFREPWebProvider, {
  context = {}, domain, element = "flipswitch", fetch: send = globalThis.fetch.bind(globalThis), ...options
} = {}) {
  let first = startValues(element) ?? (await ask(context, send));
  // The name of the user, and that in the context. While they differ, the context of the user is about to be set.
  let user = first?.user;
  let named = user;
  // Whether the provider has an answer for the user, and whether a later one was dropped.
  let isAnswered = first !== undefined;
  let isDropped = false;
  // Otherwise the provider would fail permanently, and open no stream.
  first ??= { body: answer([], "") };

  // Requests that were sent, the last one that was answered, and how often the context was set.
  let [sent, delivered, contexts] = [0, 0, 0];
  let wait = FIRST_WAIT;
  let changedAt = -Infinity;
  let isClosed = false;
  // The timer for the next request, when it ends, and what waits for the request.
  let timer;
  let due;
  let asking = { promise: Promise.resolve(), resolve() {} };

  // Makes the provider request the flags of the user, and drop the answers to earlier requests.
  function setContext() {
    contexts += 1;
    named = user;
    const ofUser = user === undefined ? context : { ...context, targetingKey: user };
    return domain ? OpenFeature.setContext(domain, ofUser) : OpenFeature.setContext(ofUser);
  }

  function askLater(delay) {
    const at = Date.now() + delay;
    if (isClosed || (timer !== undefined && due <= at)) return false;
    if (timer === undefined) {
      asking = {};
      asking.promise = new Promise((resolve) => { asking.resolve = resolve; });
    }
    clearTimeout(timer);
    due = at;
    timer = setTimeout(() => {
      timer = undefined;
      asking.resolve(setContext());
    }, delay);
    return true;
  }

  function askNoMore() {
    clearTimeout(timer);
    timer = undefined;
    asking.resolve();
  }

  // Returns no flags while there is no answer for the user, so that nothing of the previous user is shown.
  function failed(otherwise) {
    if (isAnswered && !isDropped) return otherwise();
    if (askLater(wait)) wait = Math.min(2 * wait, LAST_WAIT);
    if (isAnswered) return otherwise();
    return new Response(answer([], user ?? ""), { headers: { "Content-Type": "application/json" } });
  }

  const unchanged = () => new Response(null, { status: 304 });

  async function fetchImplementation(request, init) {
    if (first) {
      const { body, etag } = first;
      first = undefined;
      if (!isAnswered) askLater(wait);
      const headers = { "Content-Type": "application/json", ...(etag && { ETag: etag }) };
      return new Response(body, { headers });
    }
    const [number, since] = [++sent, contexts];
    let response;
    let body;
    try {
      response = await send(request, init);
      body = await response.arrayBuffer();
    } catch (error) {
      if (since !== contexts) return unchanged();
      return failed(() => { throw error; });
    }
    const { status, headers } = response;
    const now = userOf(response);
    // The provider takes answers in the order in which they arrive, and none to requests from before a context was set.
    if (number < delivered || since !== contexts) {
      isDropped ||= since !== contexts;
      return unchanged();
    }
    if (now !== undefined && now !== user) {
      // Another user is logged in. The provider must not take the answer for one of the previous user.
      [user, isAnswered] = [now, false];
      askLater(Math.max(0, changedAt + BETWEEN_USERS - Date.now()));
      changedAt = Date.now();
    }
    if (named !== user) return unchanged();
    if (!hasFlags(response) && !(status === 304 && now !== undefined)) {
      // The provider would send nothing for a while after 429, not even for another user.
      return failed(() => new Response(body, { status: status === 429 ? 503 : status, headers }));
    }
    [delivered, isAnswered, isDropped, wait] = [number, true, false, FIRST_WAIT];
    askNoMore();
    return status === 304 ? unchanged() : new Response(body, { status, headers });
  }

  // Nothing is stored: the page has newer values, or asks for them.
  const provider = new OFREPWebProvider({ baseUrl: base, ...options, cacheMode: "disabled", fetchImplementation });
  const close = provider.onClose.bind(provider);
  provider.onClose = () => {
    isClosed = true;
    askNoMore();
    return close();
  };
  const ofUser = user === undefined ? context : { ...context, targetingKey: user };
  await (domain
    ? OpenFeature.setProviderAndWait(domain, provider, ofUser)
    : OpenFeature.setProviderAndWait(provider, ofUser));
  return {
    client: OpenFeature.getClient(domain),
    async refresh() {
      changedAt = -Infinity;
      await setContext();
      await asking.promise;
    },
  };
}
