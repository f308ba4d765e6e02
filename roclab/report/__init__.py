"""The write-up and the hand-in: run folders in, a report that nobody typed and a checked zip out.

gather   run folders and the folders of the other tools -> facts (plain data)
write    facts -> Markdown, figures beside it
render   Markdown -> HTML, .tex, PDF
handin   report, runs, code -> zip, once `checklist` finds nothing missing and `prove` has run it elsewhere
"""
