// Connects the OpenFeature web SDK of a page to the flags of the application that serves the page.
//
//   import { connect } from "/flags/flipswitch.js";
//   const { client } = await connect(OpenFeature, OFREPWebProvider);
//
// The page starts with the values in <script type="application/json" id="flipswitch">, if the application has put them
// there (`to_ofrep_json`), and otherwise with one request. Changes arrive over an event stream.

const base = new URL(".", import.meta.url).href.replace(/\/$/, "");
const bulk = "/ofrep/v1/evaluate/flags";
// Seconds after which a hidden tab closes its stream, or null without streams.
const inactivity = INACTIVITY_OR_NULL;

// Returns the body of an answer with these flags.
function answer(flags) {
  const { origin, pathname } = new URL(base);
  const hasStream = inactivity !== null && origin === location.origin;
  const url = `${pathname.replace(/\/$/, "")}/ofrep/v1/events`;
  const eventStreams = hasStream ? [{ type: "sse", url, inactivityDelaySec: inactivity }] : undefined;
  return JSON.stringify({ flags, eventStreams });
}

// Returns the values in the page, unless the page comes from a cache, or was loaded long ago.
function startValues(id) {
  const element = document.getElementById(id);
  const [navigation] = performance.getEntriesByType("navigation");
  if (!element || navigation?.transferSize === 0 || performance.now() > 30_000) return undefined;
  const { etag, targetingKey, flags } = JSON.parse(element.textContent);
  return { user: targetingKey, etag, body: answer(flags) };
}

// Asks the application, which knows who the user is.
async function ask(context, send) {
  const headers = { "Content-Type": "application/json" };
  const request = new Request(base + bulk, { method: "POST", headers, body: JSON.stringify({ context }) });
  const response = await send(request, {});
  if (response.status !== 200) throw new Error(`status ${response.status}`);
  return { user: userOf(response), etag: response.headers.get("etag"), body: await response.text() };
}

const userOf = (response) => response.headers.get("flipswitch-user") ?? undefined;

/**
 * Sets a provider that asks the application, and waits until it is ready. If the application has no flags at present, the
 * client returns defaults, until an event says that there are flags.
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
  let first;
  try {
    first = startValues(element) ?? (await ask(context, send));
  } catch (error) {
    console.warn("flipswitch: no flags to start with:", error);
    // Otherwise the provider would fail for good, and open no stream.
    first = { body: answer([]) };
  }
  let { user } = first;
  let changing = Promise.resolve();

  const ofUser = () => (user === undefined ? context : { ...context, targetingKey: user });
  const setContext = () => (domain ? OpenFeature.setContext(domain, ofUser()) : OpenFeature.setContext(ofUser()));

  async function fetchImplementation(request, init) {
    if (first) {
      const { body, etag } = first;
      first = undefined;
      const headers = { "Content-Type": "application/json", ...(etag && { ETag: etag }) };
      return new Response(body, { headers });
    }
    const response = await send(request, init);
    const now = userOf(response);
    if (user !== undefined && now !== undefined && now !== user) {
      // Another user is logged in: the answer must not be stored under the name of the one before.
      user = now;
      changing = Promise.resolve().then(setContext);
      throw new Error("flipswitch: the user has changed");
    }
    return response;
  }

  const provider = new OFREPWebProvider({
    baseUrl: base,
    // Without a name for the user, users cannot be kept apart in local storage.
    cacheMode: user === undefined ? "disabled" : "network-first",
    ...options,
    fetchImplementation,
  });
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
