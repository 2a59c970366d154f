// Small charts as SVG. Lines differ in width and dashes, not only in colour.
const SVG = 'http://www.w3.org/2000/svg';

function svg(width, height, label) {
  const chart = document.createElementNS(SVG, 'svg');
  chart.setAttribute('viewBox', `0 0 ${width} ${height}`);
  chart.setAttribute('role', 'img');
  chart.setAttribute('aria-label', label);
  return chart;
}

function add(parent, kind, attributes, text) {
  const element = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const path = points => points.map(([x, y], i) => `${i ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`).join('');
const short = value => Number(value.toPrecision(3)).toString();

// The executed (or recorded) actions and the present chunk of one dimension; `range` is [low, high], kept by the caller.
function actionChart(name, {rows, first, now = first + rows.length}, chunk, range, dim) {
  const [width, height, left, top, bottom] = [260, 84, 6, 16, 6];
  const past = rows.map((row, i) => [first + i, row[dim]]);
  const future = chunk ? chunk.actions.map((row, i) => [chunk.step + i, row[dim]]) : [];
  for (const [, value] of [...past, ...future]) {
    range[0] = Math.min(range[0], value);
    range[1] = Math.max(range[1], value);
  }
  const end = Math.max(first + rows.length, chunk ? chunk.step + chunk.actions.length : 0);
  const begin = Math.max(0, end - 48);
  const span = Math.max(range[1] - range[0], 1e-6);
  const x = step => left + (step - begin) / Math.max(16, end - begin) * (width - 2 * left);
  const y = value => top + (range[1] - value) / span * (height - top - bottom);
  const chart = svg(width, height, `${name}: actions and the present chunk`);
  add(chart, 'text', {x: left, y: 11, class: 'name'}, name);
  add(chart, 'text', {x: width - left, y: 11, 'text-anchor': 'end'}, `${short(range[0])} to ${short(range[1])}`);
  if (range[0] < 0 && range[1] > 0) add(chart, 'line', {x1: left, x2: width - left, y1: y(0), y2: y(0), class: 'grid'});
  const points = list => list.filter(([step]) => step >= begin).map(([step, value]) => [x(step), y(value)]);
  if (chunk) {
    const last = chunk.step + chunk.replan;
    const todo = future.filter(([step]) => step >= now && step < last);
    const join = past.length && now > chunk.step && now === first + rows.length && todo.length ? past.slice(-1) : [];
    add(chart, 'path', {d: path(points([...todo.slice(-1), ...future.filter(([step]) => step >= last)])), class: 'rest'});
    add(chart, 'path', {d: path(points([...join, ...todo])), class: 'todo'});
  }
  add(chart, 'path', {d: path(points(past)), class: 'done'});
  add(chart, 'line', {x1: x(now - 0.5), x2: x(now - 0.5), y1: top, y2: height - bottom, class: 'now'});
  return chart;
}

// Scores over control steps, with the threshold; alarms are marked by a sign, disturbances by a line with their name.
function scoreChart(scores, threshold, most, width, disturbances) {
  const [height, left, right, top, bottom] = [130, 28, 8, 8, 20];
  const high = Math.max(threshold * 1.25, ...scores.map(row => row.score)), low = Math.min(-2, ...scores.map(row => row.score));
  const x = step => left + step / Math.max(1, most) * (width - left - right);
  const y = score => top + (high - score) / (high - low) * (height - top - bottom);
  const chart = svg(width, height, 'Surprise over control steps, with its threshold');
  add(chart, 'line', {x1: left, x2: width - right, y1: y(0), y2: y(0), class: 'grid'});
  add(chart, 'text', {x: left - 6, y: y(0) + 4, 'text-anchor': 'end'}, '0');
  add(chart, 'line', {x1: left, x2: width - right, y1: y(threshold), y2: y(threshold), class: 'limit'});
  add(chart, 'text', {x: left - 6, y: y(threshold) + 4, 'text-anchor': 'end'}, threshold.toFixed(1));
  add(chart, 'text', {x: width - right, y: y(threshold) - 4, 'text-anchor': 'end'}, 'threshold');
  add(chart, 'text', {x: left, y: height - 4}, 'step 0');
  add(chart, 'text', {x: width - right, y: height - 4, 'text-anchor': 'end'}, String(most));
  for (const {step, what} of disturbances) {
    add(chart, 'line', {x1: x(step), x2: x(step), y1: top, y2: height - bottom, class: 'now'});
    add(chart, 'text', {x: x(step) + 4, y: height - bottom - 2}, what);
  }
  add(chart, 'path', {d: path(scores.map(row => [x(row.step), y(row.score)])), class: 'score'});
  for (const row of scores) {
    if (row.alarm) add(chart, 'text', {x: x(row.step), y: y(row.score) + 5, 'text-anchor': 'middle', class: 'alarm'}, '▲');
    else add(chart, 'circle', {cx: x(row.step), cy: y(row.score), r: 2.5, class: 'dot'});
  }
  return chart;
}
