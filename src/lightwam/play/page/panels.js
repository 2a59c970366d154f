// What the page shows: cameras, outcome, actions, imagined future, attention, surprise.
const at = id => document.getElementById(id);
const ranges = [];

function element(kind, text, className) {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function showConnection(text, isAway) {
  at('connection').textContent = text;
  at('connection').classList.toggle('away', isAway);
}

function notify(text, about = '') {
  at('notice').hidden = !text;
  at('notice').dataset.about = about;
  at('notice-text').textContent = text;
}

function showRefusal(text) {
  at('refused').hidden = !text;
  at('refused').textContent = text;
}

function askForKey() {
  showConnection('an API key is needed', true);
  notify('This server asks for an API key.');
  at('key-form').hidden = false;
}

drawers.viewers = count => showConnection(`connected${count > 1 ? `, ${count} viewers` : ''}`, false);

drawers['camera/'] = (picture, name) => {
  const camera = name.slice('camera/'.length);
  let figure = [...at('cameras').children].find(each => each.dataset.camera === camera);
  if (!figure) {
    figure = element('figure');
    figure.dataset.camera = camera;
    const canvas = element('canvas');
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `camera ${camera}`);
    figure.append(canvas, element('span', 'frozen', 'stamp'), element('figcaption', camera));
    at('cameras').append(figure);
    showFrozen();
  }
  draw(figure.querySelector('canvas'), picture);
};

const most = () => parts.about.max_steps ?? parts.status?.steps ?? 1;
// whether the pictures are frozen after the changes: a second freeze lets them go on
const isFrozen = (events = parts.status?.events ?? []) => events.filter(event => event.what === 'frozen').length % 2 === 1;

function showFrozen() {
  document.querySelectorAll('.stamp').forEach(stamp => stamp.hidden = !isFrozen());
}

const CHANGES = {
  object: () => 'the object moved', camera: () => 'the cameras turned',
  frozen: (event, events) => isFrozen(events) ? 'the pictures frozen' : 'the pictures go on',
  sentence: event => `told “${event.text}”`, replan: event => `replan ${event.number}`, engine: event => event.number ? 'engine' : 'plain model',
};

function showRecording(status) {
  const {held_out: heldOut, dataset, episodes} = parts.about;
  const told = status.sentence !== episodes[status.place].sentence ? ', told another sentence' : '';
  at('outcome').replaceChildren(status.message || `step ${status.step} of ${status.steps - 1}${told}`,
    element('small', `recorded in ${dataset}, ${heldOut ? 'held out of training' : 'part of training'}`));
}

function showOutcome(status) {
  const outcome = at('outcome');
  const count = status.episodes ? `${status.successes} of ${status.episodes} episodes succeeded` : '';
  const step = `step ${status.step} of ${parts.about.max_steps}`;
  outcome.replaceChildren();
  if (status.phase === 'loading') outcome.append(status.message || 'resetting the simulator');
  else if (status.phase !== 'ready') outcome.append('no simulator');
  else if (status.message) outcome.append(status.message);
  else if (!status.over) outcome.append(`${status.playing ? 'playing' : 'paused'}, ${step}`);
  else outcome.append(element('span', status.success ? `✔ success at step ${status.step}` : `✘ not solved in ${status.step} steps`, status.success ? 'good' : 'bad'));
  if (at('said').textContent !== outcome.textContent && !(status.phase === 'ready' && !status.over)) {
    at('said').textContent = outcome.textContent;  // for screen readers, which should not read every step
  }
  if (count) outcome.append(element('small', count));
  const stages = Object.entries(status.progress);
  at('stages').hidden = !stages.length;
  at('stages').textContent = stages.map(([name, reached]) => `${reached ? '✔' : '○'} ${name}`).join('  ');
  at('changes').hidden = !status.events.length;
  at('changes').textContent = status.events
    .map((event, i, all) => `step ${event.step}: ${CHANGES[event.what](event, all.slice(0, i + 1))}`).join('; ');
  showFrozen();
}

function showActions() {
  const names = parts.world?.action_names;
  const actions = parts.actions ?? {rows: [], first: 0};
  if (!names || (!actions.rows.length && !parts.chunk)) {
    ranges.length = 0;
    at('actions').replaceChildren(element('p', 'No chunk yet: play or step.', 'empty'));
    return;
  }
  names.forEach((_, dim) => ranges[dim] ??= [Infinity, -Infinity]);
  at('actions').replaceChildren(...names.map((name, dim) => actionChart(name, actions, parts.chunk, ranges[dim], dim)));
}
drawers.actions = drawers.chunk = showActions;
drawers.world = () => { ranges.length = 0; };

function futureCanvas(row, column) {
  return at('future').querySelector(`canvas[data-at="${row}/${column}"]`);
}

drawers.future = future => {
  const grid = at('future');
  if (!future) {
    grid.replaceChildren();
    grid.dataset.columns = '';
    at('future-text').textContent = parts.status?.imagine ? 'The next chunk begins one.' : 'Off. The loop waits for each future, so it is slower with it.';
    return;
  }
  if (grid.dataset.columns !== future.times.join()) {
    grid.dataset.columns = future.times.join();
    grid.style.gridTemplateColumns = `4.25rem repeat(${future.times.length}, minmax(0, 11rem))`;
    const cells = [element('span'), ...future.times.map(time => element('span', time))];
    for (const row of ['imagined', 'came']) {
      cells.push(element('span', row === 'came' ? 'what came' : row));
      for (const column of future.times.keys()) {
        const canvas = element('canvas');
        canvas.dataset.at = `${row}/${column}`;
        canvas.setAttribute('role', 'img');
        canvas.setAttribute('aria-label', `${row === 'came' ? 'what came' : row}, ${future.times[column]}`);
        cells.push(canvas);
      }
    }
    grid.replaceChildren(...cells);
  }
  future.times.forEach((_, column) => {
    const [imagined, came] = [parts[`imagined/${column}`], parts[`came/${column}`]];
    if (imagined) draw(futureCanvas('imagined', column), imagined);
    const canvas = futureCanvas('came', column);
    if (future.came[column] && came) draw(canvas, came);
    else if (imagined) [canvas.width, canvas.height] = [imagined.width, imagined.height];
  });
  const text = [`From step ${future.step}.`];
  if (future.errors) text.push(`Off by ${future.errors[0].toFixed(1)} of 255; the present repeated: ${future.errors[1].toFixed(1)}.`);
  if (future.mean_errors) text.push(`Mean of ${future.count} future${future.count > 1 ? 's' : ''}: ${future.mean_errors[0].toFixed(1)}, repeated ${future.mean_errors[1].toFixed(1)}.`);
  const measured = future.measured;
  if (measured) text.push(`The report's mean of ${measured.moments} moments of ${measured.episodes} episodes: ${measured.imagined.toFixed(1)}, repeated ${measured.frozen.toFixed(1)}.`);
  at('future-text').textContent = text.join(' ');
};

drawers.attention = picture => draw(at('attention-picture'), picture);

drawers.attended = attended => {
  at('attended').hidden = !attended;
  const on = parts.status?.attention;
  at('attention-text').textContent = attended
    ? `Where the present chunk came from. The brightest place has ${attended.peak.toFixed(1)} times uniform attention.`
    : on ? 'The next chunk shows it.' : 'Off.';
};

drawers.surprise = surprise => {
  const chart = at('surprise-chart');
  if (!surprise) {
    chart.replaceChildren();
    at('surprise-text').textContent = parts.about?.no_watch ?? '';
    return;
  }
  const disturbances = (parts.status?.events ?? []).filter(event => ['object', 'camera', 'frozen'].includes(event.what));
  const width = Math.max(260, chart.clientWidth);
  chart.replaceChildren(scoreChart(surprise.scores, surprise.threshold, most(), width, disturbances));
  const last = surprise.scores.at(-1);
  const what = last && (last.missed ? 'an expected change is missing' : 'an unexpected change');
  at('surprise-text').textContent = !last ? 'The second chunk has the first score.'
    : last.alarm ? `▲ Alarm at step ${last.step}: ${what}, camera ${last.camera}.`
    : `Step ${last.step}: ${last.score.toFixed(1)}; alarms are above ${surprise.threshold.toFixed(1)}.`
      + (last.valid ? '' : ' Not calibrated for this replan.');
};

window.onresize = () => parts.surprise && drawers.surprise(parts.surprise);
