// Buttons, fields, keys and links. The server's status decides what they show; a field that is being edited is left alone.
const set = (id, property, value) => { if (document.activeElement !== at(id)) at(id)[property] = value; };
const SPEEDS = {0: 'fastest', 0.25: '¼', 0.5: '½', 1: '1', 2: '2'};

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

drawers.about = about => {
  document.title = `${about.run}: lightwam play`;
  at('run').textContent = about.run;
  at('about').textContent = `${about.recipe}, training step ${about.step.toLocaleString('en')}, ${about.computes}`;
  document.body.dataset.mode = about.mode;
  fill(at('task'), (about.tasks ?? []).map(task => [task, task]));
  fill(at('episode'), (about.episodes ?? []).map(({number, sentence}, place) => [place, `${number}: ${sentence}`]));
  fill(at('speed'), about.speeds.map(speed => [speed, SPEEDS[speed]]));
  fill(at('layer'), about.taps.map((block, place) => [place, block]));
  fill(at('query'), [['', 'mean of all'], ...Array.from({length: about.num_queries}, (_, query) => [query, query])]);
  at('sentences').replaceChildren(...about.sentences.map(sentence => new Option(sentence)));
  at('replan').max = about.most_replan;
  at('surprise').disabled = !parts.surprise && Boolean(about.no_watch);
};

function showShared(status) {
  at('play').textContent = status.playing ? 'Pause' : status.over ? 'Play again' : 'Play';
  set('speed', 'value', String(status.speed));
  set('sentence', 'value', status.sentence);
  set('replan', 'value', status.replan);
  set('layer', 'value', status.layer);
  set('query', 'value', status.query ?? '');
  for (const name of ['engine', 'imagine', 'attention']) at(name).checked = status[name];
  at('surprise').checked = status.surprise && !at('surprise').disabled;
  at('rate').textContent = status.rate && status.playing ? `${status.rate.toFixed(1)} steps a second` : '';
}

drawers.status = status => {
  showShared(status);
  if (parts.about.mode === 'recorded') {
    set('episode', 'value', status.place);
    at('scrub').max = status.steps - 1;
    if (sought !== null) sought = Math.min(sought, status.steps - 1);  // another episode may be shorter
    if (sought === null) at('scrub').value = status.step;
    else if (sought !== status.step) send({kind: 'seek', step: sought});
    if (sought === status.step) sought = null;
    return showRecording(status);
  }
  const ready = status.phase === 'ready';
  at('step').disabled = !ready || status.over;
  for (const id of ['play', 'reset', 'next', 'save', 'repeat']) at(id).disabled = !ready;
  at('restart').hidden = ready || status.phase === 'loading';
  for (const button of document.querySelectorAll('[data-disturb]')) {
    const kind = button.dataset.disturb;
    button.disabled = !ready || status.over || !(parts.world?.disturbances ?? []).includes(kind);
    if (kind === 'frozen') button.setAttribute('aria-pressed', isFrozen());
  }
  set('task', 'value', status.task);
  set('seed', 'value', status.seed);
  at('next_seed').checked = status.next_seed;
  if (!ready && status.phase !== 'loading') notify(status.message || 'The simulator is not running.', 'simulator');
  else if (at('notice').dataset.about === 'simulator') notify('');
  showOutcome(status);
};

drawers.saved = saved => {
  const link = element('a', 'film');
  link.href = '#';
  link.onclick = async event => {
    event.preventDefault();
    const headers = {Authorization: `Bearer ${sessionStorage.getItem('key') ?? ''}`};
    const answer = await fetch(`film/${encodeURIComponent(saved.name)}`, {headers});
    if (!answer.ok) return showRefusal(`The film is not there: ${answer.status}.`);
    const file = element('a');
    file.href = URL.createObjectURL(await answer.blob());
    file.download = `${saved.name}.mp4`;
    file.click();
    setTimeout(() => URL.revokeObjectURL(file.href), 60000);
  };
  at('saved').hidden = false;
  at('saved').replaceChildren(`Saved in ${saved.folder}; download the `, link, '.');
};

// begin, as a link has it: the sentence only if it is not the task's own
function begin(more = {}) {
  showRefusal('');
  const {task, seed, first_sentence: sentence} = parts.status;
  send({kind: 'begin', task, seed, sentence, ...more});
}

function transport(action) {
  send({kind: 'transport', action});
}

at('play').onclick = () => parts.status.over && !parts.status.playing ? begin({playing: true})
  : transport(parts.status.playing ? 'pause' : 'play');
at('step').onclick = () => transport('step');
at('reset').onclick = () => begin();
at('next').onclick = () => begin({seed: parts.status.seed + 1});
at('repeat').onclick = () => begin({events: parts.status.events, playing: true});
at('save').onclick = () => send({kind: 'save'});
at('restart').onclick = () => send({kind: 'restart'});
at('dismiss').onclick = () => notify('');
at('help').onclick = () => at('keys').showModal();
// While the slider moves, the next step is asked for when the one before is shown.
let sought = null;
function seek(step) {
  const idle = sought === null;
  sought = Math.max(0, Math.min(parts.status.steps - 1, step));
  if (idle && sought !== parts.status.step) send({kind: 'seek', step: sought});
  else if (idle) sought = null;
}

at('scrub').oninput = () => seek(Number(at('scrub').value));
at('episode').onchange = () => send({kind: 'open', place: Number(at('episode').value)});
at('speed').onchange = () => send({kind: 'speed', times: Number(at('speed').value)});
at('replan').onchange = () => send({kind: 'replan', steps: Number(at('replan').value)});
at('layer').onchange = at('query').onchange = () => {
  const query = at('query').value;
  send({kind: 'attention', layer: Number(at('layer').value), query: query === '' ? null : Number(query)});
};
for (const name of ['engine', 'next_seed', 'imagine', 'attention', 'surprise']) {
  at(name).onchange = () => send({kind: 'switch', name, on: at(name).checked});
}
for (const button of document.querySelectorAll('[data-disturb]')) {
  button.onclick = () => send({kind: 'disturb', what: button.dataset.disturb});
}
at('say').onsubmit = event => {
  event.preventDefault();
  showRefusal('');
  send({kind: 'sentence', text: at('sentence').value});
  at('sentence').blur();
};
at('begin').onsubmit = event => {
  event.preventDefault();
  const task = at('task').value, sentence = task === parts.status.task ? parts.status.first_sentence : null;
  begin({task, seed: Number(at('seed').value), sentence});
};
at('key-form').onsubmit = event => {
  event.preventDefault();
  sessionStorage.setItem('key', at('key').value);
  at('key-form').hidden = true;
  notify('');
  connect();
};

document.onkeydown = event => {
  if (event.ctrlKey || event.metaKey || event.altKey || at('keys').open) return;
  if (event.target.matches('input:not([type=checkbox], [type=range]), select, textarea')) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  if (event.key === ' ' && event.target.matches('button, input, a')) return;
  const buttons = {' ': 'play', '.': 'step', r: 'reset', n: 'next', i: 'imagine', a: 'attention', '?': 'help'};
  const disturbs = {o: 'object', c: 'camera', f: 'frozen'};
  const target = event.key in buttons ? at(buttons[event.key])
    : event.key in disturbs ? document.querySelector(`[data-disturb=${disturbs[event.key]}]`) : null;
  const arrows = {ArrowLeft: -1, ArrowRight: 1};
  if (event.key in arrows && parts.about.mode === 'recorded') seek(parts.status.step + arrows[event.key]);
  else if (event.key === '/') at('sentence').select();
  else if (target?.offsetParent) target.click();
  else return;
  event.preventDefault();
};

// A link has the episode's task, seed, sentence and changes after the #, which browsers do not send.
function replayLink() {
  const {task, seed, first_sentence: sentence, events} = parts.status;
  const words = new URLSearchParams({task, seed});
  if (sentence !== null) words.set('sentence', sentence);
  if (events.length) words.set('events', JSON.stringify(events));
  return `${location.href.split('#')[0]}#${words}`;
}

at('copy').onclick = async () => {
  const link = replayLink();
  try {
    await navigator.clipboard.writeText(link);
    at('saved').replaceChildren('The link is copied.');
  } catch {  // without a secure connection or a permission
    const field = element('input');
    [field.value, field.readOnly] = [link, true];
    at('saved').replaceChildren('Copy this link: ', field);
    field.select();
  }
  at('saved').hidden = false;
};

function followLink() {
  const words = new URLSearchParams(location.hash.slice(1));
  if (words.has('key')) {
    sessionStorage.setItem('key', words.get('key'));
    words.delete('key');
    history.replaceState(null, '', words.size ? `#${words}` : location.pathname);
  }
  return words;
}

function replay(words) {
  if (!words.has('task') || !words.has('seed') || parts.about.mode !== 'simulator') return;
  let events;
  try {
    events = JSON.parse(words.get('events') ?? '[]');
  } catch {
    return showRefusal('The changes in this link cannot be read.');
  }
  send({kind: 'begin', task: words.get('task'), seed: Number(words.get('seed')), sentence: words.get('sentence'), events, playing: true});
}

let asked = followLink();
drawers.server = () => { replay(asked); asked = new URLSearchParams(); };
window.onhashchange = () => replay(followLink());
connect();
