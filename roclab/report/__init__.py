"""One reporting kit, and what is written with it: facts -> sentences -> pages, figures -> a folder made as a whole.

kit, folders       templates with everything escaped; a folder that replaces its own files only
runs, facts        run folders and the folders of the other tools -> plain data, and what is said of it
build, words       facts -> report.md, with templates/report.md and its chapters in report/;  formats: HTML, .tex, PDF
error_page         the facts of `vision.error_analysis` -> its page
"""
