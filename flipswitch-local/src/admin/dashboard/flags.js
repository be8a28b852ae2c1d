// The table of flags, and their editor.

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
  $('#flag-table').hidden = shown.length === 0;
  $('#no-flags').hidden = flags.size > 0;
  $('#no-match').hidden = flags.size === 0 || shown.length > 0;
  const isAnonymous = Object.keys(context).length === 0;
  $('#evaluated-for').textContent = isAnonymous ? 'for an anonymous user' : 'for ' + short(JSON.stringify(context), 80);
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
  $('.variants ul', row).hidden = plain;
  $('.variants ul', row).replaceChildren(...variants.slice(0, 4).map(([name, value]) => {
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
    const option = new Option(name === undefined ? 'code default' : (isTargeted(flag) ? 'default: ' : '') + short(name, 40));
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
  // The beginning of a long definition is shown first.
  fields.definition.setSelectionRange(0, 0);
  fields.definition.scrollTop = 0;
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
    fields[name] = literal(value);
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
