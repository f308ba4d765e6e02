"""The page's style sheet: one column, galleries that wrap, tables that scroll on a phone."""

STYLE = """
:root { --ink: #1d2330; --soft: #5b6472; --line: #dfe3ea; --back: #f6f7f9; --good: #14713d; --bad: #b3261e }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--back) }
header, main { max-width: 1080px; margin: 0 auto; padding: 0 20px }
header { padding-top: 32px }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 4px }
h2 { font-size: 1.35rem; margin: 0 0 12px }
h3 { font-size: 1.05rem; margin: 28px 0 8px }
header p { color: var(--soft); margin: 0 0 14px }
nav { display: flex; flex-wrap: wrap; gap: 6px 16px; font-size: .92rem }
nav a { color: #1f5fbf; text-decoration: none }
nav a:hover { text-decoration: underline }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px; margin: 20px 0 }
.sentences { list-style: none; margin: 0 0 12px; padding: 0 }
.sentences li { padding: 7px 0; border-bottom: 1px solid #eef0f4 }
.sentences li:last-child { border-bottom: 0 }
.mark { display: inline-block; font-size: .74rem; line-height: 1.5; padding: 0 8px; margin-right: 8px;
  border-radius: 99px; border: 1px solid transparent; white-space: nowrap }
.strong { background: #14713d; color: #fff }
.moderate { background: #d9efe1; color: #0f5a30 }
.none { background: #fff; color: var(--soft); border-color: #c5ccd6 }
.measured { background: #e6edf8; color: #26497f }
code { font: .78rem ui-monospace, Menlo, Consolas, monospace; color: var(--soft); overflow-wrap: anywhere }
.note, figcaption { color: var(--soft); font-size: .88rem }
.care { border-left: 4px solid #d9a400; background: #fff9e6; padding: 8px 12px; margin: 12px 0; font-size: .94rem }
.plot { margin: 16px 0 }
.plot img { display: block; max-width: min(100%, 860px); height: auto }
.plot figcaption { margin-top: 6px; max-width: 75ch }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 14px; margin: 10px 0 18px }
.card { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: #fff }
.card img, .gone { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #eceff3 }
.gone { display: flex; align-items: center; justify-content: center; color: var(--soft); font-size: .85rem }
.card figcaption { padding: 8px 10px 10px; line-height: 1.4; overflow-wrap: anywhere }
.card b { display: block; color: var(--ink); font-size: .95rem }
.card i { font-style: normal; font-size: .8rem; color: var(--soft) }
.call { display: block; color: var(--ink) }
.call i { display: block }
.file { display: block; font-size: .76rem; margin-top: 3px }
.right { color: var(--good); font-weight: 600 }
.wrong { color: var(--bad); font-weight: 600 }
.table { overflow-x: auto; margin: 10px 0 }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: 5px 12px 5px 0; text-align: right; border-bottom: 1px solid #eef0f4; white-space: nowrap }
.t { text-align: left }
th { color: var(--soft); font-weight: 600 }
summary { cursor: pointer; color: #1f5fbf; margin: 8px 0 }
@media (max-width: 600px) {
  header, main { padding: 0 10px }
  header { padding-top: 18px }
  h1 { font-size: 1.5rem }
  section { padding: 16px 14px; border-radius: 8px; margin: 12px 0 }
  .gallery { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px }
}
@media print { section { border: 0; break-inside: auto } .card { break-inside: avoid } nav { display: none } }
"""
