// The page: photos in, brackets, merges and their progress, the viewer's controls, files out. No library, no build step.

import { Viewer } from './viewer.js';

const $ = (id) => document.getElementById(id);
const UPLOADS_AT_ONCE = 3;
const STAGES = { read: 'reading', calibrate: 'measuring the camera', align: 'aligning', merge: 'merging', estimate: 'estimating', noise: 'reducing noise', render: 'rendering', write: 'finishing' };

const state = {
  status: null,
  brackets: [],        // { photos: [...], out: Set, ev: Map, reference, why }
  leftovers: [],       // { photo, reason }
  jobs: [],
  mine: new Set(),     // jobs that this page began: opened when they are done
  open: null,          // job that is looked at
  picture: null,
};
// Brackets are the same in every tab; what is looked at is a tab's own.
const store = (key) => key === 'brackets' ? localStorage : sessionStorage;
const kept = {
  get: (key) => { try { return JSON.parse(store(key).getItem(key)); } catch { return null; } },
  set: (key, value) => { try { store(key).setItem(key, JSON.stringify(value)); } catch { /* private mode */ } },
};

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'class') node.className = value;
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

const say = (text) => { $('says').textContent = text; };
function problem(text) {
  if ([...$('problems').children].some((line) => line.textContent === text)) return;
  $('problems').hidden = false;
  $('problems').append(el('li', {}, text));
}
function clearProblems() { $('problems').replaceChildren(); $('problems').hidden = true; }

async function ask(path, options = {}) {
  let answer;
  try { answer = await fetch(path, options); } catch { throw new Error('gmodiff serve does not answer: is it still running in its terminal?'); }
  const found = answer.headers.get('content-type')?.includes('json') ? await answer.json() : null;
  if (!answer.ok) throw new Error(found?.error ?? `the server answered ${answer.status}`);
  return found;
}
const post = (path, body) => ask(path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });

// ---- photos in ------------------------------------------------------------------------------------------------------------

async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const found = [];
  const walk = async (entry) => {
    if (entry.isFile) found.push(await new Promise((done, fail) => entry.file(done, fail)));
    else {
      const reader = entry.createReader();
      for (;;) {  // a folder is told in parts
        const part = await new Promise((done, fail) => reader.readEntries(done, fail));
        if (!part.length) break;
        for (const inner of part) await walk(inner);
      }
    }
  };
  for (const entry of entries) await walk(entry);
  return found;
}

// What cards and programs put beside photos.
const BESIDE = /(\.(xmp|thm|json|txt|db|ini|lrv|mp4|mov|xml|pp3|dop|html?|csv|log|md)$)|^Thumbs\.db$/i;

async function take(files) {
  clearProblems();
  const wanted = files.filter((f) => !f.name.startsWith('.') && !BESIDE.test(f.name)), passed = files.length - wanted.length;
  if (!wanted.length) { say(files.length ? 'There were no photos in it.' : 'There were no files in it.'); return; }
  const added = [];
  let next = 0, done = 0;
  const one = async () => {
    while (next < wanted.length) {
      const n = next++, file = wanted[n];
      try { added[n] = await ask(`api/photos?name=${encodeURIComponent(file.name)}`, { method: 'POST', body: file }); } catch (error) { problem(error.message); }
      say(`Reading photos: ${++done} of ${wanted.length}`);
    }
  };
  await Promise.all(Array.from({ length: UPLOADS_AT_ONCE }, one));
  const photos = added.filter(Boolean);
  if (!photos.length) { say(''); return; }
  const fresh = photos.map((p) => p.id), before = state.leftovers;
  await arrange(fresh, fresh.length >= 2 && fresh.length <= 16 ? fresh : null, passed);
  // Photos that were left over may belong to what is new and was left over too; to nothing that is a bracket already.
  if (before.length && state.leftovers.length) await arrange([...before, ...state.leftovers].map((l) => l.photo.id), null, passed);
  else { state.leftovers = [...before, ...state.leftovers]; drawBrackets(); }
}

// Photos that say neither when they were taken nor how long they were exposed, and look alike in size: nothing says that they do not belong together.
const silent = (photos) => photos.every((p) => !p.taken && !p.exposure_time_s && p.width === photos[0].width && p.height === photos[0].height);

// together: photos that belong in one bracket if their metadata does not say otherwise.
async function arrange(ids, together = null, passed = 0) {
  try {
    const found = await post('api/groups', { photos: ids });
    state.leftovers = found.leftovers;
    for (const group of found.groups) add(group);
    if (!found.groups.length && together) {
      const bracket = silent(found.leftovers.map((l) => l.photo)) ? await post('api/brackets', { photos: together }) : null;
      if (bracket) bracket.why = 'dropped together';
      if (bracket) state.leftovers = state.leftovers.filter((l) => !together.includes(l.photo.id));
      if (bracket) add(bracket);
    }
    const count = state.brackets.length;
    say(`${count} bracket${count === 1 ? '' : 's'}${state.leftovers.length ? `, ${state.leftovers.length} photo${state.leftovers.length === 1 ? '' : 's'} left over` : ''}${passed ? `; ${passed} other file${passed === 1 ? '' : 's'} passed over` : ''}.`);
  } catch (error) { problem(error.message); say(''); }
  drawBrackets();
}

function add(group) {
  state.brackets.unshift({ photos: group.photos, why: group.why, out: new Set(), ev: new Map(), reference: '', likely: group.reference });
}

function remember() {
  kept.set('brackets', state.brackets.map((b) => ({ ids: b.photos.map((p) => p.id), why: b.why, out: [...b.out], ev: [...b.ev], reference: b.reference })));
}

let restored = 0;

async function restore() {
  const mine = ++restored, brackets = [];  // of two at once the later one counts
  const here = await ask('api/photos'), ids = new Set(here.map((p) => p.id));
  const before = kept.get('brackets');
  for (const old of Array.isArray(before) ? before : []) {
    const photos = Array.isArray(old?.ids) ? old.ids.filter((id) => ids.has(id)) : [];
    if (photos.length < 2) continue;
    const bracket = await post('api/brackets', { photos }).catch(() => null);  // one of them was removed just now
    if (!bracket) continue;
    brackets.push({ photos: bracket.photos, why: old.why, out: new Set(old.out), ev: new Map(old.ev), reference: old.reference, likely: bracket.reference });
    photos.forEach((id) => ids.delete(id));
  }
  if (mine !== restored) return;
  state.brackets = brackets;
  state.leftovers = [];
  if (ids.size) await arrange([...ids]); else drawBrackets();
}

// Another tab changed the brackets: this one follows, unless somebody is at work in it.
window.addEventListener('storage', (event) => {
  if (event.key !== 'brackets' || document.hasFocus()) return;
  restore().catch((error) => problem(error.message));
});

// ---- brackets -------------------------------------------------------------------------------------------------------------

const settingsOf = (photo) => {
  const t = photo.exposure_time_s;
  return [t ? (t < 0.4 ? `1/${Math.round(1 / t)} s` : `${+t.toPrecision(3)} s`) : null, photo.f_number ? `f/${+photo.f_number.toPrecision(2)}` : null, photo.iso ? `ISO ${photo.iso}` : null].filter(Boolean).join(', ');
};

function drawBrackets() {
  remember();
  $('brackets').replaceChildren(...state.brackets.map(drawBracket));
  const left = $('leftovers');
  left.hidden = !state.leftovers.length;
  if (left.hidden) return;
  const chosen = new Set();
  const together = el('button', { type: 'button', disabled: true, onclick: async () => {
    try {
      const bracket = await post('api/brackets', { photos: [...chosen] });
      state.leftovers = state.leftovers.filter((l) => !chosen.has(l.photo.id));
      add(bracket);
    } catch (error) { problem(error.message); }
    drawBrackets();
  } }, 'Make a bracket of the chosen');
  left.replaceChildren(el('section', { class: 'bracket', 'aria-label': 'Left over' },
    el('h2', {}, 'Left over'),
    el('ul', { class: 'thumbs' }, ...state.leftovers.map(({ photo, reason }) => el('li', {},
      el('img', { src: `api/photos/${photo.id}/thumbnail`, alt: photo.name, loading: 'lazy' }),
      el('label', {}, el('input', { type: 'checkbox', onchange: (event) => {
        if (event.target.checked) chosen.add(photo.id); else chosen.delete(photo.id);
        together.disabled = chosen.size < 2;
      } }), ` ${photo.name}`),
      el('span', { class: 'quiet' }, reason)))),
    el('p', { class: 'buttons' }, together, el('button', { type: 'button', onclick: async () => {
      await Promise.allSettled(state.leftovers.map((l) => ask(`api/photos/${l.photo.id}`, { method: 'DELETE' })));
      state.leftovers = [];
      drawBrackets();
    } }, 'Remove them'))));
}

function drawBracket(bracket, index) {
  const used = bracket.photos.filter((p) => !bracket.out.has(p.id));
  const group = `reference-${index}`;
  const names = `${bracket.photos[0].name} and ${bracket.photos.length - 1} more`;
  const evOf = (photo) => bracket.ev.has(photo.id) ? bracket.ev.get(photo.id) : photo.ev;
  const thumb = (photo) => el('li', { 'data-photo': photo.id, class: [bracket.out.has(photo.id) ? 'out' : '', (bracket.reference || bracket.likely) === photo.id ? 'chosen' : ''].join(' ') },
    el('img', { src: `api/photos/${photo.id}/thumbnail`, alt: '', loading: 'lazy' }),
    el('div', { class: 'name', title: photo.name }, photo.name),
    el('div', { class: 'quiet' }, settingsOf(photo) || 'no exposure in it'),
    // What the photo says counts, unless somebody changes it; a field that was emptied is neither.
    el('label', {}, 'EV ', el('input', { type: 'number', step: 'any', min: -40, max: 40, value: evOf(photo) ?? '', placeholder: '?', 'aria-label': `Exposure of ${photo.name} in stops, brighter is higher`, onchange: (event) => {
      const value = event.target.value.trim(), number = Number(value), unreadable = event.target.validity.badInput;
      event.target.setCustomValidity('');
      if (unreadable || (value !== '' && !(Math.abs(number) <= 40))) {
        event.target.setCustomValidity('expected -40 to 40 stops');
        problem(`${photo.name}: the exposure (EV) must be a number from -40 to 40 stops.`);
        bracket.ev.set(photo.id, NaN);
      } else if (number === photo.ev || (value === '' && photo.ev === null)) bracket.ev.delete(photo.id);
      else bracket.ev.set(photo.id, value === '' ? null : number);
      remember();
    } })),
    el('label', {}, el('input', { type: 'checkbox', checked: !bracket.out.has(photo.id), 'aria-label': `Use ${photo.name}`, onchange: (event) => {
      if (event.target.checked) bracket.out.delete(photo.id); else { bracket.out.add(photo.id); if (bracket.reference === photo.id) bracket.reference = ''; }
      redraw(event.target);
    } }), ' use'),
    el('label', {}, el('input', { type: 'radio', name: group, checked: bracket.reference === photo.id, disabled: bracket.out.has(photo.id), 'aria-label': `${photo.name} is the reference`, onchange: (event) => { bracket.reference = photo.id; redraw(event.target); } }),
      el('span', { class: 'likely' }, bracket.likely === photo.id && !bracket.reference ? ' reference (likely)' : ' reference')));
  const place = `bracket-${index}`;
  const redraw = (focused) => {
    const label = focused.getAttribute('aria-label');
    drawBrackets();
    [...$('brackets').querySelectorAll(`#${place} input`)].find((i) => i.getAttribute('aria-label') === label)?.focus();
  };
  return el('section', { class: 'bracket', id: place, 'aria-label': `Bracket ${names}` },
    el('h2', {}, names),
    el('p', { class: 'quiet' }, `${bracket.photos[0].width}×${bracket.photos[0].height}${bracket.photos[0].camera ? `, ${bracket.photos[0].camera}` : ''}; ${bracket.why}`),
    el('ul', { class: 'thumbs' }, ...bracket.photos.map(thumb)),
    ...bracket.photos.flatMap((p) => p.notes.map((note) => el('p', { class: 'quiet' }, `${p.name}: ${note}`))),
    el('p', { class: 'buttons' },
      el('button', { type: 'button', class: 'main', disabled: used.length < 2, onclick: () => merge(bracket) }, used.length < 2 ? 'A bracket has two photos or more' : `Merge ${used.length} photos`),
      bracket.reference ? el('button', { type: 'button', onclick: () => { bracket.reference = ''; drawBrackets(); } }, 'Let it choose the reference') : null,
      el('button', { type: 'button', onclick: async () => {
        state.brackets = state.brackets.filter((b) => b !== bracket);
        clearProblems();
        say(`Removed: ${names}.`);
        drawBrackets();
        await Promise.allSettled(bracket.photos.map((p) => ask(`api/photos/${p.id}`, { method: 'DELETE' })));
      } }, 'Remove')));
}

async function merge(bracket) {
  clearProblems();
  const photos = bracket.photos.filter((p) => !bracket.out.has(p.id));
  const touched = photos.some((p) => bracket.ev.has(p.id));
  const ev = photos.map((p) => bracket.ev.has(p.id) ? bracket.ev.get(p.id) : p.ev);
  if (ev.some(Number.isNaN)) { problem('An exposure (EV) is not a number from -40 to 40 stops: correct it first.'); return; }
  if (touched && ev.some((v) => v === null)) { problem('Fill in the exposure (EV) of every photo that is used with a number of stops, or of none.'); return; }
  try {
    const job = await post('api/jobs', { photos: photos.map((p) => p.id), ev: touched ? ev : null, reference: bracket.reference || null });
    state.mine.add(job.id);
    rememberMine();
    say(`In the queue: ${job.title}.`);
  } catch (error) { problem(error.message); }
}

// ---- merges ---------------------------------------------------------------------------------------------------------------

const rememberMine = () => kept.set('mine', [...state.mine]);
const minutes = (s) => s >= 90 ? `${Math.round(s / 60)} min` : `${Math.max(1, Math.round(s))} s`;

function toldJobs(jobs) {
  for (const old of state.jobs) if (old.kind === 'merge' && !jobs.some((j) => j.id === old.id)) say(`Removed: ${old.title}.`);
  for (const job of jobs) {
    const before = state.jobs.find((j) => j.id === job.id);
    const target = job.kind === 'render' ? job.about.of : job.id;
    if (before?.state !== job.state && job.state === 'done' && (state.mine.has(job.id) || (job.kind === 'render' && state.open === target))) {
      if (job.kind === 'merge') { say(`Done: ${job.title}.`); state.mine.delete(job.id); rememberMine(); markReference(job); }
      open(target, job.picture);
    }
    if (before && before.state !== job.state && job.kind === 'merge' && (job.state === 'cancelled' || job.state === 'failed')) say(`${job.state === 'failed' ? 'Failed' : 'Cancelled'}: ${job.title}.`);
    if (before?.state !== job.state && job.state === 'failed' && job.kind === 'render') problem(job.error);
  }
  state.jobs = jobs;
  if (state.open && !state.open.startsWith('check-') && !jobs.some((j) => j.id === state.open)) { close(); say('That merge was removed.'); }
  drawJobs();
}

// Which photo the merge chose is known now; nothing that somebody is editing is touched.
function markReference(job) {
  const id = job.about.photos[job.about.names.indexOf(job.reference)];
  for (const bracket of state.brackets) if (bracket.photos.some((p) => p.id === id)) { bracket.likely = id; markLikely(bracket); }
}

function markLikely(bracket) {
  for (const thumb of document.querySelectorAll('#brackets [data-photo]')) {
    const photo = thumb.dataset.photo;
    if (!bracket.photos.some((p) => p.id === photo)) continue;
    thumb.classList.toggle('chosen', (bracket.reference || bracket.likely) === photo);
    thumb.querySelector('.likely').textContent = !bracket.reference && bracket.likely === photo ? ' reference (likely)' : ' reference';
  }
}

function drawJobs() {
  const jobs = state.jobs.filter((j) => j.kind === 'merge').reverse();
  $('jobs-part').hidden = !jobs.length;
  // A card is made anew only when its state changes: what is being pressed stays where it is.
  const here = new Map([...$('jobs').children].map((card) => [card.dataset.job, card]));
  for (const [id, card] of here) if (!jobs.some((j) => j.id === id)) card.remove();
  jobs.forEach((job, n) => {
    let card = here.get(job.id);
    if (!card || card.dataset.state !== job.state) {
      const fresh = drawJob(job), focused = card?.contains(document.activeElement);
      if (card) card.replaceWith(fresh);
      card = fresh;
      if (focused) card.querySelector('button')?.focus();
    }
    if (job.id === state.open) card.setAttribute('aria-current', 'true'); else card.removeAttribute('aria-current');
    if ($('jobs').children[n] !== card) $('jobs').insertBefore(card, $('jobs').children[n] ?? null);
    card.querySelector('.words').textContent = jobWords(job);
    const bar = card.querySelector('progress');
    if (bar) bar.value = job.percent;
  });
  const rendering = state.jobs.find((j) => j.kind === 'render' && j.about.of === state.open && (j.state === 'running' || j.state === 'waiting'));
  if (state.picture && state.open) headline(rendering ? `${STAGES[rendering.stage] ?? 'waiting to render'} …` : null);
}

const jobWords = (job) => ({ waiting: `waiting, ${job.place === 1 ? 'next' : `number ${job.place}`} in the queue`, running: `${job.percent} %, ${STAGES[job.stage] ?? 'starting'}${job.seconds_left !== null ? `, about ${minutes(job.seconds_left)} left` : ''}`,
  done: `done in ${job.seconds} s`, failed: job.error, cancelled: 'cancelled' })[job.state];

function drawJob(job) {
  const busy = job.state === 'running' || job.state === 'waiting';
  const button = (text, act) => el('button', { type: 'button', 'aria-label': `${text}: ${job.title}`, onclick: act }, text);
  const send = (path, method) => ask(path, { method }).catch((error) => problem(error.message));
  return el('li', { 'data-job': job.id, 'data-state': job.state },
    el('div', {}, `${job.title}, ${new Date(1000 * job.created).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit' })}`),
    job.state === 'running' ? el('progress', { max: 100, value: job.percent, 'aria-label': `Progress of ${job.title}` }) : null,
    el('p', { class: `words ${job.state === 'failed' ? 'problems' : 'quiet'}` }),
    el('p', { class: 'buttons' },
      busy ? button('Cancel', () => send(`api/jobs/${job.id}/cancel`, 'POST')) : null,
      job.state === 'done' ? button('Look', () => open(job.id, job.picture, true)) : null,
      busy ? null : button('Remove', () => { if (state.open === job.id) close(); send(`api/jobs/${job.id}`, 'DELETE'); })));
}

function listen() {
  const events = new EventSource('api/events');
  events.onmessage = (event) => { $('lost').hidden = true; toldJobs(JSON.parse(event.data)); };
  events.onerror = () => { $('lost').hidden = false; if (events.readyState === EventSource.CLOSED) setTimeout(listen, 2000); };
}

// ---- the viewer -----------------------------------------------------------------------------------------------------------

const viewer = new Viewer($('canvas'), () => {
  $('zoom').textContent = viewer?.picture && viewer.state.mode !== 'file' ? `${Math.round(100 * viewer.view.zoom)} %` : '';
  $('split').value = 100 * (viewer?.state.split ?? 0.5);
  $('split-out').textContent = `${Math.round(100 * (viewer?.state.split ?? 0.5))} %`;
});
window.gmodiff = { viewer, state };  // for tests, and for the curious

async function open(job, key, asked = false) {
  try {
    await look(await ask(`api/pictures/${key}`), job);
    if (asked) show();
  } catch (error) { problem(error.message); }
}

function show() {
  $('viewer').scrollIntoView({ block: 'start' });
  $('viewer').focus({ preventScroll: true });
}

// A file that was checked is gone when it is no longer looked at; merges stay in the list.
function leave(next = null) {
  if (state.open?.startsWith('check-') && state.open !== next) ask(`api/pictures/${state.open}`, { method: 'DELETE' }).catch(() => {});
}

function close() {
  leave();
  state.open = state.picture = null;
  kept.set('open', null);
  viewer.show(null);
  $('viewer').hidden = true;
}

async function look(picture, job) {
  const first = state.open !== job || !state.picture;
  leave(job);
  state.open = job;
  kept.set('open', job);
  state.picture = picture;
  $('viewer').hidden = false;
  $('picture-title').textContent = picture.name;
  const checked = picture.facts.check;
  if (first) {
    $('beside').replaceChildren(el('option', { value: '' }, 'nothing'), ...picture.frames.map((name, n) => el('option', { value: n }, name === picture.facts.reference ? `${name} (reference)` : name)));
    Object.assign(viewer.state, { beside: '', overlay: '', exposure: 0, split: 0.5 });
    $('beside').value = $('overlay').value = '';
    $('exposure').value = 0;
    if (checked) mode(picture.gain ? 'screen' : 'light'); else if (viewer.state.mode === 'file') mode('light');
  }
  const most = picture.gain ? Math.max(picture.gain.alternate_headroom, picture.gain.base_headroom, 0.5) : 4;
  $('headroom').max = Math.ceil(4 * Math.max(most, 3)) / 4;
  if (first) { $('headroom').value = Math.min(most, 3); viewer.state.headroom = Number($('headroom').value); }
  document.querySelector('[name=mode][value=screen]').disabled = !picture.gain;
  $('overlay').disabled = !picture.layers.labels;
  $('overlay').options[2].disabled = !picture.has_degradation;
  $('settings').hidden = Boolean(checked);
  $('take').hidden = Boolean(checked && !picture.layers.base);
  if (!checked) showSettings(picture.facts.rendering);
  headline();
  warnings(checked ? checked.warnings : picture.facts.notes);
  facts(checked ? checkedFacts(checked) : mergedFacts(picture.facts));
  files();
  controls();
  if (!viewer.gl) problem('This browser has no WebGL 2: the sliders cannot work; the file itself is shown.');
  if (!viewer.gl) mode('file');
  viewer.show(picture);
  histogram(picture);
  if (first) $('viewer').scrollIntoView({ block: 'start' });
  drawJobs();
}

function headline(busy = null) {
  const f = state.picture.facts, w = f.provenance;
  $('headline').textContent = busy ?? (f.check ? `${f.check.format}, ${f.check.width}×${f.check.height}`
    : `${w.measured_percent.toFixed(1)} % measured in ${f.reference}, ${w.aligned_percent.toFixed(1)} % in the other photos, ${w.inferred_percent.toFixed(2)} % inferred; ${w.highlight_stops.toFixed(1)} stops of highlights recovered`);
}

function warnings(list) {
  $('warnings').hidden = !list.length;
  $('warnings').replaceChildren(...list.map((text) => el('li', {}, text)));
}

const values = (list) => list === null || list === undefined ? '–' : new Set(list).size === 1 ? String(+list[0].toFixed(4)) : list.map((v) => +v.toFixed(4)).join(' / ');

function mergedFacts(f) {
  return [['size', `${f.width}×${f.height}`], ['exposures', `${f.frames.map((x) => `${x.name} ${x.stops >= 0 ? '+' : ''}${x.stops}`).join(', ')} (${f.exposure_source})`],
    ['camera response', f.response], ['photos disagree by', f.disagreement_stops.map((v) => v === null ? '?' : `${v.toFixed(2)}`).join(', ') + ' stops'],
    ['brightest light', `${f.brightest_stops.toFixed(1)} stops above the reference's white, measured or inferred`], ['the HDR picture shows up to', `${f.headroom_stops.toFixed(2)} stops above SDR white`],
    ['network', f.model ? f.model.name + (f.model.noise_reduced ? ', noise reduced' : '') : 'none: measured samples only'], ['alignment', f.alignment.map((a) => `${a.name}: ${a.motion}`).join('; ')]];
}

function checkedFacts(c) {
  const g = c.gain_map, l = c.light, rows = [['file', `${c.file}, ${(c.bytes / 1e6).toFixed(2)} MB`], ['content', c.content + (c.look ? `, look ${c.look}` : '')], ['colour', c.colour],
    ['peak', l.peak_nits > 0 ? `${l.peak_stops >= 0 ? '+' : ''}${l.peak_stops} stops (${Math.round(l.peak_nits)} cd/m²)` : 'no light at all'], ['above white', `${l.above_white_percent} % of the pixels`]];
  if (g) rows.push(['headroom', `${c.base_headroom_stops} to ${c.headroom_stops} stops above SDR white`], ['gain map', `${g.width}×${g.height}, ${g.channels} channel${g.channels > 1 ? 's' : ''}`],
    ['range', `${values(g.minimum_stops)} to ${values(g.maximum_stops)} stops`], ['gamma', values(g.gamma)], ['offsets', `base ${values(g.base_offset)}, alternate ${values(g.alternate_offset)}`],
    ['described by', g.forms.join(', ') || '–'], ['XMP and ISO agree', g.agree === null ? 'only one of them is there' : g.agree ? 'yes' : `no, by up to ${g.largest_difference}`]);
  else rows.push(['gain map', 'none: this file holds one picture only']);
  if (c.provenance) rows.push(['provenance', `${c.provenance.measured_percent} % measured, ${c.provenance.aligned_percent} % aligned, ${c.provenance.inferred_percent} % inferred`]);
  if (c.exif) rows.push(['photo', [c.exif.camera, c.exif.lens, c.exif.taken].filter(Boolean).join(', ') || '–']);
  return [...rows, ...c.notes.map((n) => ['note', n])];
}

function facts(rows) {
  $('facts').tBodies[0].replaceChildren(...rows.map(([name, value]) => el('tr', {}, el('th', { scope: 'row' }, name), el('td', {}, value))));
}

async function histogram(picture) {
  const found = await ask(`api/pictures/${picture.id}/histogram`).catch(() => null);
  if (!found || state.picture !== picture) return;
  const sums = found.percent['0'].map((_, i) => ['0', '1', '2'].reduce((s, l) => s + found.percent[l][i], 0));
  const first = Math.max(0, sums.findIndex((s) => s > 0) - 1), last = sums.length - [...sums].reverse().findIndex((s) => s > 0);
  const top = Math.sqrt(Math.max(...sums)), wide = 240 / (last - first), svg = [];
  const shape = (tag, props) => { const n = document.createElementNS('http://www.w3.org/2000/svg', tag); for (const [k, v] of Object.entries(props)) n.setAttribute(k, v); return n; };
  for (let i = first; i < last; i++) {
    let below = 0;
    for (const label of ['0', '1', '2']) {
      const share = found.percent[label][i];
      if (!share) continue;
      const height = (s) => 80 * Math.sqrt(s) / top;  // square root: a few bright pixels are seen too
      svg.push(shape('rect', { class: `bar-${label}`, x: (i - first) * wide, width: wide * 0.92, y: 80 - height(below + share), height: height(below + share) - height(below) }));
      below += share;
    }
  }
  const white = (0 - found.from) * found.per_stop - first;
  svg.push(shape('line', { class: 'white', x1: white * wide, x2: white * wide, y1: 0, y2: 80 }));
  $('histogram').replaceChildren(...svg);
  const stops = (i) => `${(found.from + i / found.per_stop).toFixed(1)}`;
  $('histogram-ends').replaceChildren(el('span', {}, stops(first)), el('span', {}, 'dashed: white'), el('span', {}, `+${stops(last)}`.replace('+-', '-')));
}

let pointing = 0, asked = null;
viewer.pointed = (at) => {
  if (!at || !state.picture) { $('readout').textContent = ''; return; }
  asked = { x: Math.floor(at.x), y: Math.floor(at.y), picture: state.picture };
  if (!pointing) readNext();
};
async function readNext() {
  pointing = 1;
  while (asked) {
    const { x, y, picture } = asked;
    asked = null;
    if (x < 0 || y < 0 || x >= picture.width || y >= picture.height) { $('readout').textContent = ''; continue; }
    const p = await ask(`api/pictures/${picture.id}/pixel?x=${x}&y=${y}`).catch(() => null);
    if (p && picture === state.picture) {
      const words = p.source ? `${p.label}, most weight: ${p.source}` : p.label;
      $('readout').textContent = [`${p.x}, ${p.y}`, `light ${p.radiance.map((v) => +v.toPrecision(3)).join(' ')}`, p.stops === null ? 'black' : `${p.stops >= 0 ? '+' : ''}${p.stops.toFixed(2)} stops`,
        words, p.degradation !== null ? `doubt ${p.degradation} %` : null].filter(Boolean).join('  |  ');
    }
    await new Promise((done) => setTimeout(done, 40));
  }
  pointing = 0;
}

// ---- controls -------------------------------------------------------------------------------------------------------------

function mode(name) {
  document.querySelector(`[name=mode][value=${name}]`).checked = true;
  viewer.set({ mode: name });
  controls();
}

function controls() {
  const { mode: now, beside } = viewer.state, isFile = now === 'file';
  $('exposure-row').hidden = now !== 'light';
  $('headroom-row').hidden = $('dim-row').hidden = now !== 'screen';
  $('split-row').hidden = beside === '';
  $('key').hidden = viewer.state.overlay !== 'provenance';
  $('canvas').hidden = isFile;
  $('photo').hidden = !isFile;
  for (const id of ['fit', 'one', 'closer', 'farther', 'beside']) $(id).disabled = isFile;
  $('overlay').disabled = isFile || !state.picture?.layers.labels;
  $('exposure-out').textContent = `${viewer.state.exposure >= 0 ? '+' : ''}${viewer.state.exposure.toFixed(2)} stops`;
  $('headroom-out').textContent = `${viewer.state.headroom.toFixed(2)} stops`;
  if (isFile && state.picture) {
    const wanted = `api/pictures/${state.picture.id}/file.jpg`;
    if ($('photo').getAttribute('src') !== wanted) $('photo').setAttribute('src', wanted);
  }
}

for (const radio of document.querySelectorAll('[name=mode]')) radio.addEventListener('change', () => mode(radio.value));
$('exposure').addEventListener('input', (event) => { viewer.set({ exposure: Number(event.target.value) }); controls(); });
$('headroom').addEventListener('input', (event) => { viewer.set({ headroom: Number(event.target.value) }); controls(); });
$('dim').addEventListener('change', (event) => viewer.set({ dim: event.target.checked }));
$('beside').addEventListener('change', (event) => { viewer.set({ beside: event.target.value }); controls(); });
$('split').addEventListener('input', (event) => viewer.set({ split: Number(event.target.value) / 100 }));
$('overlay').addEventListener('change', (event) => { viewer.set({ overlay: event.target.value }); controls(); });
$('fit').addEventListener('click', () => viewer.fit());
$('one').addEventListener('click', () => viewer.zoomTo(1));
$('closer').addEventListener('click', () => viewer.zoomTo(viewer.view.zoom * 1.5));
$('farther').addEventListener('click', () => viewer.zoomTo(viewer.view.zoom / 1.5));

const settings = () => ({ base: $('base').value, look: $('look').value, headroom: Number($('most').value), network: Number($('network').value) / 100, refine: Number($('refine').value) / 100 });
function showSettings(s) {
  if (state.jobs.some((j) => j.kind === 'render' && j.about.of === state.open && (j.state === 'waiting' || j.state === 'running'))) return;
  $('base').value = s.base; $('look').value = s.look; $('most').value = s.headroom; $('network').value = 100 * s.network; $('refine').value = 100 * s.refine;
  told();
}
function told() {
  $('most-out').textContent = `${+$('most').value} stops`;
  for (const id of ['network', 'refine']) $(`${id}-out`).textContent = `${$(id).value} %`;
  $('quality-out').textContent = $('quality').value;
}
for (const id of ['base', 'look', 'most', 'network', 'refine']) {
  $(id).addEventListener('input', told);
  $(id).addEventListener('change', async () => {
    if (!state.open) return;
    try {
      const before = state.jobs.filter((j) => j.kind === 'render' && j.about.of === state.open && (j.state === 'waiting' || j.state === 'running'));
      await Promise.allSettled(before.map((j) => ask(`api/jobs/${j.id}/cancel`, { method: 'POST' })));
      await post(`api/jobs/${state.open}/render`, settings());
    } catch (error) { problem(error.message); }
  });
}

const NAMES = { '.jpg': 'Ultra HDR (.jpg)', '.exr': 'EXR, the light', '.avif': 'AVIF', '.png': 'PNG, 16-bit PQ', '.tif': 'TIFF, the light', '.hdr': 'Radiance .hdr', '.jxl': 'JPEG XL' };
function files() {
  told();
  if (!state.picture || !state.status) return;
  const more = `download=1&quality=${$('quality').value}${$('strip').checked ? '&strip=1' : ''}`;
  const link = (suffix) => el('a', { class: 'take', href: `api/pictures/${state.picture.id}/file${suffix}?${more}${suffix === '.jpg' && $('compact').checked ? '&compact=1' : ''}`, onclick: fetchFile }, NAMES[suffix]);
  const possible = state.status.writes.filter((suffix) => suffix !== '.jpg' || state.picture.gain);  // Ultra HDR is a base and a gain map
  $('files-out').replaceChildren(...possible.map(link), el('a', { class: 'take', href: `api/pictures/${state.picture.id}/summary.json`, download: `${state.picture.name}.json` }, 'Summary (.json)'));
}
// Fetched first, so that a refusal is a line here and not a page of its own.
async function fetchFile(event) {
  event.preventDefault();
  const link = event.currentTarget, name = `${state.picture.name}${new URL(link.href).pathname.match(/\.[a-z]+$/)[0]}`;
  link.setAttribute('aria-busy', 'true');
  say(`Writing ${name} …`);
  try {
    const answer = await fetch(link.href);
    if (!answer.ok) throw new Error((await answer.json()).error);
    const address = URL.createObjectURL(await answer.blob());
    el('a', { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    say(`${name} is in your downloads.`);
  } catch (error) { problem(error.message); say(''); }
  link.removeAttribute('aria-busy');
}
for (const id of ['strip', 'compact', 'quality']) $(id).addEventListener('input', files);

function input(id, act) { $(id).addEventListener('change', async (event) => { const files = [...event.target.files]; event.target.value = ''; await act(files); }); }
input('files', take);
input('folder', take);
input('check', (chosen) => check(chosen[0]));

async function check(file) {
  clearProblems();
  if (!file) return;
  say(`Looking at ${file.name} …`);
  if (state.open?.startsWith('check-')) close();
  try {
    const picture = await ask(`api/checks?name=${encodeURIComponent(file.name)}`, { method: 'POST', body: file });
    say('');
    await look(picture, picture.id);
  } catch (error) { problem(error.message); say(''); }
}

// An HDR picture that is dropped alone is looked at; everything else is photos of brackets.
const HDR = /\.(exr|hdr|jxl)$/i;
async function isHdr(file) {
  if (HDR.test(file.name)) return true;
  if (!/\.(jpe?g|heic|heif|avif|png)$/i.test(file.name)) return false;
  const head = new TextDecoder('latin1').decode(await file.slice(0, 262144).arrayBuffer());
  return /hdrgm:Version|urn:iso:std:iso:ts:21496|HDRGainMap|cICP/.test(head);
}
for (const name of ['dragenter', 'dragover']) document.addEventListener(name, (event) => { event.preventDefault(); $('drop').classList.add('over'); });
for (const name of ['dragleave', 'drop']) document.addEventListener(name, (event) => { if (name === 'drop' || !event.relatedTarget) $('drop').classList.remove('over'); });
document.addEventListener('drop', async (event) => {
  event.preventDefault();
  const dropped = await filesOf(event.dataTransfer);
  if (dropped.length === 1 && await isHdr(dropped[0])) await check(dropped[0]); else await take(dropped);
});

function screenWords() {
  const hdr = matchMedia('(dynamic-range: high)'), stops = window.screen?.highDynamicRangeHeadroom;
  $('screen').textContent = hdr.matches ? `This screen shows HDR${stops ? `, ${Number(stops).toFixed(1)} stops above white` : ' (how much, the browser does not say)'}.`
    : 'This screen, or this browser, shows no HDR: use the sliders to see what the picture holds.';
  hdr.onchange = screenWords;
}

screenWords();
try {
  state.status = await ask('api/status');
  $('refine-row').hidden = !state.status.refines;
  $('network-row').hidden = state.status.model === 'none';
  const mine = kept.get('mine'), seen = kept.get('open');
  state.mine = new Set(Array.isArray(mine) ? mine : []);
  await restore().catch((error) => problem(error.message));
  const jobs = await ask('api/jobs');
  // What was over already is no news, but for the last merge that ended while the page was away.
  const ended = jobs.filter((j) => state.mine.has(j.id) && j.state === 'done'), news = ended.pop();
  ended.forEach((j) => state.mine.delete(j.id));
  state.jobs = jobs.filter((j) => j !== news);
  const before = news ? null : jobs.find((j) => j.id === seen && j.picture);
  if (before) await open(before.id, before.picture);
  else if (seen?.startsWith?.('check-')) await ask(`api/pictures/${seen}`).then((picture) => look(picture, seen)).catch(() => {});
} catch (error) { problem(error.message); }
listen();
document.documentElement.dataset.ready = 'yes';
