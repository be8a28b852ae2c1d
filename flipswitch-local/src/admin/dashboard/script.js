'use strict';
// All data is shown through textContent and properties, so that no text becomes markup.

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

function typeOf(value) {
  if (isRaw(value)) return 'number';
  if (value === null) return 'null';
  return Array.isArray(value) ? 'array' : typeof value;
}

const short = (text, limit) => text.length > limit ? text.slice(0, limit) + ' …' : text;
const time = (at) => new Date(at).toLocaleTimeString([], { hour12: false });
const isPlain = (flag) => 'value' in flag && Object.keys(flag).length === 1;
const isTargeted = (flag) => Object.keys(flag.targeting ?? {}).length > 0;

// Requests ---------------------------------------------------------------------------------------------------------

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

// Flags ------------------------------------------------------------------------------------------------------------

let flags = new Map();
let items = new Map();
let context = {};
const put = (key, definition) => request('PUT', '/flags/' + encodeURIComponent(key), definition);

async function readFlags() {
  const [listed, evaluated] =
    await Promise.all([request('GET', '/flags'), request('POST', '/evaluate', JSON.stringify({ context }))]);
  flags = new Map(Object.entries(listed.flags));
  items = new Map(evaluated.flags.map((item) => [item.key, item]));
  showFlags();
}

function showFlags() {
  const filter = $('#filter').value.toLowerCase();
  const shown = [...flags.keys()].filter((key) => key.toLowerCase().includes(filter)).sort();
  keyed($('#flag-table'), shown, (key) => key, flagRow, showFlag);
  $('#flag-count').textContent = filter ? `${shown.length} of ${flags.size}` : flags.size;
  $('#no-flags').hidden = shown.length > 0;
  $('#no-flags').textContent = flags.size ? 'No flag matches.' : 'No flags yet. Add one, or start with --flags FILE.';
  const isAnonymous = Object.keys(context).length === 0;
  $('#evaluated-for').textContent = isAnonymous ? 'for anonymous' : 'for ' + short(JSON.stringify(context), 80);
}

function flagRow(key) {
  const row = $('#flag-row').content.firstElementChild.cloneNode(true);
  $('.flag-key', row).textContent = $('.flag-key', row).title = key;
  $('.edit', row).setAttribute('aria-label', `Edit ${key}`);
  $('.delete', row).setAttribute('aria-label', `Delete ${key}`);
  const change = async (changes, outcome) => {
    await act(() => put(key, JSON.stringify({ ...flags.get(key), ...changes })), () => `${key} ${outcome}.`);
    // If the change was rejected, the row shows the actual state again.
    row.signature = undefined;
    if (flags.has(key)) showFlag(row, key);
  };
  $('.switch', row).onclick = () => {
    const { on, flipped } = flip(flags.get(key));
    change(flipped, on ? 'is off now' : 'is on now');
  };
  $('.pill', row).onclick = () => {
    const enabled = flags.get(key).state === 'ENABLED';
    change({ state: enabled ? 'DISABLED' : 'ENABLED' }, enabled ? 'is disabled now' : 'is enabled now');
  };
  $('select', row).onchange = ({ target }) => {
    const name = target.selectedOptions[0].dataset.variant;
    change({ defaultVariant: name ?? null }, name === undefined ? 'uses the code default now' : `serves ${name} now`);
  };
  $('.edit', row).onclick = () => edit(key);
  $('.delete', row).onclick = () => confirmRemoval(key);
  return row;
}

/** Returns the state of a flag that is either on or off, and the change that flips it; null for other flags. */
function flip(flag) {
  if (isPlain(flag)) return typeof flag.value === 'boolean' ? { on: flag.value, flipped: { value: !flag.value } } : null;
  const on = flag.variants[flag.defaultVariant];
  const other = Object.keys(flag.variants).find((name) => flag.variants[name] === !on);
  if (typeof on !== 'boolean' || other === undefined || isTargeted(flag)) return null;
  return { on, flipped: { defaultVariant: other } };
}

function showFlag(row, key) {
  const flag = flags.get(key);
  const item = items.get(key) ?? {};
  const signature = JSON.stringify([flag, item]);
  if (row.signature === signature) return;
  row.signature = signature;
  const plain = isPlain(flag);
  const enabled = plain || flag.state === 'ENABLED';
  row.classList.toggle('off', !enabled);
  const type = item.metadata?.flagType ?? typeOf(plain ? flag.value : Object.values(flag.variants)[0]);
  $('.about', row).textContent = type + (plain || !isTargeted(flag) ? '' : ' · targeting');

  const pill = $('.pill', row);
  pill.hidden = plain;
  $('.none', row).hidden = !plain;
  pill.textContent = enabled ? 'Enabled' : 'Disabled';
  pill.setAttribute('aria-label', `${key} is ${enabled ? 'enabled: disable' : 'disabled: enable'} it`);

  const variants = plain ? [] : Object.entries(flag.variants);
  $('.variants', row).replaceChildren(...variants.slice(0, 4).map(([name, value]) => {
    const line = make('li', name === flag.defaultVariant ? 'default' : '');
    line.append(make('b', '', short(name, 40)), make('code', '', short(JSON.stringify(value), 100)));
    line.title = short(`${name}: ${JSON.stringify(value)}`, 1000);
    if (name === flag.defaultVariant) line.append(make('span', 'sr', ' (default)'));
    return line;
  }), ...(variants.length > 4 ? [make('li', 'more', `and ${variants.length - 4} more`)] : []));

  const failed = item.errorCode !== undefined;
  const text = failed ? item.errorCode : 'value' in item ? JSON.stringify(item.value) : 'code default';
  const value = $('.value code', row);
  if (value.title && value.title !== short(text, 4000)) {
    row.classList.remove('changed');
    requestAnimationFrame(() => row.classList.add('changed'));
  }
  value.textContent = short(text, 160);
  value.title = short(text, 4000);
  value.className = failed ? 'failed' : 'value' in item ? type : 'none';
  $('.why', row).textContent = failed ? item.errorDetails : [item.variant, item.reason].filter((part) => part !== undefined).join(' · ');

  const switched = flip(flag);
  const button = $('.switch', row);
  button.hidden = !switched;
  button.setAttribute('aria-checked', String(switched?.on ?? false));
  button.setAttribute('aria-label', key);
  const select = $('select', row);
  select.hidden = plain || switched !== null;
  select.setAttribute('aria-label', `Variant of ${key}${isTargeted(flag) ? ' if no rule matches' : ''}`);
  const choices = [...variants.map(([name]) => name), undefined];
  select.replaceChildren(...choices.map((name) => {
    const option = new Option(name === undefined ? '— code default' : (isTargeted(flag) ? 'default: ' : '') + short(name, 40));
    if (name !== undefined) option.dataset.variant = name;
    option.selected = name === (flag.defaultVariant ?? undefined);
    return option;
  }));
}

const editor = $('#editor');
const EXAMPLE = {
  state: 'ENABLED', variants: { on: true, off: false }, defaultVariant: 'off',
  targeting: { if: [{ '==': [{ var: 'plan' }, 'premium'] }, 'on'] },
};

/** Opens the editor for a flag, or for a new one. */
function edit(key) {
  const form = $('form', editor);
  form.reset();
  showError(form);
  const flag = key === undefined ? { value: false } : flags.get(key);
  const fields = form.elements;
  $('#editor-title').textContent = key === undefined ? 'Add a flag' : 'Edit flag';
  fields.key.value = key ?? '';
  fields.key.readOnly = key !== undefined;
  fields.kind.value = isPlain(flag) ? 'value' : 'definition';
  fields.definition.value = JSON.stringify(isPlain(flag) ? EXAMPLE : flag, null, 2);
  if (isPlain(flag)) {
    const type = typeOf(flag.value);
    fields.type.value = ['boolean', 'number', 'string'].includes(type) ? type : 'object';
    fields.boolean.value = String(flag.value === true);
    fields.text.value = type === 'string' ? flag.value : type === 'boolean' ? '' : JSON.stringify(flag.value, null, 2);
  }
  showEditor();
  editor.showModal();
  if (key !== undefined) (isPlain(flag) ? fields.type.value === 'boolean' ? fields.boolean : fields.text : fields.definition).focus();
}

function showEditor() {
  const { kind, type } = $('form', editor).elements;
  const parts = kind.value === 'definition' ? ['definition'] : ['value', type.value === 'boolean' ? 'boolean' : 'text'];
  for (const part of all('[data-for]', editor)) part.hidden = !parts.includes(part.dataset.for);
}

async function save(form) {
  const fields = form.elements;
  const key = fields.key.value;
  showError(form);
  if (!key) return showError(form, fields.key, 'A key is required.');
  if (!fields.key.readOnly && flags.has(key)) return showError(form, fields.key, 'A flag with this key exists already.');
  let field = fields.definition;
  // Sent as typed, so that an error of the server points to its place.
  let definition = field.value;
  if (fields.kind.value === 'value') {
    const type = fields.type.value;
    field = type === 'boolean' ? fields.boolean : fields.text;
    const text = type === 'string' ? JSON.stringify(field.value) : field.value.trim();
    try {
      const found = typeOf(parse(text));
      if (type === 'number' && found !== 'number') return showError(form, field, 'This is not a number.');
    } catch (error) {
      return showError(form, field, type === 'number' ? 'This is not a number.' : error.message);
    }
    definition = `{"value": ${text}}`;
  }
  try {
    await put(key, definition);
  } catch (error) {
    return showError(form, field, error.message);
  }
  editor.close();
  showMessage(`Saved ${key}.`);
}

const remover = $('#remover');
function confirmRemoval(key) {
  showError($('form', remover));
  $('#flag-to-delete').textContent = key;
  remover.showModal();
}

async function remove(form) {
  const key = $('#flag-to-delete').textContent;
  const row = $('#flag-table').rows.get(key);
  const neighbour = row?.nextElementSibling ?? row?.previousElementSibling;
  try {
    await request('DELETE', '/flags/' + encodeURIComponent(key));
  } catch (error) {
    return showError(form, null, error.message);
  }
  remover.close();
  ($('.edit', neighbour ?? document.body) ?? $('#add')).focus();
  showMessage(`Deleted ${key}.`);
}

/** Parses `plan=premium, age=18`, where values are JSON or plain text, or a JSON object. */
function attributes(text) {
  text = text.trim();
  if (text.startsWith('{')) return parse(text);
  const fields = {};
  for (const field of text.split(',').filter((field) => field.trim())) {
    const [name, value] = [field.slice(0, field.indexOf('=')).trim(), field.slice(field.indexOf('=') + 1).trim()];
    if (!name || !field.includes('=')) throw new Error(`${field.trim()}: write name=value, or a JSON object.`);
    try { fields[name] = parse(value); } catch { fields[name] = value; }
  }
  return fields;
}

async function evaluate(form) {
  const fields = form.elements;
  showError(form);
  let wanted;
  try {
    wanted = attributes(fields.attributes.value);
    if (fields.targetingKey.value) wanted.targetingKey = fields.targetingKey.value;
    await request('POST', '/evaluate', JSON.stringify({ context: wanted }));
  } catch (error) {
    return showError(form, fields.attributes, error.message);
  }
  context = wanted;
  changed('flags');
  showMessage('Showing the values for this context.');
}

// Faults, streams, requests, the key ---------------------------------------------------------------------------------

const PRESETS = [
  ['Evaluations 503', { on: 'bulk', effect: { status: { code: 503 } } }],
  ['Evaluations 429', { on: 'bulk', effect: { status: { code: 429, headers: { 'retry-after': '5' } } } }],
  ['Evaluations slow', { on: 'bulk', effect: { delay: { millis: 2000 } } }],
  ['Evaluations hang', { on: 'bulk', effect: 'hang' }],
  ['Evaluations garbage', { on: 'bulk', effect: { garbage: { body: '<html>' } } }],
  ['Streams 503', { on: 'stream', effect: { status: { code: 503 } } }],
  ['Streams half-open', { on: 'stream', effect: 'halfOpen' }],
  ['Everything reset', { on: 'all', effect: 'reset' }],
];

// A text that is not a number is sent as it is, and the server responds with an error.
const number = (text) => /^\d+$/.test(text) ? Number(text) : text;
const afterBytes = (text) => text ? { afterBytes: number(text) } : {};
const EFFECTS = {
  status: ['Status', '503', (text) => ({ code: number(text) })],
  redirect: ['Location', 'http://localhost:9/', (text) => ({ location: text })],
  delay: ['Milliseconds', '2000', (text) => ({ millis: number(text) })],
  hang: [null, '', () => ({})],
  close: ['After bytes of the body (optional)', '', afterBytes],
  reset: ['After bytes of the body (optional)', '', afterBytes],
  halfOpen: ['After bytes of the body (optional)', '', afterBytes],
  trickle: ['Bytes every 100 ms', '16', (text) => ({ bytes: number(text), everyMillis: 100 })],
  garbage: ['Body', '<html>', (text) => ({ body: text })],
  contentType: ['Content type', 'text/html', (text) => text],
  noHeartbeats: [null, '', () => ({})],
};

const addFault = (fault) => request('POST', '/faults', JSON.stringify(fault));
const faultAdded = (fault) => `Fault ${fault.id} is active.`;

function showEffect() {
  const { effect, parameter } = $('#fault').elements;
  const [label, value] = EFFECTS[effect.value];
  parameter.closest('label').hidden = label === null;
  $('#parameter').textContent = label ?? '';
  parameter.value = value;
}

async function submitFault(form) {
  const { on, effect, parameter, after, times } = form.elements;
  showError(form);
  const fault = { on: on.value, effect: { [effect.value]: EFFECTS[effect.value][2](parameter.value) } };
  if (after.value) fault.after = number(after.value);
  if (times.value) fault.times = number(times.value);
  try {
    showMessage(faultAdded(await addFault(fault)));
  } catch ({ message }) {
    const field = { on, times, after }[message.split(':')[0]] ?? (parameter.closest('label').hidden ? effect : parameter);
    showError(form, field, message);
  }
}

async function readFaults() {
  const { faults } = await request('GET', '/faults');
  keyed($('#faults'), faults, ({ id }) => id, ({ id }) => {
    const line = make('li', 'fault');
    const button = make('button', '', 'Remove');
    button.type = 'button';
    button.setAttribute('aria-label', `Remove fault ${id}`);
    button.onclick = () => act(() => request('DELETE', `/faults/${id}`), () => `Removed fault ${id}.`);
    line.append(make('b', ''), make('code', ''), make('span', 'applied'), button);
    return line;
  }, (line, { on, effect, after, struck, remaining }) => {
    const [name, parameters] = Object.entries(effect)[0];
    const isShown = ([, value]) => value && JSON.stringify(value) !== '{}';
    const shown = typeof parameters === 'string' ? [['', parameters]] : Object.entries(parameters).filter(isShown);
    const text = [name, ...shown.map(([field, value]) => `${field} ${JSON.stringify(value)}`.trim())].join(' · ');
    line.classList.toggle('over', remaining === 0);
    $('b', line).textContent = on;
    $('code', line).textContent = short(text, 200);
    $('.applied', line).textContent = [after ? `skips ${after}` : '', `applied ${struck}`,
      remaining === 0 ? 'exhausted' : remaining === null ? '' : `${remaining} left`].filter(Boolean).join(' · ');
  });
  $('#no-faults').hidden = faults.length > 0;
  $('#clear-faults').hidden = faults.length === 0;
}

function showStreams({ open, streams }) {
  $('#stream-count').textContent = open;
  $('#no-streams').hidden = open > 0;
  for (const button of all('[data-end]')) button.disabled = open === 0;
  $('#streams').replaceChildren(...streams.map(({ since, client }) => {
    const line = make('li', 'stream');
    line.append(make('code', '', client || 'unknown client'), make('time', '', `since ${time(since)}`));
    return line;
  }));
}

async function readRequests() {
  const { requests } = await request('GET', '/requests');
  keyed($('#requests'), requests.slice(0, 100), ({ id }) => id, ({ at, method, path, apiKey, context }) => {
    const line = make('li', 'request');
    line.append(make('time', '', time(at)), make('b', 'status'), make('code', 'path', `${method} ${path}`),
      make('span', 'took'), make('code', 'context', [context, apiKey && `key ${apiKey}`].filter(Boolean).join('  ')));
    return line;
  }, (line, { status, millis }) => {
    const shown = $('.status', line);
    shown.textContent = status ?? (millis === null ? '…' : 'none');
    shown.title = status ? '' : millis === null ? 'Pending' : 'The connection ended without a response';
    shown.className = 'status ' + (status === null ? millis === null ? '' : 'bad' : status < 400 ? 'good' : 'bad');
    $('.took', line).textContent = millis === null ? '' : `${millis} ms`;
  });
  $('#no-requests').hidden = requests.length > 0;
}

async function readKey() {
  const { key } = await request('GET', '/api-key');
  $('#api-key').textContent = key ?? 'any';
}

const rotator = $('#rotator');
let newKey;
async function rotate(form) {
  const { key, minutes } = form.elements;
  showError(form);
  const rotation = {};
  if (key.value) rotation.key = key.value;
  if (minutes.value) {
    const until = new Date(Date.now() + Number(minutes.value) * 60_000);
    if (Number.isNaN(until.valueOf())) return showError(form, minutes, 'This is not a number of minutes.');
    rotation.validUntil = until.toISOString();
  }
  try {
    ({ key: newKey } = await request('POST', '/api-key', JSON.stringify(rotation)));
    form.reset();
    $('#rotated code').textContent = (await request('GET', '/api-key')).key;
    $('#rotated').hidden = false;
    $('#copy').focus();
    showMessage('The API key has been replaced.');
  } catch (error) {
    showError(form, key, error.message);
  }
}

// Live updates -----------------------------------------------------------------------------------------------------

const readers = { flags: readFlags, faults: readFaults, requests: readRequests, 'api-key': readKey };
const stale = new Set();
let reading = false;

/** Reloads what has changed, one topic after the other, so that no list is loaded twice at a time. */
async function changed(topic) {
  stale.add(topic);
  if (reading) return;
  reading = true;
  for (const next of stale) {
    stale.delete(next);
    try {
      await readers[next]();
    } catch {
      setTimeout(changed, 1000, next);
    }
  }
  reading = false;
}

let feed;
function follow() {
  feed?.close();
  feed = new EventSource('/local/activity');
  feed.onopen = () => setConnected(true);
  feed.onerror = () => {
    setConnected(false);
    // The browser does not reconnect after a response that is not a stream.
    if (feed.readyState === EventSource.CLOSED) setTimeout(follow, 1000);
  };
  for (const topic of Object.keys(readers)) feed.addEventListener(topic, () => changed(topic));
  feed.addEventListener('streams', ({ data }) => showStreams(JSON.parse(data)));
}

function setConnected(connected) {
  $('#connection').textContent = connected ? 'Live' : 'Not connected';
  $('#connection').className = connected ? 'good' : 'bad';
  $('#offline').hidden = connected;
  document.body.classList.toggle('lost', !connected);
}

// Browsers limit the connections to a server, so a hidden page keeps none.
document.addEventListener('visibilitychange', () => { if (document.hidden) feed?.close(); else follow(); });

for (const [form, submit] of [['#context', evaluate], ['#fault', submitFault], ['#editor form', save], ['#remover form', remove], ['#rotator form', rotate]]) {
  $(form).addEventListener('submit', (event) => {
    event.preventDefault();
    submit(event.target);
  });
}
$('#context').addEventListener('reset', ({ target }) => {
  showError(target);
  context = {};
  changed('flags');
});
$('#filter').addEventListener('input', showFlags);
$('#add').onclick = () => edit();
$('#editor form').addEventListener('change', showEditor);
for (const button of all('[data-close]')) button.onclick = () => button.closest('dialog').close();
$('#rotate').onclick = () => {
  showError($('form', rotator));
  $('#rotated').hidden = true;
  rotator.showModal();
};
rotator.addEventListener('close', () => { newKey = undefined; });
$('#copy').onclick = () => act(() => navigator.clipboard.writeText(newKey), () => 'Copied the key.');
$('#clear-faults').onclick = () => act(() => request('DELETE', '/faults'), () => 'Removed all faults.');
for (const button of all('[data-end]')) {
  button.onclick = () => act(() => request('POST', `/streams/${button.dataset.end}`), ({ streams }) => `Ended ${streams} streams.`);
}
for (const [name, fault] of PRESETS) {
  const button = make('button', '', name);
  button.type = 'button';
  button.onclick = () => act(() => addFault(fault), faultAdded);
  $('#presets').append(button);
}
$('#fault').elements.effect.append(...Object.keys(EFFECTS).map((name) => new Option(name)));
$('#fault').elements.effect.onchange = showEffect;
showEffect();
follow();
