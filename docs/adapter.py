"""From notebooks to Sphinx: `python docs/adapter.py FOLDER` fills FOLDER with the source of the site.

`nbdev.serve.proc_nbs` processes the notebooks; here the result becomes pages for MyST-NB. Exported cells turn into API entries
with their source folded below, numbers leave the file names, links follow. Nothing is executed, and nothing of the package imported.
"""
import ast, json, os, re, shutil, sys
from pathlib import Path
import nbformat
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor
from nbdev.serve import proc_nbs
import api, graph

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = 'glacier', 'weather', 'lowlight', 'derain', 'shadow', 'core'
#: Processors of nbdev that execute cells, or do what is done better below
SKIPPED = 'FrontmatterProc', 'insert_warning', 'add_show_docs', 'exec_show_docs', 'clean_show_doc', 'rm_export', 'add_links', 'add_fold', 'mv_exports'

#: The table of contents, on the front page
CONTENTS = '\n'.join(['```{toctree}', ':hidden:', ':caption: Tasks', *(f'{s}/index' for s in SECTIONS[:-1]), '```', '', '```{toctree}', ':hidden:',
    ':caption: For all of them', 'howto/index', 'core/index', 'benchmarks', 'glossary', 'All names <genindex>', '```'])

class ExportedCells(Processor):
    "Drops hidden cells, and notes in the metadata which cells are exported, and to which module."
    def cell(self, cell):
        d = cell.directives_
        if 'default_exp' in d: self.nb.metadata['module'] = f"clearsight_nb.{d['default_exp'][0]}"
        if d.keys() & {'hide', 'default_exp'}: del cell['source']
        elif kind := d.keys() & {'export', 'exports', 'exporti'}: cell.metadata['export'] = min(kind)
        elif 'hide_input' in d: cell.metadata['tags'] = ['remove-input']

def page_name(path):
    "`glacier/01_data.ipynb` → `glacier/data`, the name that nbdev's own links use"
    path = Path(path)
    return path.with_name(re.sub(r'^\d+[a-z]?_', '', path.stem)).as_posix()

def github(path): return f"{get_config().git_url}/{'tree' if (ROOT/path).is_dir() else 'blob'}/{get_config().branch}/{path}"

class Page:
    "A processed notebook on its way to the site."
    def __init__(self, path, folder):
        self.rel,self.nb = path.relative_to(folder),nbformat.read(path, as_version=4)
        self.name,self.module = page_name(self.rel),self.nb.metadata.get('module')
        self.title,self.line = re.match(r'# (.+)\n+> (.+)', self.nb.cells[0].source).groups()
        self.section = self.rel.parts[0] if len(self.rel.parts)>1 else ''

    def names(self): return [n for c in self.nb.cells if c.metadata.get('export') in ('export', 'exports') for n in api.names(c.source)]

# Links ------------------------------------------------------------------------------------------------------------------------------
class Links:
    "Turns names in backticks into links: to the API on these pages, or to the documentation of fastai and fastcore."
    def __init__(self, pages):
        self.here = {}
        for p in pages:
            for n in p.names(): self.here.setdefault(n, []).append(p)
        self.others = NbdevLookup(strip_libs=('fastai', 'fastcore'), incl_libs=('fastai', 'fastcore'))

    def find(self, name, page):
        "The page that defines `name`, as seen from `page`: itself, its section, then core; None if there is none or more than one."
        found = self.here.get(name, [])
        for near in ([p for p in found if p is page], [p for p in found if p.section==page.section], [p for p in found if p.section=='core'], found):
            if near: return near[0] if len(near)==1 else None

    def module(self, name, page):
        "The module of `name`, if these pages define it."
        there = self.find(name, page)
        return there and there.module

    def name(self, text, page):
        "Markdown for a name in backticks."
        name = text.removesuffix('()')
        there = self.find(name, page)
        word = not re.search(r'[A-Z_.(]', text)  # `data` is more often a word than a function
        if there and not (word and there is not page): return f'{{py:obj}}`{text} <{there.module}.{name}>`'
        url = re.fullmatch(r'[A-Z][\w.]+', name) and self.others.doc(name)
        return f'[`{text}`]({url})' if url else f'`{text}`'

    def line(self, text, page):
        "Names in a text, but for those that already are in a link or a role."
        parts = re.split(r'(\[(?:[^][`]|`[^`]*`)*\]\([^)]*\)|\{[\w:]+\}`[^`]*`|``.*?``|`[^`\n]+`)', text)
        return ''.join(self.name(o[1:-1], page) if re.fullmatch(r'`[^`\s]+`', o) else o for o in parts)

    def markdown(self, text, page):
        "Names and links in a Markdown cell; code blocks and headings stay as they are."
        out,fenced = [],False
        for l in text.split('\n'):
            if re.match(r'\s*(```|~~~)', l): fenced = not fenced
            out.append(l if fenced or l.startswith(('#', '    ')) else self.line(l, page))
        return re.sub(r'\]\(([^)\s]+)\)', lambda m: f']({self.target(m[1], page)})', '\n'.join(out))

    def plain(self, text, page):
        "A docstring or comment as Markdown: only backticks mean something."
        parts = re.split(r'(`[^`]+`)', text)
        return self.line(''.join(o if o.startswith('`') else re.sub(r'([\\*_\[\]<>$#|~{}])', r'\\\1', o) for o in parts), page)

    def target(self, url, page):
        "Where a relative link leads on the site, or in the repository if it leaves the notebooks."
        if '://' in url or url.startswith('mailto:'): return url
        path,_,anchor = url.partition('#')
        anchor = f'#{anchor.lower()}' if anchor else ''
        if not path: return anchor
        there = os.path.normpath(Path('nbs')/page.rel.parent/path)
        if not (ROOT/there).exists(): raise SystemExit(f'nbs/{page.rel}: the link {url} leads nowhere. Correct it in the notebook.')
        up = '../'*(len(page.rel.parts)-1)
        if there.startswith('docs/images/'): return f'{up}{there.removeprefix("docs/")}'
        if there.startswith('nbs/') and there.endswith('.ipynb'): return f'{up}{page_name(Path(there).relative_to("nbs"))}.ipynb{anchor}'
        return f'{up}benchmarks.md' if there=='benchmarks/README.md' else github(there)

# Pages ------------------------------------------------------------------------------------------------------------------------------
def without_kernel(output):
    "Does an output say something on a page without a kernel? Widgets do not, unless they bring a picture or HTML, nor do progress bars once the work is done."
    data = output.get('data')
    if data is None: return True
    live = [m for m in data if m.startswith('application/vnd.jupyter.widget')]
    for m in live: del data[m]
    html = ''.join(data.get('text/html', ''))
    return not (live and set(data)<={'text/plain'}) and not ('progress' in html and '<table' not in html)

def exported(cell, page, links, seen):
    "API entries of an exported cell, and its source in a box to open; nothing for imports."
    body = ast.parse(cell.source).body
    if all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in body): return ''
    entries = '' if cell.metadata['export']=='exporti' else api.Api(page.module, lambda text: links.plain(text, page), lambda name: links.module(name, page), seen)(cell.source)
    what = 'Source' if entries else 'Source of ' + ', '.join(f'<code>{o.name}</code>' for o in body if hasattr(o, 'name'))
    return f'{entries}\n<details class="source"><summary>{what}</summary>\n\n```python\n{cell.source}\n```\n\n</details>\n'

def adapt(page, links, seen):
    "The notebook as MyST-NB takes it."
    heading,cells = page.title,[]
    for i,c in enumerate(page.nb.cells):
        if c.cell_type=='markdown':
            heading = ([heading] + re.findall(r'^#+ (.+)$', c.source, re.M))[-1]
            if i==0: c.source = re.sub(r'\A(# .+\n+)> ', r'\1{.lead}\n', c.source)
            c.source = links.markdown(c.source, page)
        elif c.metadata.get('export'): c = nbformat.v4.new_markdown_cell(exported(c, page, links, seen), id=c.id)
        elif c.cell_type=='code':
            c.outputs = [o for o in c.outputs if without_kernel(o)]
            c.metadata['mystnb'] = dict(image=dict(alt=f'Picture drawn by the code above: {heading}'.replace('`', '')))
        if c.source: cells.append(c)
    if page.name=='index': cells.append(nbformat.v4.new_markdown_cell(CONTENTS, id='contents'))
    if page.module: cells.insert(1, nbformat.v4.new_markdown_cell(f'```{{py:module}} {page.module}\n```', id='module'))
    page.nb.cells,page.nb.metadata = cells,dict(language_info=dict(name='python', pygments_lexer='ipython3'),
        kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    return page.nb

def section_page(name, pages, intro):
    "A section's first page: its introduction, a line on each page, and the kernel."
    lines = [intro.strip(), '', '## Pages', '']
    for p in pages: lines += [f'[{p.title}]({Path(p.name).name}.ipynb)', f': {p.line}', '']
    if any(p.name.endswith('/kernel') for p in pages) and (ROOT/f'kaggle_kernels/{name}').is_dir():
        lines += [f'The last page is also a Kaggle kernel: {{download}}`{name}.ipynb </files/{name}.ipynb>`, '
            f'kept in [kaggle_kernels/{name}]({github(f"kaggle_kernels/{name}")}).', '']
    lines += ['## What imports what', '', 'One line a module, with the number of its page. Arrows lead to what it imports, always downwards'
        + ('.' if name=='core' else '; in grey is what it takes from [core](../core/index.md).') + ' A test draws the same from the sources, and refuses a circle or an arrow upwards.', '',
        f'```{{image}} /images/imports_{name}.svg', f':alt: Modules of {name} and the arrows of their imports, all downwards', '```', '']
    return '\n'.join([*lines, '```{toctree}', ':hidden:', *(Path(p.name).name for p in pages), '```', ''])

def number(x, unit=''): return f'{x:,.0f} {unit}'.strip() if abs(x)>=100 else f'{x:.3g} {unit}'.strip()

def benchmarks(intro):
    "The stored results: a table that fits a telephone, then what each of them compares."
    sys.path.insert(0, str(ROOT/'benchmarks'))
    from run import listed, met, version_number
    results = sorted(json.loads((ROOT/'benchmarks/results.json').read_text(encoding='utf-8')).items())
    rows = [f"| `{k}` | {number(r['ratio'])} | {'≤' if r.get('lower_is_better') else '≥'} {r['target']:g} | {'yes' if met(r) else '**no**'} |" for k,r in results]
    known = listed(dict(results))
    what = [f"[{k}]({github('benchmarks/' + k.split('.')[0] + '.py')})\n: {r['name']}. {number(r['ours'], r['unit'])} against {number(r['peer'], r['unit'])}, {r['date']}, "
        f"versions {version_number(r, known)}.\n" for k,r in results]
    machines = [f'- {m}' for m in sorted({r['machine'] for _,r in results})]
    return '\n'.join([intro.strip(), '', '## Results', '', '| benchmark | ratio | target | met |', '|---|---|---|---|', *rows, '', '## What is compared', '', *what,
        '## Measured on', '', *machines, '', *([*map('{}. {}'.format, range(1, len(known)+1), known), ''] if known else [])])

def build(out, only=None):
    "Fill the folder `out` with the source of the site; `only` is a pattern for a part of the notebooks, while developing."
    os.chdir(ROOT)
    get_config()['skip_procs'],get_config()['procs'] = ','.join(SKIPPED),'adapter:ExportedCells'
    cache = proc_nbs('nbs', n_workers=0, force=True)
    pages = [Page(p, cache) for p in sorted(cache.rglob('*.ipynb'))]
    shutil.rmtree(cache)
    if strange := {p.section for p in pages} - {*SECTIONS, ''}: raise SystemExit(f'nbs/{strange.pop()} is no section of the site. Add it to docs/adapter.py and docs/pages.')
    links,seen,out = Links(pages),set(),Path(out).resolve()
    if out.exists(): shutil.rmtree(out)
    shutil.copytree(ROOT/'docs/pages', out)
    shutil.copytree(ROOT/'docs/images', out/'images')
    for p in pages:
        if only and p.section and not re.search(only, p.name): continue
        file = out/f'{p.name}.ipynb'
        file.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(adapt(p, links, seen), file)
    edges = graph.graph()
    for name in SECTIONS:
        graph.draw(edges, name).savefig(out/f'images/imports_{name}.svg')
        own = [p for p in pages if p.section==name and (out/f'{p.name}.ipynb').exists()]
        (out/name/'index.md').write_text(section_page(name, own, (out/name/'index.md').read_text(encoding='utf-8')), encoding='utf-8')
        kernel = ROOT/f'kaggle_kernels/{name}/{name}.ipynb'
        (out/'files').mkdir(exist_ok=True)
        if kernel.exists(): shutil.copy(kernel, out/'files')
    (out/'benchmarks.md').write_text(benchmarks((out/'benchmarks.md').read_text(encoding='utf-8')), encoding='utf-8')

if __name__ == '__main__': build(*sys.argv[1:])
