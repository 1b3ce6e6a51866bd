"""What the page of a sweep adds to the style sheet of a run's report."""

STYLE = """
.dot { fill: var(--paper); stroke: var(--soft); stroke-width: 1.5; opacity: .55; cursor: pointer; }
.dot.front { fill: var(--first); stroke: var(--card); opacity: 1; }
.dot.refused { fill: var(--bad); stroke: var(--card); opacity: 1; }
.dot.outside { opacity: .18; }
.dot.chosen { fill: var(--second); stroke: var(--ink); stroke-width: 2; r: 7.5px; opacity: 1; }
.dot.near { stroke: var(--ink); stroke-width: 2.5; opacity: 1; }
i.dominated { border: 1.5px solid var(--soft); border-radius: 50%; opacity: .7; }
i.front { background: var(--first); border-radius: 50%; } i.chosen { background: var(--second); border-radius: 50%; }
main { max-width: 1180px; }
.caution { background: var(--card); border: 2px solid var(--bad); }
.figures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
.figures figure svg { max-width: 520px; touch-action: pan-y; }
.controls { display: flex; flex-wrap: wrap; gap: .8rem 1.2rem; align-items: end; margin: 1rem 0; }
.controls label { display: grid; gap: .2rem; font-size: .875rem; color: var(--soft); flex: 1 1 9rem; max-width: 20rem; }
.controls input, .controls select, .controls button, .command button {
  font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--soft); border-radius: 8px;
  padding: .45rem .6rem; min-height: 2.75rem; width: 100%;
}
.controls button, .command button { width: auto; cursor: pointer; }
:focus-visible { outline: 2px solid var(--first); outline-offset: 2px; }
#choice { background: var(--card); border: 2px solid var(--second); border-radius: 12px; padding: .9rem 1rem; }
#choice h3 { margin: 0 0 .3rem; font-size: 1.15rem; }
#choice p { margin: .3rem 0; max-width: none; }
#choice .said { font-variant-numeric: tabular-nums; }
#choice.nothing { border-color: var(--bad); }
.command { display: flex; gap: .6rem; align-items: start; }
.command pre { flex: 1; min-width: 0; margin: .4rem 0; background: var(--paper); }
.command button { margin-top: .4rem; }
#tip {
  position: absolute; z-index: 5; max-width: min(20rem, calc(100vw - 1rem));
  background: var(--ink); color: var(--paper);
  border-radius: 8px; padding: .5rem .7rem; font-size: .875rem; line-height: 1.4; overflow-wrap: anywhere;
  white-space: pre-line; pointer-events: none;
}
#tip[hidden] { display: none; }
th button {
  font: inherit; color: inherit; background: none; border: 0; padding: .2rem 0; cursor: pointer; white-space: nowrap;
}
th[aria-sort] button { color: var(--ink); }
th[aria-sort="ascending"] button::after { content: " ↑"; } th[aria-sort="descending"] button::after { content: " ↓"; }
#runs tbody th { min-width: 3.2rem; white-space: nowrap; }
#runs tbody tr { color: var(--soft); } #runs tbody tr.front { color: var(--ink); }
#runs tbody tr.front th::before { content: "● "; color: var(--first); }
#runs tbody tr.refused th::before { content: "✗ "; color: var(--bad); }
#runs tbody tr.chosen th::before { content: "● "; color: var(--second); }
#runs tbody tr.chosen > * { background: color-mix(in srgb, var(--second) 16%, var(--card)); }
#runs tbody tr.near > * { background: color-mix(in srgb, var(--first) 14%, var(--card)); }
details[open] > summary { font-weight: 600; }
[hidden] { display: none !important; }
"""
