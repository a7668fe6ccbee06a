"""How Sphinx builds the documentation: `make docs`."""

project = "TailTune"
html_title = "TailTune"
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
highlight_language = "text"
