'use strict';
// Data is only shown through textContent and properties, so that no text becomes markup.

const $ = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function make(tag, className, text = '') {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

// Keeps the notation of numbers that a double would change, such as 9007199254740993 and 1.0.
const isRaw = (value) => JSON.isRawJSON?.(value) ?? false;
const parse = (text) => JSON.parse(text, (_, value, written) =>
  typeof value === 'number' && JSON.rawJSON && written?.source !== String(value) ? JSON.rawJSON(written.source) : value);

// JSON, or plain text.
function literal(text) {
  try { return parse(text); } catch { return text; }
}

function typeOf(value) {
  if (isRaw(value)) return 'number';
  if (value === null) return 'null';
  return Array.isArray(value) ? 'array' : typeof value;
}

const short = (text, limit) => text.length > limit ? text.slice(0, limit) + ' …' : text;
const time = (at) => new Date(at).toLocaleTimeString([], { hour12: false });
const isPlain = (flag) => 'value' in flag && Object.keys(flag).length === 1;
const isTargeted = (flag) => Object.keys(flag.targeting ?? {}).length > 0;

/** Sends a request to an endpoint under /local, with JSON text as the body. Throws the message of an error response. */
async function request(method, path, body) {
  let answer;
  try {
    answer = await fetch('/local' + path, { method, body, headers: body ? { 'content-type': 'application/json' } : {} });
  } catch {
    throw new Error('The server is not responding.');
  }
  const text = await answer.text();
  let json = null;
  try { json = text ? parse(text) : null; } catch { /* The response is not from this server; its status is enough. */ }
  if (!answer.ok) throw new Error(json?.error ?? `The server responded with ${answer.status}.`);
  return json;
}

let messageTimeout;
function showMessage(text, bad = false) {
  const message = $('#message');
  message.textContent = text;
  message.className = bad ? 'bad' : '';
  clearTimeout(messageTimeout);
  messageTimeout = setTimeout(() => { message.textContent = ''; }, 8000);
}

/** Performs the action of a button, and shows its outcome. */
async function act(action, describe) {
  try {
    showMessage(describe(await action()));
  } catch (error) {
    showMessage(error.message, true);
  }
}

/** Shows an error at a field of a form. Without a text, removes the error of the form. */
function showError(form, field, text = '') {
  const error = $('.error', form);
  for (const other of form.elements) {
    other.removeAttribute('aria-invalid');
    other.removeAttribute('aria-describedby');
  }
  error.textContent = text;
  if (!text || !field) return;
  field.setAttribute('aria-invalid', 'true');
  field.setAttribute('aria-describedby', error.id);
  field.closest('label').after(error);
  field.focus();
}

/** Updates the elements of a list by key, so that the focus stays while others change. */
function keyed(parent, items, keyOf, create, update) {
  const known = parent.rows ??= new Map();
  const wanted = new Set(items.map(keyOf));
  for (const [key, element] of known) {
    if (wanted.has(key)) continue;
    element.remove();
    known.delete(key);
  }
  let next = parent.firstElementChild;
  while (next && ![...known.values()].includes(next)) next = next.nextElementSibling;
  for (const item of items) {
    let element = known.get(keyOf(item));
    if (!element) known.set(keyOf(item), element = create(item));
    if (element === next) next = next.nextElementSibling;
    else parent.insertBefore(element, next);
    update(element, item);
  }
}
