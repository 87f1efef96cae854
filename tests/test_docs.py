"The site: built once without a warning; every link leads somewhere, nothing is loaded from elsewhere, every public name is on it, and the how-to pages work."
import json, os, re, shlex, shutil, subprocess, sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit
import pytest
from conftest import ROOT

HOWTO = sorted((ROOT/'docs/pages/howto').glob('*.md'))
VOID = 'area', 'base', 'br', 'col', 'embed', 'hr', 'img', 'input', 'link', 'meta', 'source', 'track', 'wbr'

class Html(HTMLParser):
    "What a page links to, loads, and can be linked to"
    def __init__(self, path):
        super().__init__()
        self.links,self.loads,self.ids,self.alts,self.text,self.path = [],[],[],[],[],path
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.append(a['id'])
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        if a.get('src'): self.loads.append(a['src'])
        if a.get('srcset'): self.loads += [o.split()[0] for o in a['srcset'].split(',')]
        if tag=='link' and a.get('href') and not {'canonical', 'search', 'index', 'next', 'prev', 'license', 'author'} & {*a.get('rel', '').split()}: self.loads.append(a['href'])
        if a.get('style'): self.loads += re.findall(r'url\(["\']?([^)"\']+)', a['style'])
        if tag=='img': self.alts.append((a.get('src'), a.get('alt')))

    def handle_data(self, data): self.text.append(data)

def build(out):
    "Make the site in `out`, as `make docs` does"
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    for cmd in ([sys.executable, 'docs/adapter.py', out/'source'], [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-c', 'docs', out/'source', out/'html']):
        run = subprocess.run(cmd, cwd=ROOT, env=env, capture_output=True, text=True)
        assert run.returncode==0, run.stdout + run.stderr
    return out/'html'

@pytest.fixture(scope='session')
def site(shared):
    "The built site, shared by the processes of pytest-xdist: {path of a page: `Html`}"
    from filelock import FileLock
    with FileLock(shared/'site.lock'):
        if not (shared/'site/done').exists():
            build(shared/'site')
            (shared/'site/done').touch()
    html = shared/'site/html'
    return {p.relative_to(html).as_posix(): Html(p) for p in html.rglob('*.html')}

def cells(notebook): return json.loads(notebook.read_text(encoding='utf-8'))['cells']

def folder(site): return site['index.html'].path.parent

def test_every_notebook_has_a_page(site):
    for nb in (ROOT/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in nb.parts: continue
        rel = nb.relative_to(ROOT/'nbs')
        page = rel.with_name(re.sub(r'^\d+_', '', rel.stem) + '.html').as_posix()
        assert page in site, f'{rel} is not on the site'
        title = cells(nb)[0]['source'][0].strip('# \n')
        assert title in ''.join(site[page].text), (page, title)

def test_links_lead_somewhere(site):
    "Each link within the site has its file and its anchor; each link out of it has the form of one."
    top,lost,ids = folder(site),[],{name: set(page.ids) for name,page in site.items()}
    for name,page in site.items():
        for url in page.links + page.loads:
            u = urlsplit(url)
            if u.scheme in ('http', 'https'):
                if not re.fullmatch(r'[\w.-]+\.[a-z]{2,}(:\d+)?', u.netloc) or ' ' in url: lost.append((name, url))
            elif u.scheme not in ('mailto', 'data'):
                there = (top/name).parent/unquote(u.path) if u.path else top/name
                rel = os.path.relpath(there, top)
                if not there.is_file() or rel.startswith('..'): lost.append((name, url))
                elif u.fragment and rel in ids and unquote(u.fragment) not in ids[rel]: lost.append((name, url))
    assert not lost, lost[:20]

def test_ids_are_unique(site):
    for name,page in site.items():
        twice = {i for i in page.ids if page.ids.count(i)>1} if len(set(page.ids))<len(page.ids) else set()
        assert not twice, (name, twice)

def test_nothing_comes_from_elsewhere(site):
    "No script, style, picture or font is loaded over the network: the site can be read from a folder."
    for name,page in site.items(): assert not (far := [u for u in page.loads if urlsplit(u).scheme in ('http', 'https') or u.startswith('//')]), (name, far)
    for css in folder(site).rglob('*.css'): assert not re.findall(r'url\(["\']?(?:https?:)?//|@import', css.read_text(encoding='utf-8')), css

def test_formulas_are_drawn_by_a_file_of_the_site(site):
    page = site['glacier/losses.html']
    assert any('tex-svg' in u for u in page.loads) and 'class="math' in page.path.read_text(encoding='utf-8')

def test_cells_that_are_hidden_and_those_that_are_not(site):
    "Cells with `#| hide` are not on the page; all others are, exported ones with their source."
    plain = lambda text: re.sub(r'\s+', '', text)
    for nb in (ROOT/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in nb.parts: continue
        rel = nb.relative_to(ROOT/'nbs')
        text = plain(''.join(site[rel.with_name(re.sub(r'^\d+_', '', rel.stem) + '.html').as_posix()].text))
        for c in cells(nb):
            source = ''.join(c['source'])
            marks = set(re.findall(r'^#\| *(\w+)', source, re.M)) - {'tested_with'}
            body = plain(re.sub(r'^#\|.*\n?', '', source, flags=re.M))
            if c['cell_type']!='code' or not body or 'hide_input' in marks: continue
            if 'hide' in marks and len(body)>40: assert body not in text, (rel, source)
            elif not marks: assert body in text, (rel, source)
            elif 'export' in marks and re.search(r'^(def|class) ', source, re.M): assert body in text, (rel, source)

def test_pictures_have_alternative_text(site):
    for name,page in site.items(): assert not (mute := [src for src,alt in page.alts if not alt]), (name, mute)

def test_public_names_are_on_their_pages(site):
    "Each name in the `__all__` of a module has its entry, with its parameters, on the page of its notebook."
    missing = []
    for py in (ROOT/'clearsight_nb').glob('*/*.py'):
        text = py.read_text(encoding='utf-8')
        found = re.search(r'^# AUTOGENERATED.*File to edit: \S*?nbs/(\S+)\.ipynb', text, re.M)
        if not found: continue
        page = re.sub(r'/\d+_', '/', found[1]) + '.html'
        module = f'clearsight_nb.{py.parent.name}.{py.stem}'
        for n in eval(re.search(r'^__all__ = (\[.*?\])', text, re.M|re.S)[1]):
            if f'{module}.{n}' not in site[page].ids: missing.append(f'{module}.{n}')
    assert not missing, missing

def test_benchmarks_are_the_stored_ones(site):
    text = ''.join(site['benchmarks.html'].text)
    for name,r in json.loads((ROOT/'benchmarks/results.json').read_text(encoding='utf-8')).items():
        assert name in text and r['name'] in text and (f"{r['ratio']:.3g}" in text or f"{r['ratio']:,.0f}" in text), name

@pytest.fixture # for each test anew: while Playwright runs, its event loop does, and other tests must not find it
def browser():
    "Debian's Chromium, driven by Playwright"
    api = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed')
    chromium = shutil.which('chromium')
    if not chromium: pytest.skip('Chromium is not installed: apt-get install chromium')
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        yield b
        b.close()

@pytest.mark.parametrize('width', [400, 1280])
def test_pages_fit_the_screen(site, browser, width):
    "In a browser, from a folder and without a network: no page is wider than the screen, formulas are drawn, nothing is asked of another machine."
    page = browser.new_page(viewport=dict(width=width, height=900))
    asked = []
    page.on('request', lambda r: asked.append(r.url))
    page.on('pageerror', lambda e: asked.append(f'error: {e}'))
    for name in ('index', 'glacier/index', 'glacier/losses', 'core/metrics', 'lowlight/guidance', 'howto/own_data', 'benchmarks', 'glossary', 'genindex'):
        page.goto((folder(site)/f'{name}.html').as_uri())
        if page.locator('.math').count(): page.wait_for_function("document.querySelectorAll('mjx-container').length >= document.querySelectorAll('.math').length")
        wide = page.evaluate('document.documentElement.scrollWidth')
        assert wide<=width, f'{name} is {wide} pixels wide on a screen of {width}'
        assert not page.locator('mjx-merror').count(), name
    page.close()
    assert not (odd := [u for u in asked if not u.startswith(('file://', 'data:', 'blob:'))]), odd

def blocks(page):
    "Blocks of a how-to page that can run here: [(language, text)]"
    return re.findall(r'^```(python|bash)\n(.*?)^```', page.read_text(encoding='utf-8'), re.M|re.S)

@pytest.mark.parametrize('page', [p for p in HOWTO if blocks(p)], ids=lambda p: p.stem)
def test_howto_works(page, tmp_path, monkeypatch):
    "Python and `clearsight` commands of a page, in one namespace and an empty folder."
    from clearsight_nb.core.cli import main
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CLEARSIGHT_WORK', str(tmp_path))
    space = {}
    for kind,text in blocks(page):
        if kind=='python': exec(compile(text, str(page), 'exec'), space)
        else:
            for line in text.replace('\\\n', '').splitlines():
                program,*args = shlex.split(line)
                assert program=='clearsight' and main(args)==0, line
