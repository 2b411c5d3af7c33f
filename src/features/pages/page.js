// The page's behaviour. It calls the same API as every other client. It knows no feature but accounts and events: a
// feature's section says with attributes what it shows.
//
//   <form data-post="PATH">    sends its fields as JSON. On success [data-result] in it shows, with the response's fields
//     data-once                the operation takes an Idempotency-Key, so the form may be sent again by itself
//     <button data-in="60">    sets the form's time to so many seconds after it is sent
//   <form data-upload="PATH">  sends each chosen or dropped file as a body. {name} is the file's name
//   <ul data-list="PATH">      shows the list that the path returns, one copy of its <template> for each item
//     data-past="FIELD"        items with this field are over, and the first other one is next
//                              of a response that is no list, its numbers are the items: name and value
//   data-empty                 shown while the list of the section is empty
//   In a copy or a result:     data-text, data-time, data-size: the field's value, as text
//                              data-if, data-unless: drops the element unless, or if, the field has a value
//                              data-src, data-label: sets the image or the label. {field} is the field's value
//                              data-open="PATH": a link to a response that leads elsewhere
//                              data-delete="PATH": a button that deletes, at its second click
//                              <button data-post="PATH">: a button that changes the item, at its second click
//   data-role="ROLE"           shown only to accounts that have this role
//
// What comes from the API is only ever set as text, never as HTML.

/** The pauses before the further attempts of a request that may be repeated, in milliseconds. */
const RETRY_PAUSES = [200, 500, 1000, 2000];
/** When a section loads again after an action, because a worker may be doing the rest of it, in milliseconds. */
const RELOAD_DELAYS = [1500, 5000];
/** How long after a refused stream of events the next one is tried, in milliseconds. It doubles with each refusal. */
const MIN_LISTEN_PAUSE = 2000;
const MAX_LISTEN_PAUSE = 120_000;
/** How many pages of a list are loaded to find the next item. */
const MAX_PAGES = 20;
/** How long a button waits for the second click, in milliseconds. */
const SECOND_CLICK_TIMEOUT = 4000;

const page = document.querySelector('main');
const find = (selector, within = document) => within.querySelector(selector);
const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The account of the session, or null for somebody who is not signed in. */
let account = null;

// Requests

/** A problem that the service responded with, or no response. Then the status is 0. */
class Problem extends Error {
  constructor(status, { type = '', title, detail, errors = [], request_id: requestId } = {}) {
    super(detail ?? title ?? (status ? `The service is not available now (status ${status}).` : 'The service did not answer.'));
    this.status = status;
    this.slug = type.replace('/problems/', '');
    this.errors = errors;
    if (status >= 500 && requestId) this.message += ` Request ${requestId}.`;
  }

  /** Whether it may pass by itself: another process may answer, or the first of two same requests may end. */
  get passes() {
    return ([0, 502, 503, 504].includes(this.status) && this.slug !== 'timed-out') || this.slug === 'idempotency-key-in-use';
  }
}

/** The error of a person who closes a dialog. */
class Cancelled extends Error {}

const problemOf = (status, text) => {
  try {
    return new Problem(status, JSON.parse(text));
  } catch {
    return new Problem(status);
  }
};

async function send(path, options) {
  const started = performance.now();
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Problem(0);
  }
  showProcess(response.headers.get('x-served-by'), performance.now() - started);
  if (response.ok || response.type === 'opaqueredirect') return response;
  throw problemOf(response.status, await response.text().catch(() => ''));
}

/** Runs a request. It first asks for what the service misses, and repeats the request if that does no harm. */
async function attempt(run, repeatable) {
  for (let tries = 0; ; ) {
    try {
      return await run();
    } catch (problem) {
      if (problem.slug === 'unauthenticated' && account) await dialogs.again();
      else if (problem.slug === 'confirmation-required') await dialogs.confirm();
      else if (repeatable && problem.passes && tries < RETRY_PAUSES.length) await pause(RETRY_PAUSES[tries++]);
      else throw problem;
    }
  }
}

const get = (path, options) => attempt(() => send(path, options), true);
const remove = (path) => attempt(() => send(path, { method: 'DELETE' }), true);
const post = (path, body, key) => {
  const headers = { 'content-type': 'application/json', ...(key && { 'idempotency-key': key }) };
  return attempt(() => send(path, { method: 'POST', headers, body }), Boolean(key));
};

/** Browsers have no `randomUUID` for pages over plain http. */
const randomKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');

/** Fills {field} in a path, or in a text. */
const expand = (text, item, encode = encodeURIComponent) => text.replace(/\{(\w+)\}/g, (_, field) => encode(item[field] ?? ''));

// The foot of the page

function showProcess(header, ms) {
  // A proxy that answers by itself sends no such header.
  const by = new URLSearchParams(header ?? '');
  if (!by.has('process')) return;
  const foot = find('#served-by');
  const process = by.get('process');
  foot.style.setProperty('--hue', parseInt(process.slice(0, 4), 16) % 360);
  const parts = [`process ${process}`, `commit ${by.get('commit').slice(0, 7)}`, `${Math.round(ms)} ms`];
  if (by.has('release')) parts.splice(1, 0, `release ${by.get('release')}`);
  const draining = by.get('draining') === 'true';
  if (draining) parts.push('draining, about to stop');
  foot.replaceChildren('Answered by ', ...parts.flatMap((part, i) => [i ? ', ' : '', Object.assign(document.createElement('span'), { textContent: part })]));
  foot.dataset.process = process;
  foot.classList.toggle('draining', draining);
}

// Problems, as text beside their cause

function clearProblems(place) {
  for (const problem of findAll('.problem', place)) problem.remove();
  for (const field of findAll('[aria-invalid]', place)) {
    field.removeAttribute('aria-invalid');
    field.removeAttribute('aria-describedby');
  }
}

let problems = 0;
function showProblem(place, problem, again) {
  if (problem instanceof Cancelled) return;
  clearProblems(place);
  const add = (after, text) => {
    const line = document.createElement('p');
    line.className = 'problem';
    line.id = `problem-${++problems}`;
    line.textContent = text;
    after(line);
    return line;
  };
  for (const { field, detail } of problem.errors ?? []) {
    const input = find(`[name="${CSS.escape(field.match(/^\w*/)[0])}"]`, place);
    if (!input) continue;
    const line = add((line) => (input.closest('fieldset') ?? input.closest('label')).after(line), detail);
    input.setAttribute('aria-invalid', 'true');
    input.setAttribute('aria-describedby', line.id);
  }
  const line = add((line) => place.append(line), problem.message);
  line.setAttribute('role', 'alert');
  line.scrollIntoView({ block: 'nearest' });
  if (again) {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'plain';
    button.textContent = 'Try again';
    button.addEventListener('click', again);
    line.append(' ', button);
  }
  find('[aria-invalid]', place)?.focus();
}

// Items and results

const units = ['byte', 'kilobyte', 'megabyte', 'gigabyte'];
function size(bytes) {
  const power = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), units.length - 1);
  const format = { style: 'unit', unit: units[power], unitDisplay: power ? 'short' : 'long', maximumFractionDigits: power ? 1 : 0 };
  return new Intl.NumberFormat('en', format).format(bytes / 1000 ** power);
}

const times = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeStyle: 'short' });
const holds = (value) => (Array.isArray(value) ? value.length > 0 : Boolean(value));

/** Fills the elements with the fields of an item. */
function fill(place, item) {
  for (const element of findAll('[data-if], [data-unless]', place)) {
    const { if: wanted, unless } = element.dataset;
    if ((wanted && !holds(item[wanted])) || (unless && holds(item[unless]))) element.remove();
  }
  for (const element of findAll('*', place)) {
    const { text, time, size: bytes, src, label, open } = element.dataset;
    if (text) element.textContent = [item[text] ?? 'unknown'].flat().join(', ');
    if (bytes) element.textContent = size(item[bytes]);
    if (time) {
      element.dateTime = item[time];
      element.textContent = times.format(new Date(item[time]));
    }
    if (src) {
      element.addEventListener('error', () => element.remove());
      element.src = expand(src, item);
    }
    if (label) element.setAttribute('aria-label', expand(label, item, String));
    if (open) element.href = expand(open, item);
  }
}

// Lists

/** The numbers in an object and in the objects in it, each with its name. */
function numbersIn(value, name = '') {
  if (typeof value === 'number') return [{ id: name, name, value }];
  if (typeof value !== 'object') return [];
  return Object.entries(value ?? {}).flatMap(([key, part]) => numbersIn(part, `${name} ${key}`.trim()));
}

/** What is known of each list: how many pages it shows, its rows by id, and the number of its last load. */
const lists = new Map(findAll('[data-list]').map((list) => [list, { pages: 1, rows: new Map(), load: 0 }]));

async function loadList(list) {
  const state = lists.get(list);
  const load = ++state.load;
  const { list: path, past } = list.dataset;
  const items = [];
  let next = null;
  try {
    for (let pages = 1; pages <= MAX_PAGES; pages++) {
      const answer = await get(next ? `${path}&cursor=${encodeURIComponent(next)}` : path);
      const part = await answer.json();
      items.push(...(part.items ?? numbersIn(part)));
      next = part.next;
      const onlyPast = past && items.every((item) => holds(item[past]));
      if (!next || (pages >= state.pages && !onlyPast)) break;
    }
  } catch (problem) {
    if (load === state.load) showProblem(list.parentElement, problem, () => loadList(list));
    return;
  }
  // A later load has begun, which knows more.
  if (load !== state.load || !account) return;
  showItems(list, state, items, next);
}

function showItems(list, state, items, more) {
  const section = list.parentElement;
  for (const problem of findAll(':scope > .problem', section)) problem.remove();
  const before = state.rows;
  state.rows = new Map();
  let cursor = find('li', list);
  for (const item of items) {
    const json = JSON.stringify(item);
    const id = item.id ?? json;
    let row = before.get(id);
    if (row?.json !== json) {
      const copy = document.importNode(find('template', list).content, true);
      row = { json, element: find('li', copy) };
      fill(copy, item);
      bindRow(list, row.element, item);
    }
    state.rows.set(id, row);
    // A row that stays where it is keeps the focus.
    if (row.element === cursor) cursor = cursor.nextElementSibling;
    else list.insertBefore(row.element, cursor);
  }
  while (cursor) {
    const gone = cursor;
    cursor = cursor.nextElementSibling;
    gone.remove();
  }
  const { past } = list.dataset;
  const rows = findAll('li', list);
  const next = past ? items.findIndex((item) => !holds(item[past])) : -1;
  rows.forEach((row, i) => {
    row.classList.toggle('past', Boolean(past) && holds(items[i][past]));
    row.classList.toggle('is-next', i === next);
  });
  const empty = find('[data-empty]', section);
  if (empty) empty.hidden = items.length > 0;
  find('[data-more]', section)?.remove();
  if (more) {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'plain';
    button.dataset.more = '';
    button.textContent = 'Show more';
    button.addEventListener('click', () => {
      state.pages++;
      loadList(list);
    });
    list.after(button);
  }
}

function bindRow(list, row, item) {
  for (const button of findAll('button:is([data-delete], [data-post])', row)) {
    button.type = 'button';
    button.className = 'plain';
    const [text, label] = [button.textContent, button.ariaLabel];
    let asked = 0;
    const ask = (sure) => {
      button.textContent = sure ? 'Really?' : text;
      button.ariaLabel = sure ? `Really? ${label ?? ''}` : label;
      clearTimeout(asked);
      asked = sure ? setTimeout(() => ask(false), SECOND_CLICK_TIMEOUT) : 0;
    };
    button.addEventListener('click', async ({ detail }) => {
      if (!asked) return ask(true);
      // The second half of a double click is no answer.
      if (detail > 1) return;
      ask(false);
      const place = findAll('li', list).indexOf(row);
      const { delete: gone, post: changed } = button.dataset;
      try {
        if (changed) await post(expand(changed, item));
        // What is gone already is deleted, too.
        else
          await remove(expand(gone, item)).catch((problem) => {
            if (problem.status !== 404) throw problem;
          });
      } catch (problem) {
        return showProblem(row, problem);
      }
      if (changed) await loadList(list);
      else row.remove();
      const rows = findAll('li', list);
      const heading = find('h2', list.parentElement);
      heading.tabIndex = -1;
      (find('button', rows[Math.min(place, rows.length - 1)] ?? list) ?? heading).focus();
      reloadSection(list.closest('[data-feature]'));
    });
  }
  for (const link of findAll('[data-open]', row)) {
    link.addEventListener('click', async (event) => {
      event.preventDefault();
      try {
        // A link that fails would replace this page and what is typed on it.
        await get(link.href, { redirect: 'manual' });
        location.assign(link.href);
      } catch (problem) {
        showProblem(row, problem);
      }
    });
  }
}

// Forms

const inSeconds = (seconds) => new Date(Date.now() + 1000 * seconds);

function bindTimeButton(button) {
  const field = find('input[type=datetime-local]', button.form);
  const forget = () => {
    delete field.dataset.in;
    delete field.dataset.at;
  };
  button.addEventListener('click', () => {
    forget();
    field.dataset.in = button.dataset.in;
    // The field shows a local time, in whole minutes.
    const at = inSeconds(button.dataset.in);
    field.valueAsNumber = (Math.floor(at / 60_000) - at.getTimezoneOffset()) * 60_000;
  });
  field.addEventListener('input', forget);
  button.form.addEventListener('reset', forget);
}

/** The fields of a form, as the API takes them. */
function valuesOf(form) {
  const values = {};
  for (const field of form.elements) {
    if (!field.name) continue;
    if (field.type === 'checkbox') {
      values[field.name] ??= [];
      if (field.checked) values[field.name].push(field.value);
    } else if (field.type === 'number') values[field.name] = field.valueAsNumber;
    else if (field.type === 'datetime-local') {
      // Sent again, the form has the same time, so that it is the same request.
      if (field.dataset.in) field.dataset.at ??= inSeconds(field.dataset.in).toISOString();
      values[field.name] = field.dataset.at ?? new Date(field.value).toISOString();
    } else values[field.name] = field.value;
  }
  return values;
}

/** Sends a form's fields when it is submitted, once at a time. `done` gets the response's JSON. */
function bindForm(form, done) {
  let sent = null;
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (form.ariaBusy === 'true') return;
    form.ariaBusy = 'true';
    clearProblems(form);
    const result = find('[data-result]', form);
    if (result) result.hidden = true;
    try {
      const body = JSON.stringify(valuesOf(form));
      // Sent again with the same fields it is the same request, until it has succeeded.
      if (sent?.body !== body) sent = { body, key: 'once' in form.dataset ? randomKey() : undefined };
      const response = await post(form.dataset.post, body, sent.key);
      sent = null;
      const answer = await response.json().catch(() => ({}));
      form.reset();
      if (result) {
        fill(result, answer);
        result.hidden = false;
        result.scrollIntoView({ block: 'nearest' });
      }
      done?.(answer);
      reloadSection(form.closest('[data-feature]'));
    } catch (problem) {
      // What was refused is sent again with a new time.
      if (!problem.passes) for (const field of findAll('[data-at]', form)) delete field.dataset.at;
      showProblem(form, problem);
    } finally {
      form.ariaBusy = 'false';
    }
  });
}

// Uploads

/** Sends a file. `fetch` does not tell how far it has come. */
function sendFile(path, file, progress) {
  return new Promise((resolve, reject) => {
    const [request, started] = [new XMLHttpRequest(), performance.now()];
    request.open('POST', path);
    request.upload.addEventListener('progress', ({ loaded, total }) => (progress.value = total ? loaded / total : 0));
    request.addEventListener('error', () => reject(new Problem(0)));
    request.addEventListener('load', () => {
      showProcess(request.getResponseHeader('x-served-by'), performance.now() - started);
      if (request.status < 300) resolve();
      else reject(problemOf(request.status, request.responseText));
    });
    request.send(file);
  });
}

function bindUpload(form) {
  const input = find('input[type=file]', form);
  let queue = Promise.resolve();
  const upload = async (file, row) => {
    clearProblems(row);
    const progress = row.appendChild(document.createElement('progress'));
    progress.setAttribute('aria-label', `Upload of ${file.name}`);
    try {
      await attempt(() => sendFile(expand(form.dataset.upload, { name: file.name }), file, progress), false);
      row.remove();
      reloadSection(form.closest('[data-feature]'));
    } catch (problem) {
      showProblem(row, problem, () => (queue = queue.then(() => upload(file, row))));
    } finally {
      progress.remove();
    }
  };
  const take = (files) => {
    for (const file of files) {
      const row = find('.uploads', form).appendChild(document.createElement('li'));
      row.appendChild(document.createElement('span')).textContent = file.name;
      // One at a time, because each takes the whole of the connection.
      queue = queue.then(() => upload(file, row));
    }
  };
  input.addEventListener('change', () => {
    take([...input.files]);
    input.value = '';
  });
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('dragover', () => form.classList.add('over'));
  for (const end of ['dragleave', 'drop']) form.addEventListener(end, () => form.classList.remove('over'));
  form.addEventListener('drop', (event) => take([...event.dataTransfer.files]));
}

// A file that misses its place must not replace the page.
for (const type of ['dragover', 'drop']) addEventListener(type, (event) => event.preventDefault());

// Dialogs

/** Opens a dialog with a form. Fulfilled when the form has succeeded, rejected when the dialog is closed. */
function dialogFor(id, { opened, done, closed }) {
  const dialog = find(`#${id}`);
  const form = find('form', dialog);
  let open = null;
  bindForm(form, async (answer) => {
    await done?.(answer);
    dialog.returnValue = 'done';
    dialog.close('done');
  });
  find('[data-close]', dialog).addEventListener('click', () => dialog.close('cancelled'));
  return () =>
    // Requests that fail together ask once.
    (open ??= new Promise((resolve, reject) => {
      opened?.(form);
      dialog.returnValue = '';
      dialog.showModal();
      const ended = () => {
        // Escape closes any dialog. This one would take away what is typed on the page.
        if (closed && !dialog.returnValue) return dialog.showModal();
        dialog.removeEventListener('close', ended);
        open = null;
        form.reset();
        clearProblems(form);
        if (dialog.returnValue === 'done') return resolve();
        reject(new Cancelled());
        closed?.();
      };
      dialog.addEventListener('close', ended);
    }));
}

const dialogs = {
  again: dialogFor('again', {
    opened: (form) => {
      hideItems();
      form.elements.email.value = account.email;
      setTimeout(() => form.elements.password.focus());
    },
    // Another person must not find what the first one has typed.
    done: (answer) => (answer.id === account.id ? enter(answer) : location.reload()),
    closed: () => remove('/api/v1/session').catch(() => {}).then(() => location.reload()),
  }),
  confirm: dialogFor('confirm', {}),
};

// Signing in and out

const show = (state) => {
  for (const element of findAll('[data-when]')) element.hidden = element.dataset.when !== state;
  find('#waiting').hidden = state !== 'waiting';
};

function hideItems() {
  for (const [list, state] of lists) {
    state.load++;
    state.rows.clear();
    for (const row of findAll('li', list)) row.remove();
  }
}

function enter(answer) {
  account = answer;
  find('#me').textContent = find('#address').textContent = account.email;
  find('#unverified').hidden = account.verified;
  for (const element of findAll('[data-role]')) element.hidden = element.dataset.role !== account.role;
  show('in');
  if (stream) reload();
  else listen();
}

async function logOut() {
  try {
    await remove('/api/v1/session');
    location.reload();
  } catch (problem) {
    showProblem(find('header'), problem);
  }
}

// Loading again

function reload(sections = findAll('[data-feature]')) {
  if (!account) return;
  // The API would refuse a list that is hidden from this role.
  const shown = sections.filter((section) => !section.closest('[data-role][hidden]'));
  for (const section of shown) for (const list of findAll('[data-list]', section)) loadList(list);
}

function reloadSection(section) {
  if (!section) return;
  reload([section]);
  for (const delay of RELOAD_DELAYS) setTimeout(() => reload([section]), delay);
}

// Live events

/** The stream of events of the visible tab. A browser allows a site only six connections, so hidden tabs have none. */
let stream = null;
let listenAgain;
let listenPause = MIN_LISTEN_PAUSE;

function listen() {
  if (stream || !account || document.hidden) return;
  stream = new EventSource('/api/v1/events');
  let tried = false;
  // Whatever happened before the stream was open, it did not tell.
  stream.addEventListener('open', () => {
    listenPause = MIN_LISTEN_PAUSE;
    reload();
  });
  stream.addEventListener('resync', () => reload());
  stream.addEventListener('changed', ({ data }) => reload(findAll(`[data-feature="${CSS.escape(JSON.parse(data).feature)}"]`)));
  stream.addEventListener('error', () => {
    if (!tried) reload();
    tried = true;
    // The browser connects again by itself, but not after an answer that is no stream.
    if (stream?.readyState !== EventSource.CLOSED) return;
    stopListening();
    lookLater();
  });
}

function stopListening() {
  clearTimeout(listenAgain);
  stream?.close();
  stream = null;
}

function lookLater() {
  listenAgain = setTimeout(look, listenPause);
  listenPause = Math.min(2 * listenPause, MAX_LISTEN_PAUSE);
}

/** Asks whether the session holds, and whether the address has been verified in another tab. */
async function look() {
  if (document.hidden || !account) return;
  try {
    enter(await (await get('/api/v1/session')).json());
  } catch {
    lookLater();
  }
}

document.addEventListener('visibilitychange', () => (document.hidden ? stopListening() : look()));

// The start

async function start() {
  if (page.dataset.cookie === 'false') {
    show('out');
    // Only for the foot of the page.
    await get('/version').catch(() => {});
    return;
  }
  show('waiting');
  clearProblems(page);
  try {
    enter(await (await get('/api/v1/session')).json());
  } catch (problem) {
    if (problem.status === 401) {
      show('out');
      // The cookie is of no use any more.
      await remove('/api/v1/session').catch(() => {});
      return;
    }
    show('none');
    showProblem(page, problem, start);
  }
}

for (const form of findAll('main form[data-post]')) {
  bindForm(form, form.id === 'log-in' ? enter : undefined);
}
for (const form of findAll('form[data-upload]')) bindUpload(form);
for (const button of findAll('button[data-in]')) bindTimeButton(button);
find('#log-out').addEventListener('click', logOut);
start();
