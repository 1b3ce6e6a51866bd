"""The style sheet. Every colour is a variable with a light and a dark value; text keeps a contrast of 4.5 on both."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1b1f24; --soft: #59616b; --line: #e2e0db;
  --first: #2563c9; --second: #c2570c; --good: #19713a; --good-paper: #e3f3e8; --bad: #b3202a; --bad-paper: #fde7e7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1d2126; --ink: #e9ebed; --soft: #a3abb5; --line: #343a41;
    --first: #6aa5f8; --second: #f29b52; --good: #7fd49a; --good-paper: #17311f; --bad: #ff8a85; --bad-paper: #451a1d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: clamp(1.45rem, 5vw, 2.1rem); line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 0 0 .9rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; overflow-wrap: anywhere; max-width: 46rem; }
section { margin-top: 2.8rem; }
ul { padding-left: 1.2rem; margin: .8rem 0; max-width: 46rem; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
.lead { color: var(--soft); margin: 0 0 1.2rem; }
.note { color: var(--soft); font-size: .875rem; }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem .95rem; }
@media (max-width: 560px) { .tile:first-child:nth-last-child(odd) { grid-column: 1 / -1; } }
.tile b { display: block; font-size: 1.65rem; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; }
.tile span { display: block; font-size: .875rem; color: var(--soft); }
.tile .label { color: var(--ink); font-weight: 600; }
.verdict { border-radius: 12px; padding: .8rem .95rem; margin: .75rem 0; overflow-wrap: anywhere; }
.verdict b { margin-right: .4em; }
.good { background: var(--good-paper); border: 1px solid var(--good); }
.good b { color: var(--good); }
.bad { background: var(--bad-paper); border: 3px solid var(--bad); font-size: 1.1rem; }
.bad b { color: var(--bad); }
.none { background: var(--card); border: 1px dashed var(--line); }
.scroll { overflow-x: auto; margin: 1rem 0; }
.scroll, .answer { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
@media (max-width: 560px) { th, td { padding: .45rem .5rem; } }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody th {
  font-weight: 600; min-width: 7rem; max-width: 11rem; overflow-wrap: break-word; white-space: normal;
}
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
figure {
  margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem .8rem .6rem;
  min-width: 0;
}
figcaption { font-size: .95rem; margin-bottom: .5rem; overflow-wrap: anywhere; }
figure svg { display: block; width: 100%; max-width: 450px; height: auto; margin: 0 auto; overflow: visible; }
figure .note { margin: .5rem 0 .2rem; }
svg text { font-family: inherit; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .875rem; color: var(--soft); margin-top: .15rem; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .4em; }
i.first { background: var(--first); } i.second { background: var(--second); } i.dropped { background: var(--bad); }
.pair { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.answer { padding: .7rem .9rem; min-width: 0; }
.answer header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .5rem; font-size: .875rem; }
.answer header, .answer em { color: var(--soft); }
.answer p { white-space: pre-wrap; margin: .35rem 0 0; }
.answer .loop { color: var(--bad); font-weight: 600; }
dl { margin: .8rem 0; }
dl div { display: grid; grid-template-columns: minmax(7rem, 13rem) 1fr; gap: .1rem 1rem; padding: .32rem 0; }
dl div + div { border-top: 1px solid var(--line); }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 560px) { dl div { grid-template-columns: 1fr; } }
a { color: var(--first); }
pre, code { font-family: ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace; font-size: .85rem; }
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem .9rem; margin: .6rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
details { border-top: 1px solid var(--line); padding: .55rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
footer { margin-top: 3rem; color: var(--soft); font-size: .875rem; }
@media print { body { background: none; } section, figure, .tile { break-inside: avoid; } }
"""
