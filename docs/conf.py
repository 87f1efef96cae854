"Sphinx: `sphinx-build -W -c docs SOURCE HTML`, where docs/adapter.py made SOURCE. Everything a page needs is in the site itself."
import importlib.util
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
settings = ConfigParser()
settings.read(HERE.parent/'settings.ini')
settings = settings['DEFAULT']

project,author,release = settings['title'],settings['author'],settings['version']
project_copyright = author
language = 'en'
smartquotes = False  # quotes in comments are mostly Python's
extensions = ['myst_nb', 'sphinx.ext.mathjax']
exclude_patterns = ['files/*']

nb_execution_mode = 'off'  # what was stored is shown
nb_merge_streams = True
nb_ipywidgets_js = {}      # or pages with widgets would load scripts from elsewhere
myst_enable_extensions = ['dollarmath', 'amsmath', 'attrs_block', 'attrs_inline', 'colon_fence', 'deflist', 'fieldlist']
myst_heading_anchors = 4

add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 72
toc_object_entries_show_parents = 'hide'
modindex_common_prefix = ['clearsight_nb.']

# MathJax as one file that draws SVG: no fonts to load, and it works from a folder.
mathjax = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent/'static/mathjax/tex-svg-full.js'
mathjax_path = mathjax.name

html_theme = 'furo'
html_title = project
html_static_path = [str(HERE/'static'), str(mathjax)]
html_css_files = ['site.css']
html_show_sphinx = False
html_copy_source = False
html_theme_options = dict(navigation_with_keys=True)
pygments_style,pygments_dark_style = 'tango','monokai'
