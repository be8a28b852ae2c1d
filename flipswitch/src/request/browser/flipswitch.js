// Connects the OpenFeature web SDK of a page to the flags of the application that serves the page.
//
//   import { connect } from "/flags/flipswitch.js";
//   const { client } = await connect(OpenFeature, OFREPWebProvider);
//
// The page starts with the values in <script type="application/json" id="flipswitch">, if the application has put them
// there (`to_ofrep_json`), and otherwise with one request. Changes arrive over an event stream.

const base = new URL(".", import.meta.url).href.replace(/\/$/, "");
// Seconds after which a hidden tab closes its stream, or null without streams.
const inactivity = INACTIVITY_OR_NULL;

const TIMEOUT = 10_000;
// Milliseconds before the application is asked again while there is no answer for the user. They double.
const [FIRST_WAIT, LAST_WAIT] = [1_000, 60_000];
// Milliseconds between two changes of the user. More of them are a mistake, such as instances with different secrets.
const BETWEEN_USERS = 10_000;

// Returns the body of an answer with these flags.
function answer(flags, user) {
  const { origin, pathname } = new URL(base);
  const hasStream = inactivity !== null && origin === location.origin;
  const url = `${pathname.replace(/\/$/, "")}/ofrep/v1/events?user=${user}`;
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
    if (response.status !== 200) throw new Error(`status ${response.status}`);
    return { user: userOf(response), etag: response.headers.get("etag"), body: await response.text() };
  } catch (error) {
    console.warn("flipswitch: no flags to start with:", error);
    return undefined;
  }
}

const userOf = (response) => response.headers.get("flipswitch-user") ?? undefined;

/**
 * Sets a provider that asks the application, and waits until it is ready. If the application has no flags at present, the
 * client returns defaults until it has.
 *
 * @param OpenFeature the API of `@openfeature/web-sdk`
 * @param OFREPWebProvider the class of `@openfeature/ofrep-web-provider`
 * @param context attributes that the application lets browsers add
 * @param domain the domain of OpenFeature, if it is not the default
 * @param element the id of the element with the values that the page starts with
 * @param fetch the function that sends requests, for example one that sends cookies to another origin
 * @param options further options of the provider
 * @returns the client, and `refresh`, to be called when the user logs in or out without leaving the page
 */
export async function connect(OpenFeature, OFREPWebProvider, {
  context = {}, domain, element = "flipswitch", fetch: send = globalThis.fetch.bind(globalThis), ...options
} = {}) {
  let first = startValues(element) ?? (await ask(context, send));
  // The name of the user that the context has.
  let user = first?.user;
  // Whether the provider has an answer for this user.
  let isAnswered = first !== undefined;
  // Otherwise the provider would fail for good, and open no stream.
  first ??= { body: answer([], "") };
  const cacheMode = user === undefined ? "disabled" : "network-first";

  let sent = 0;
  let delivered = 0;
  let wait = FIRST_WAIT;
  let changedAt = -Infinity;
  let timer;
  let changing = Promise.resolve();

  const ofUser = () => (user === undefined ? context : { ...context, targetingKey: user });
  const setContext = () => (domain ? OpenFeature.setContext(domain, ofUser()) : OpenFeature.setContext(ofUser()));

  // Has the provider ask for the user of the context, after a time.
  function askLater(delay) {
    if (timer !== undefined) return;
    changing = new Promise((resolve) => {
      timer = setTimeout(() => {
        timer = undefined;
        resolve(setContext());
      }, delay);
    });
  }

  // Returns no flags while there is no answer for the user, so that nothing of the user before is shown.
  function failed(otherwise) {
    if (isAnswered) return otherwise();
    askLater(wait);
    wait = Math.min(2 * wait, LAST_WAIT);
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
    const [number, asked] = [++sent, user];
    let response;
    let body;
    try {
      response = await send(request, init);
      body = await response.arrayBuffer();
    } catch (error) {
      return failed(() => { throw error; });
    }
    // A later answer is there already, or a request for another user is on its way.
    if (number < delivered || asked !== user) return unchanged();
    const { status, headers } = response;
    const now = userOf(response);
    if (now !== undefined && now !== user) {
      // Another user is logged in. The answer must not be stored under the name of the one before.
      [user, isAnswered] = [now, false];
      askLater(Math.max(0, changedAt + BETWEEN_USERS - Date.now()));
      changedAt = Date.now();
      return unchanged();
    }
    if (status !== 200 && status !== 304) return failed(() => new Response(body, { status, headers }));
    [delivered, isAnswered, wait] = [number, true, FIRST_WAIT];
    return status === 304 ? unchanged() : new Response(body, { status, headers });
  }

  const provider = new OFREPWebProvider({ baseUrl: base, cacheMode, ...options, fetchImplementation });
  await (domain
    ? OpenFeature.setProviderAndWait(domain, provider, ofUser())
    : OpenFeature.setProviderAndWait(provider, ofUser()));
  return {
    client: OpenFeature.getClient(domain),
    async refresh() {
      await setContext();
      await changing;
    },
  };
}
