"""The package as a graph, drawn from the sources: which module imports which. Nothing is imported, but for matplotlib by the drawing.

Modules import downwards, by the numbers of their notebooks; `tests/test_imports.py` refuses a circle or an arrow upwards.
"""
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Module (`core.files`) → number of its notebook
NUMBERS = {f'{p.parent.name}.{p.stem[3:]}': int(p.stem[:2]) for p in (ROOT/'nbs').glob('*/[0-9]*.ipynb')}

def imports(source, module):
    "Modules of ours that a module imports anywhere, inside functions too."
    here = ['clearsight_nb', *module.split('.')]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found = [a.name.split('.') for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[:-node.level] if node.level else []
            found = [[*base, *(node.module or '').split('.'), a.name] if node.module else [*base, a.name] for a in node.names]
        else: continue
        yield from ('.'.join(o[1:3]) for o in found if o[0]=='clearsight_nb' and '.'.join(o[1:3]) in NUMBERS)

def graph():
    "Module → modules it imports."
    files = [p for p in (ROOT/'clearsight_nb').glob('*/*.py') if p.stem!='__init__']
    return {(m := f'{p.parent.name}.{p.stem}'): frozenset(imports(p.read_text(encoding='utf-8'), m)) - {m} for p in files}

def section_of(module): return module.partition('.')[0]

def upward(edges):
    "Arrows that lead to another task, from core to a task, or to a number that is not smaller."
    for a,bs in edges.items():
        for b in sorted(bs):
            if section_of(b) not in (section_of(a), 'core') or section_of(a)==section_of(b) and NUMBERS[b]>=NUMBERS[a]:
                yield f'{a} ({NUMBERS[a]:02}) imports {b} ({NUMBERS[b]:02})'

def draw(edges, section):
    "A figure of one section: a line for each module, the highest number on top, an arc down to each module it imports; behind it what it takes from core."
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch
    own = sorted((m for m in edges if section_of(m)==section), key=lambda m: (NUMBERS[m], m))
    at = {m: i for i,m in enumerate(own)}
    left,right = .3+.068*len(own),1.7 if section=='core' else 6. # inches, as all that follows: room for the arcs, and for names
    fig = Figure(figsize=(left+right, .2+.26*len(own)))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(-left, right), ylim=(-.8, len(own)-.2))
    ax.axis('off')
    for a,i in at.items():
        inside,core = sorted((b for b in edges[a] if b in at), key=at.get),sorted((b for b in edges[a] if b not in at), key=NUMBERS.get)
        ax.text(.08, i, f'{NUMBERS[a]:02} {a.partition(".")[2]}', va='center', fontsize=9)
        if core: ax.text(1.7, i, ', '.join(b.partition('.')[2] for b in core), va='center', fontsize=7, color='.45')
        for b in inside:
            ax.add_patch(FancyArrowPatch((0, i), (0, at[b]), connectionstyle=f'arc3,rad={.5 if i>at[b] else -.5}', arrowstyle='-|>', mutation_scale=7, lw=.7,
                color=f'C{i%10}' if i>at[b] else 'red', shrinkA=1, shrinkB=1))
    return fig
