// Streams, requests and the API key; live updates; the handlers of the page's elements.

function showStreams({ open, streams }) {
  $('#stream-count').textContent = open;
  $('#streams').hidden = open === 0;
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
    shown.textContent = status ?? (millis === null ? 'pending' : 'no response');
    shown.title = status === null && millis !== null ? 'The connection ended without a response' : '';
    shown.className = 'status ' + (status === null ? millis === null ? '' : 'bad' : status < 400 ? 'good' : 'bad');
    $('.took', line).textContent = millis === null ? '' : `${millis} ms`;
  });
  $('#requests').hidden = requests.length === 0;
  $('#no-requests').hidden = requests.length > 0;
}

async function readKey() {
  const { key } = await request('GET', '/api-key');
  $('#api-key').textContent = key ?? 'any';
  $('#wanted-key').replaceChildren(...(key === null ? ['any text'] : ['the key of this server, ', make('code', '', key)]));
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

// Live updates.

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
  if (connected && document.body.classList.contains('lost')) showMessage('The server responds again.');
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
  button.onclick = () => act(() => request('POST', `/streams/${button.dataset.end}`),
    ({ streams }) => `Ended ${streams} ${streams === 1 ? 'stream' : 'streams'}.`);
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
$('#base-url').textContent = location.origin;
follow();
