// The list of faults, and the form for new ones.

const PRESETS = [
  ['Evaluations: 503', { on: 'bulk', effect: { status: { code: 503 } } }],
  ['Evaluations: 429', { on: 'bulk', effect: { status: { code: 429, headers: { 'retry-after': '5' } } } }],
  ['Evaluations: slow', { on: 'bulk', effect: { delay: { millis: 2000 } } }],
  ['Evaluations: hang', { on: 'bulk', effect: 'hang' }],
  ['Evaluations: garbage', { on: 'bulk', effect: { garbage: { body: '<html>' } } }],
  ['Streams: 503', { on: 'stream', effect: { status: { code: 503 } } }],
  ['Streams: end after 30 s', { on: 'stream', effect: { finish: { afterMillis: 30000 } } }],
  ['Streams: half-open', { on: 'stream', effect: 'halfOpen' }],
  ['Connections: half-open', { on: 'connections', effect: 'halfOpen' }],
  ['All requests: reset', { on: 'all', effect: 'reset' }],
];

// A text that is not a number is sent as it is, and the server responds with an error.
const number = (text) => /^\d+$/.test(text) ? Number(text) : text;
const afterBytes = (text) => text ? { afterBytes: number(text) } : {};
const EFFECTS = {
  status: ['Status', '503', (text) => ({ code: number(text) })],
  redirect: ['Location', 'http://localhost:9/', (text) => ({ location: text })],
  delay: ['Milliseconds', '2000', (text) => ({ millis: number(text) })],
  rateLimit: ['Requests a second', '10', (text) => ({ perSecond: number(text) })],
  flagError: ['Flag', '', (text) => ({ key: text })],
  hang: [null, '', () => ({})],
  close: ['After bytes of the body (optional)', '', afterBytes],
  reset: ['After bytes of the body (optional)', '', afterBytes],
  finish: ['After milliseconds (optional)', '', (text) => text ? { afterMillis: number(text) } : {}],
  halfOpen: ['After bytes of the body (optional)', '', afterBytes],
  trickle: ['Bytes every 100 ms', '16', (text) => ({ bytes: number(text), everyMillis: 100 })],
  garbage: ['Body', '<html>', (text) => ({ body: text })],
  contentType: ['Content type', 'text/html', (text) => text],
  notModified: [null, '', () => ({})],
  noHeartbeats: [null, '', () => ({})],
  noReplay: [null, '', () => ({})],
  splitEvents: [null, '', () => ({})],
};

const listed = (text) => text.split(',').map((part) => part.trim()).filter(Boolean);

// `name`, or `name=value` with a value that is JSON or plain text.
function attribute(text) {
  const [name, ...value] = text.split('=');
  return value.length ? { name: name.trim(), value: literal(value.join('=').trim()) } : { name };
}

function filter({ targetingKeys, exceptTargetingKeys, attributes, ifNoneMatch }) {
  const when = {};
  if (targetingKeys.value) when.targetingKeys = listed(targetingKeys.value);
  if (exceptTargetingKeys.value) when.exceptTargetingKeys = listed(exceptTargetingKeys.value);
  if (attributes.value) when.attributes = listed(attributes.value).map(attribute);
  if (ifNoneMatch.value) when.ifNoneMatch = ifNoneMatch.value === 'true';
  return when;
}

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
  const { on, effect, parameter, after, times, targetingKeys, exceptTargetingKeys, attributes } = form.elements;
  showError(form);
  const fault = { on: on.value, when: filter(form.elements), effect: { [effect.value]: EFFECTS[effect.value][2](parameter.value) } };
  if (after.value) fault.after = number(after.value);
  if (times.value) fault.times = number(times.value);
  try {
    showMessage(faultAdded(await addFault(fault)));
  } catch ({ message }) {
    const fields = { on, times, after, when: on, 'when.targetingKeys': targetingKeys,
      'when.exceptTargetingKeys': exceptTargetingKeys, 'when.attributes': attributes };
    const field = fields[message.split(':')[0]] ?? (parameter.closest('label').hidden ? effect : parameter);
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
  }, (line, { on, when, effect, after, struck, remaining }) => {
    const [name, parameters] = Object.entries(effect)[0];
    const isShown = ([, value]) => value && JSON.stringify(value) !== '{}';
    const shown = typeof parameters === 'string' ? [['', parameters]] : Object.entries(parameters).filter(isShown);
    shown.push(...Object.entries(when ?? {}));
    const text = [name, ...shown.map(([field, value]) => `${field} ${JSON.stringify(value)}`.trim())].join(' · ');
    line.classList.toggle('over', remaining === 0);
    $('b', line).textContent = on;
    $('code', line).textContent = short(text, 200);
    $('.applied', line).textContent = [after ? `skips ${after}` : '', `applied ${struck}`,
      remaining === 0 ? 'exhausted' : remaining === null ? '' : `${remaining} left`].filter(Boolean).join(' · ');
  });
  $('#faults').hidden = faults.length === 0;
  $('#no-faults').hidden = faults.length > 0;
  $('#clear-faults').hidden = faults.length === 0;
}
