'use strict';
// Everything that is shown goes through textContent and properties: no text becomes markup, whatever a flag is called.

const $ = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function make(tag, className, text = '') {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

// Numbers that change when they are read as a double (9007199254740993, 1.0) are kept as they are written.
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

// The service ------------------------------------------------------------------------------------------------------

/** Asks an endpoint under /local; a refusal is an error with the service's reason. `body` is JSON text. */
async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch('/local' + path, { method, body, headers: body ? { 'content-type': 'application/json' } : {} });
  } catch {
    throw new Error('The service does not answer.');
  }
  const text = await answer.text();
  let json = null;
  try { json = text ? parse(text) : null; } catch { /* Nothing of ours; its status says enough. */ }
  if (!answer.ok) throw new Error(json?.error ?? `The service answered ${answer.status}.`);
  return json;
}

let quiet;
function say(text, bad = false) {
  const said = $('#said');
  said.textContent = text;
  said.className = bad ? 'bad' : '';
  clearTimeout(quiet);
  quiet = setTimeout(() => { said.textContent = ''; }, 8000);
}

/** Does something to the service that a button stands for, and tells how it went. */
async function act(what, done) {
  try {
    say(done(await what()));
  } catch (error) {
    say(error.message, true);
  }
}

/** Shows a form's mistake at its field; without a text there is none. */
function mistake(form, field, text = '') {
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

/** Keeps a list's elements by key, so that focus stays where it is while other things change. */
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
const put = (key, definition) => ask('PUT', '/flags/' + encodeURIComponent(key), definition);

async function readFlags() {
  const [listed, evaluated] =
    await Promise.all([ask('GET', '/flags'), ask('POST', '/evaluate', JSON.stringify({ context }))]);
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
  $('#no-flags').textContent = flags.size ? 'No flag is called like that.' : 'No flags yet. Add one, or start with --flags FILE.';
  const isNobody = Object.keys(context).length === 0;
  $('#whose').textContent = isNobody ? 'for nobody in particular' : 'for ' + short(JSON.stringify(context), 80);
}

function flagRow(key) {
  const row = $('#flag-row').content.firstElementChild.cloneNode(true);
  $('.flag-key', row).textContent = $('.flag-key', row).title = key;
  $('.edit', row).setAttribute('aria-label', `Edit ${key}`);
  $('.delete', row).setAttribute('aria-label', `Delete ${key}`);
  const change = async (changes, told) => {
    await act(() => put(key, JSON.stringify({ ...flags.get(key), ...changes })), () => `${key} ${told}.`);
    // Where it was refused, the row has to show again what holds.
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
    change({ defaultVariant: name ?? null }, name === undefined ? 'is left to the code now' : `serves ${name} now`);
  };
  $('.edit', row).onclick = () => edit(key);
  $('.delete', row).onclick = () => askToRemove(key);
  return row;
}

/** How a flag stands that is either on or off, and what flips it; nothing for flags that rules or more values decide. */
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
  const text = failed ? item.errorCode : 'value' in item ? JSON.stringify(item.value) : 'left to the code';
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
  select.setAttribute('aria-label', `Variant of ${key}${isTargeted(flag) ? ' where no rule decides' : ''}`);
  const choices = [...variants.map(([name]) => name), undefined];
  select.replaceChildren(...choices.map((name) => {
    const option = new Option(name === undefined ? '— code decides' : (isTargeted(flag) ? 'else ' : '') + short(name, 40));
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
  mistake(form);
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
  mistake(form);
  if (!key) return mistake(form, fields.key, 'A flag needs a key.');
  if (!fields.key.readOnly && flags.has(key)) return mistake(form, fields.key, 'There is a flag of this key; edit that one.');
  let field = fields.definition;
  // Sent as it was typed, so that the service's error points into it.
  let definition = field.value;
  if (fields.kind.value === 'value') {
    const type = fields.type.value;
    field = type === 'boolean' ? fields.boolean : fields.text;
    const text = type === 'string' ? JSON.stringify(field.value) : field.value.trim();
    try {
      const found = typeOf(parse(text));
      if (type === 'number' && found !== 'number') return mistake(form, field, 'This is no number.');
    } catch (error) {
      return mistake(form, field, type === 'number' ? 'This is no number.' : error.message);
    }
    definition = `{"value": ${text}}`;
  }
  try {
    await put(key, definition);
  } catch (error) {
    return mistake(form, field, error.message);
  }
  editor.close();
  say(`${key} is saved.`);
}

const remover = $('#remover');
function askToRemove(key) {
  mistake($('form', remover));
  $('#removed').textContent = key;
  remover.showModal();
}

async function remove(form) {
  const key = $('#removed').textContent;
  const row = $('#flag-table').rows.get(key);
  const neighbour = row?.nextElementSibling ?? row?.previousElementSibling;
  try {
    await ask('DELETE', '/flags/' + encodeURIComponent(key));
  } catch (error) {
    return mistake(form, null, error.message);
  }
  remover.close();
  ($('.edit', neighbour ?? document.body) ?? $('#add')).focus();
  say(`${key} is deleted.`);
}

/** Reads `plan=premium, age=18`, where values are JSON or else texts, or an object as JSON. */
function attributes(text) {
  text = text.trim();
  if (text.startsWith('{')) return parse(text);
  const fields = {};
  for (const field of text.split(',').filter((field) => field.trim())) {
    const [name, value] = [field.slice(0, field.indexOf('=')).trim(), field.slice(field.indexOf('=') + 1).trim()];
    if (!name || !field.includes('=')) throw new Error(`${field.trim()}: write name=value, or an object as JSON.`);
    try { fields[name] = parse(value); } catch { fields[name] = value; }
  }
  return fields;
}

async function evaluate(form) {
  const fields = form.elements;
  mistake(form);
  let wanted;
  try {
    wanted = attributes(fields.attributes.value);
    if (fields.targetingKey.value) wanted.targetingKey = fields.targetingKey.value;
    await ask('POST', '/evaluate', JSON.stringify({ context: wanted }));
  } catch (error) {
    return mistake(form, fields.attributes, error.message);
  }
  context = wanted;
  changed('flags');
  say('The values are evaluated for this context.');
}

// Faults, streams, requests, the key ---------------------------------------------------------------------------------

const PRESETS = [
  ['Evaluations 503', { on: 'bulk', effect: { status: { code: 503 } } }],
  ['Evaluations 429', { on: 'bulk', effect: { status: { code: 429, headers: { 'retry-after': '5' } } } }],
  ['Evaluations slow', { on: 'bulk', effect: { delay: { millis: 2000 } } }],
  ['Evaluations hang', { on: 'bulk', effect: 'hang' }],
  ['Evaluations garbage', { on: 'bulk', effect: { garbage: { body: '<html>' } } }],
  ['Streams refused', { on: 'stream', effect: { status: { code: 503 } } }],
  ['Streams half-open', { on: 'stream', effect: 'halfOpen' }],
  ['Everything reset', { on: 'all', effect: 'reset' }],
];

// What a number should be is told by the service, if it is none.
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

const addFault = (fault) => ask('POST', '/faults', JSON.stringify(fault));
const faultAdded = (fault) => `Fault ${fault.id} strikes from now on.`;

function showEffect() {
  const { effect, parameter } = $('#fault').elements;
  const [label, value] = EFFECTS[effect.value];
  parameter.closest('label').hidden = label === null;
  $('#parameter').textContent = label ?? '';
  parameter.value = value;
}

async function submitFault(form) {
  const { on, effect, parameter, after, times } = form.elements;
  mistake(form);
  const fault = { on: on.value, effect: { [effect.value]: EFFECTS[effect.value][2](parameter.value) } };
  if (after.value) fault.after = number(after.value);
  if (times.value) fault.times = number(times.value);
  try {
    say(faultAdded(await addFault(fault)));
  } catch ({ message }) {
    const field = { on, times, after }[message.split(':')[0]] ?? (parameter.closest('label').hidden ? effect : parameter);
    mistake(form, field, message);
  }
}

async function readFaults() {
  const { faults } = await ask('GET', '/faults');
  keyed($('#faults'), faults, ({ id }) => id, ({ id }) => {
    const line = make('li', 'fault');
    const button = make('button', '', 'Remove');
    button.type = 'button';
    button.setAttribute('aria-label', `Remove fault ${id}`);
    button.onclick = () => act(() => ask('DELETE', `/faults/${id}`), () => `Fault ${id} is removed.`);
    line.append(make('b', ''), make('code', ''), make('span', 'struck'), button);
    return line;
  }, (line, { on, effect, after, struck, remaining }) => {
    const [name, parameters] = Object.entries(effect)[0];
    const isTold = ([, value]) => value && JSON.stringify(value) !== '{}';
    const told = typeof parameters === 'string' ? [['', parameters]] : Object.entries(parameters).filter(isTold);
    const text = [name, ...told.map(([field, value]) => `${field} ${JSON.stringify(value)}`.trim())].join(' · ');
    line.classList.toggle('over', remaining === 0);
    $('b', line).textContent = on;
    $('code', line).textContent = short(text, 200);
    $('.struck', line).textContent = [after ? `after ${after}` : '', `struck ${struck}`,
      remaining === 0 ? 'over' : remaining === null ? '' : `${remaining} left`].filter(Boolean).join(' · ');
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
  const { requests } = await ask('GET', '/requests');
  keyed($('#requests'), requests.slice(0, 100), ({ id }) => id, ({ at, method, path, apiKey, context }) => {
    const line = make('li', 'request');
    line.append(make('time', '', time(at)), make('b', 'status'), make('code', 'path', `${method} ${path}`),
      make('span', 'took'), make('code', 'asked', [context, apiKey && `key ${apiKey}`].filter(Boolean).join('  ')));
    return line;
  }, (line, { status, millis }) => {
    const shown = $('.status', line);
    shown.textContent = status ?? (millis === null ? '…' : 'none');
    shown.title = status ? '' : millis === null ? 'Being answered' : 'The connection ended without an answer';
    shown.className = 'status ' + (status === null ? millis === null ? '' : 'bad' : status < 400 ? 'good' : 'bad');
    $('.took', line).textContent = millis === null ? '' : `${millis} ms`;
  });
  $('#no-requests').hidden = requests.length > 0;
}

async function readKey() {
  const { key } = await ask('GET', '/api-key');
  $('#api-key').textContent = key ?? 'any';
}

const rotator = $('#rotator');
let newKey;
async function rotate(form) {
  const { key, minutes } = form.elements;
  mistake(form);
  const rotation = {};
  if (key.value) rotation.key = key.value;
  if (minutes.value) {
    const until = new Date(Date.now() + Number(minutes.value) * 60_000);
    if (Number.isNaN(until.valueOf())) return mistake(form, minutes, 'This is no number of minutes.');
    rotation.validUntil = until.toISOString();
  }
  try {
    ({ key: newKey } = await ask('POST', '/api-key', JSON.stringify(rotation)));
    form.reset();
    $('#rotated code').textContent = (await ask('GET', '/api-key')).key;
    $('#rotated').hidden = false;
    $('#copy').focus();
    say('The API key is another one now.');
  } catch (error) {
    mistake(form, key, error.message);
  }
}

// What goes on -----------------------------------------------------------------------------------------------------

const readers = { flags: readFlags, faults: readFaults, requests: readRequests, 'api-key': readKey };
const stale = new Set();
let reading = false;

/** Reads anew what has changed, one after the other: a list that changes often is not asked for twice at a time. */
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
  feed.onopen = () => connected(true);
  feed.onerror = () => {
    connected(false);
    // After an answer that is no stream the browser does not try again.
    if (feed.readyState === EventSource.CLOSED) setTimeout(follow, 1000);
  };
  for (const topic of Object.keys(readers)) feed.addEventListener(topic, () => changed(topic));
  feed.addEventListener('streams', ({ data }) => showStreams(JSON.parse(data)));
}

function connected(well) {
  $('#link').textContent = well ? 'Live' : 'Not connected';
  $('#link').className = well ? 'good' : 'bad';
  $('#gone').hidden = well;
  document.body.classList.toggle('lost', !well);
}

// Browsers open six connections to a service, and a page that nobody sees needs none.
document.addEventListener('visibilitychange', () => { if (document.hidden) feed?.close(); else follow(); });

for (const [form, submit] of [['#context', evaluate], ['#fault', submitFault], ['#editor form', save], ['#remover form', remove], ['#rotator form', rotate]]) {
  $(form).addEventListener('submit', (event) => {
    event.preventDefault();
    submit(event.target);
  });
}
$('#context').addEventListener('reset', ({ target }) => {
  mistake(target);
  context = {};
  changed('flags');
});
$('#filter').addEventListener('input', showFlags);
$('#add').onclick = () => edit();
$('#editor form').addEventListener('change', showEditor);
for (const button of all('[data-close]')) button.onclick = () => button.closest('dialog').close();
$('#rotate').onclick = () => {
  mistake($('form', rotator));
  $('#rotated').hidden = true;
  rotator.showModal();
};
rotator.addEventListener('close', () => { newKey = undefined; });
$('#copy').onclick = () => act(() => navigator.clipboard.writeText(newKey), () => 'The key is copied.');
$('#clear-faults').onclick = () => act(() => ask('DELETE', '/faults'), () => 'All faults are removed.');
for (const button of all('[data-end]')) {
  button.onclick = () => act(() => ask('POST', `/streams/${button.dataset.end}`), ({ streams }) => `Ended ${streams} streams.`);
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
