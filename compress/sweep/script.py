"""The script of sweep.html: it points out runs, chooses within a budget, and sorts the table. It fetches nothing."""

SCRIPT = r"""
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const at = id => document.getElementById(id);
const runs = data.runs, rows = all('#runs tbody tr'), dots = all('.dot'), tip = at('tip');
let quality = 0;
for (const shown of all('.scripted')) shown.hidden = false;

// what a reader points at is marked in every chart and in the table
function point(run) {
  for (const marked of all('.near')) marked.classList.remove('near');
  if (run === null) return;
  for (const dot of dots) if (+dot.dataset.run === run) dot.classList.add('near');
  for (const row of rows) if (+row.dataset.run === run) row.classList.add('near');
}
function nearest(svg, event) {
  let best = null, least = 26;
  for (const dot of all('.dot', svg)) {
    const box = dot.getBoundingClientRect();
    const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
    // of two on one spot the one of the front is drawn last
    if (away <= least) { best = dot; least = away; }
  }
  return best;
}
function show(dot) {
  const run = +dot.dataset.run, box = dot.getBoundingClientRect();
  tip.textContent = runs[run].said;
  tip.hidden = false;
  const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(8, Math.min(box.x + box.width / 2 - tip.offsetWidth / 2, right)) + scrollX + 'px';
  const above = box.y - tip.offsetHeight - 8;
  tip.style.top = (above > 0 ? above : box.bottom + 8) + scrollY + 'px';
  point(run);
}
function away() { tip.hidden = true; point(null); }
for (const svg of all('.figures svg')) {
  for (const title of all('.dot title', svg)) {
    title.parentNode.setAttribute('aria-label', title.textContent);
    title.remove();
  }
  const found = event => { const dot = nearest(svg, event); dot ? show(dot) : away(); };
  svg.addEventListener('pointermove', found);
  svg.addEventListener('pointerdown', found);
  svg.addEventListener('click', event => { const dot = nearest(svg, event); if (dot) open(+dot.dataset.run); });
  svg.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') away(); });
}
for (const row of rows) {
  row.addEventListener('pointerenter', () => point(+row.dataset.run));
  row.addEventListener('pointerleave', () => point(null));
}
function open(run) { at('run-' + run).open = true; }

// the choice: of the runs within the budget the one of the best quality
function budget(id) { const said = at(id); return said && said.value !== '' ? +said.value : Infinity; }
function choose() {
  const size = budget('size'), pace = budget('pace'), name = data.qualities[quality].name;
  const fits = run => run.verified && run.bytes <= size * 1e6 && (pace === Infinity || (run.ms ?? Infinity) <= pace);
  let chosen = null;
  if (size === Infinity && pace === Infinity) chosen = data.qualities[quality].middle;
  else runs.forEach((run, index) => {
    if (!fits(run) || run[name] === null) return;
    const best = chosen === null ? null : runs[chosen];
    if (!best || run[name] < best[name] || (run[name] === best[name] && run.bytes < best.bytes)) chosen = index;
  });
  const free = size === Infinity && pace === Infinity;
  const bounds = [size < Infinity ? size + ' MB' : '', pace < Infinity ? pace + ' ms a token' : ''].filter(Boolean);
  at('why').textContent = free ? data.why
    : chosen === null ? 'No run fits ' + bounds.join(' and ') + '. ' + data.smallest
    : `The best ${data.qualities[quality].short} of the ${runs.filter(fits).length} within ${bounds.join(' and ')}.`;
  at('choice').classList.toggle('nothing', chosen === null);
  at('which').textContent = chosen === null ? 'Nothing fits' : runs[chosen].title;
  at('figures').textContent = chosen === null ? '' : runs[chosen].line;
  at('make').textContent = chosen === null ? '' : runs[chosen].command;
  at('made').hidden = chosen === null;
  for (const marked of [...dots, ...rows]) {
    const run = +marked.dataset.run;
    marked.classList.toggle('chosen', run === chosen);
    marked.classList.toggle('outside', !free && !fits(runs[run]));
  }
  // the chosen dot must not lie under another
  for (const dot of all('.dot.chosen')) dot.parentNode.append(dot);
}
function judge() {
  quality = +at('quality').value;
  const front = new Set(data.qualities[quality].front);
  for (const box of all('[data-quality]')) box.hidden = +box.dataset.quality !== quality;
  for (const marked of [...dots, ...rows]) {
    const drawn = marked.closest('[data-quality]');
    if (!drawn || +drawn.dataset.quality === quality) marked.classList.toggle('front', front.has(+marked.dataset.run));
  }
  choose();
}
at('quality').addEventListener('change', judge);
for (const id of ['size', 'pace']) if (at(id)) at(id).addEventListener('input', choose);
at('clear').addEventListener('click', () => {
  for (const id of ['size', 'pace']) if (at(id)) at(id).value = '';
  choose();
});

// a heading sorts by its column, a second time the other way round; what was not measured stays below
const body = at('runs').querySelector('tbody');
all('#runs thead th').forEach((heading, column) => heading.querySelector('button').addEventListener('click', () => {
  const down = heading.getAttribute('aria-sort') === 'ascending';
  for (const other of all('#runs thead th')) other.removeAttribute('aria-sort');
  heading.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const value = row => runs[+row.dataset.run].sort[column];
  const order = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b));
  body.append(...rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return down ? order(y, x) : order(x, y);
  }));
}));

async function copy(button) {
  const text = button.parentNode.querySelector('pre').textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = 'copied'; }
  catch { getSelection().selectAllChildren(button.parentNode.querySelector('pre')); button.textContent = 'selected'; }
  setTimeout(() => { button.textContent = 'copy'; }, 1500);
}
for (const button of all('.command button')) button.addEventListener('click', () => copy(button));
judge();
"""
