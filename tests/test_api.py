"Every exported name is described: a docstring, a comment for each parameter, a place on the site. Read from the sources as docs/api.py does, nothing is imported."
import ast, json, re, sys
import pytest
from conftest import ROOT
from test_notebooks import PAGES

sys.path.append(str(ROOT/'docs'))
import api

class Entries(api.Api):
    "The entries that a page gets: kind, name, names of parameters, description, described parameters"
    def __init__(self, module):
        super().__init__(module, link=str, module_of=lambda name: None, seen=set())
        self.found = []

    def entry(self, kind, name, sig, doc, params=None, returns='', body='', options=()):
        args = [o.arg for o in api.arguments(ast.parse(f'def f{sig or "()"}: pass').body[0], False)]
        self.found.append((kind, name, args, doc.partition('Extends `')[0].strip(), params or {}))
        return ''

def read_page(page):
    "Module and entries of a notebook; None where it exports nothing"
    module = None
    for c in json.loads((ROOT/page).read_text(encoding='utf-8'))['cells']:
        if c['cell_type']!='code': continue
        said = dict(re.findall(r'^#\|\s*(\w+) *(.*)$', source := ''.join(c['source']), re.M))
        if 'default_exp' in said: module = Entries(said['default_exp'])
        elif said.keys() & {'export', 'exports'} and 'hide' not in said: module(source)
    return module

MODULES = [m for p in PAGES if (m := read_page(p))]

def test_descriptions():
    "Classes and functions have a docstring, constants a comment."
    bare = [f'{m.module}.{name}' for m in MODULES for _,name,_,doc,_ in m.found if not doc]
    assert not bare, f'without a description: {bare}'

def test_parameters():
    "Each parameter of a function, class or described method has a comment."
    bare = [f'{m.module}.{name}: {", ".join(missing)}' for m in MODULES for _,name,args,_,params in m.found if (missing := [a for a in args if a not in params])]
    assert not bare, f'parameters without a comment: {bare}'

@pytest.mark.parametrize('section', sorted({m.module.split('.')[0] for m in MODULES}))
def test_places(section):
    "Each name in `__all__` has an entry on the page of its module, and the section is on the site."
    from adapter import SECTIONS
    assert section in SECTIONS and (ROOT/f'docs/pages/{section}/index.md').is_file(), f'{section} is no section of the site'
    for m in (m for m in MODULES if m.module.startswith(f'{section}.')):
        tree = ast.parse((ROOT/'clearsight_nb'/f'{m.module.replace(".", "/")}.py').read_text(encoding='utf-8'))
        exported = next(ast.literal_eval(o.value) for o in tree.body if isinstance(o, ast.Assign) and o.targets[0].id=='__all__')
        assert not (lost := set(exported) - {name for _,name,*_ in m.found}), f'{m.module} exports without a place on its page: {sorted(lost)}'
