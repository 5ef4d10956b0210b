"""The style of the page: light and dark, wide and narrow."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --fore: #1c2330; --faint: #5b6675; --rule: #d8dee6; --card: #f4f6f9;
  --work: #8fa3bd; --local: #4f6f9f; --give: #2a9d8f; --wait: #e07b1f; --all: #b5366f; --main: #2463b4;
  --mark: #c22f2f;  --fault: #c22f2f; --advice: #b86a0c; --fine: #25805a; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14181f; --fore: #e4e8ee; --faint: #9aa6b5; --rule: #333c49; --card: #1d232d;
    --work: #66788f; --local: #86a5d6; --give: #3fb8a8; --wait: #f0943d; --all: #e0679c; --main: #7fb2f5;
   --mark: #ff7a70;    --fault: #ff7a70; --advice: #f0a24a; --fine: #5cc596; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--fore); font: 16px/1.5 system-ui, Roboto, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 6px; }
p { margin: 6px 0; }
.faint { color: var(--faint); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: 10px; margin: 18px 0 8px; }
.tile { background: var(--card); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 20px; line-height: 1.4; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tile span { color: var(--faint); font-size: 13px; display: block; line-height: 1.35; }
ol.advice { padding: 0; list-style: none; margin: 10px 0; }
ol.advice li { background: var(--card); border-left: 4px solid var(--advice); border-radius: 4px; padding: 9px 14px;
  margin: 8px 0; overflow-wrap: anywhere; }
ol.advice li.fault { border-color: var(--fault); }
ol.advice li.fine { border-color: var(--fine); }
ol.advice small { display: block; color: var(--faint); }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; margin: 8px 0 4px; }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; }
table.numbers td, table.numbers th { text-align: right; white-space: nowrap; padding-left: 10px; padding-right: 4px; }
table.facts td { overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--faint); white-space: nowrap; }
tr.marked td { color: var(--wait); font-weight: 600; }
summary { cursor: pointer; margin: 12px 0 8px; }
svg { display: block; max-width: 100%; height: auto; margin: 8px 0; }
svg text { font: 12px system-ui, Roboto, sans-serif; fill: var(--fore); font-variant-numeric: tabular-nums; }
svg text.name { fill: var(--faint); }
svg text.marked { fill: var(--wait); font-weight: 700; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .empty { fill: var(--card); }
svg .heat { fill: var(--wait); }
svg .band { fill: var(--main); fill-opacity: 0.2; }
svg .line { fill: none; stroke: var(--main); stroke-width: 2; stroke-linejoin: round; }
svg .mark { stroke: var(--mark); stroke-width: 2; stroke-dasharray: 4 3; fill: none; }
svg .whisker { fill: var(--work); } svg .box { fill: var(--work); } svg .middle { fill: var(--fore); }
.work { fill: var(--work); background: var(--work); } .local { fill: var(--local); background: var(--local); }
.give { fill: var(--give); background: var(--give); } .wait { fill: var(--wait); background: var(--wait); }
.all { fill: var(--all); background: var(--all); }
.halves { display: grid; grid-template-columns: 1fr 1fr; gap: 0 40px; }
.narrow { display: none; }
@media (max-width: 700px) { .narrow { display: block; } .wide { display: none; } main { padding: 16px 14px 40px; }
  h1 { font-size: 21px; } .halves { display: block; } .tiles { grid-template-columns: 1fr 1fr; } }
@media print { .narrow { display: none; } details { display: block; } }
"""
