"""What the front page shows of the executed pages: a strip of pictures and a table of results, both read from stored outputs.

`tools/generate.py` makes the strip whenever the pages may have changed; a cell of nbs/index.ipynb prints the table, and tests/test_front_page.py
compares both with the pages.
"""
import base64, io, json
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
import nbformat, numpy as np
from bs4 import BeautifulSoup
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
STRIP = 'docs/images/strip.jpg'

# Stored outputs ---------------------------------------------------------------------------------------------------------------------
def outputs(page, call):
    "Stored outputs of the one cell of a page that holds the text `call`"
    cells = [c for c in nbformat.read(ROOT/'nbs'/page, as_version=4).cells if c.cell_type=='code' and call in c.source]
    if len(cells)!=1: raise SystemExit(f'nbs/{page} has {len(cells)} cells with {call!r}, and the front page shows what one of them stored. Correct tools/front.py.')
    return cells[0].outputs

def stored(page, call, mime, n=0):
    "The output number `n` of that cell among those of one kind"
    found = [o.data[mime] for o in outputs(page, call) if mime in o.get('data', {})]
    if len(found)<=n: raise SystemExit(f'nbs/{page}: the cell with {call!r} has not stored what the front page shows. Run `make notebooks NB=nbs/{page}`.')
    return found[n]

# Pictures ---------------------------------------------------------------------------------------------------------------------------
#: Task → page, call, which of its pictures, panels in rows and columns, and which (row, column) is what was given, what came out, and the truth
PICTURES = dict(
    glacier=('glacier/90_kernel.ipynb', 'plot_tiles(', 0, (3, 5), [(2, 1), (2, 3), (2, 2)]),
    weather=('weather/90_kernel.ipynb', 'show_restored(', 0, (3, 4), [(0, 0), (1, 0), (2, 0)]),
    lowlight=('lowlight/90_kernel.ipynb', 'show_modes(', 0, (1, 5), [(0, 0), (0, 3), (0, 4)]),
    derain=('derain/90_kernel.ipynb', 'show_derained(', 0, (3, 4), [(0, 2), (1, 2), (2, 2)]),
    shadow=('shadow/50_cast.ipynb', 'caster,lights = load_caster', 0, (3, 4), [(0, 1), (1, 1), (2, 1)]))

def runs(dark, least):
    "Where at least `least` elements in a row are true: [(first, behind the last)]"
    edges = np.flatnonzero(np.diff(np.r_[0, dark.astype(int), 0])).reshape(-1, 2)
    return [(a, b) for a,b in edges if b-a>=least]

def panels(image, least=60):
    "Rows of the panels of a figure: what white gaps separate and is not as small as its text"
    dark = np.asarray(image).min(-1)<250
    return [[image.crop((l+2, t+2, r-2, b-2)) for l,r in runs(dark[t:b].any(0), least)] for t,b in runs(dark.any(1), least)]

def chosen(task):
    "The three panels of a task: given, result, truth"
    page,call,n,shape,places = PICTURES[task]
    grid = panels(Image.open(io.BytesIO(base64.b64decode(stored(page, call, 'image/png', n)))).convert('RGB'))
    if [len(r) for r in grid]!=[shape[1]]*shape[0]: raise SystemExit(f'nbs/{page}: the picture drawn by {call!r} has {[len(r) for r in grid]} panels, not {shape}. Correct PICTURES in tools/front.py.')
    return [grid[r][c] for r,c in places]

def strip(side=150, gap=6, margin=20):
    "The picture strip, a column for each task"
    font = ImageFont.load_default(15)
    out = Image.new('RGB', (margin + len(PICTURES)*(side+gap), margin + 3*(side+gap)), 'white')
    draw = ImageDraw.Draw(out)
    for i,task in enumerate(PICTURES):
        x = margin + i*(side+gap)
        draw.text((x+side/2, margin/2), task, 'black', font, anchor='mm')
        for j,panel in enumerate(chosen(task)): out.paste(panel.resize((side, side), Image.Resampling.LANCZOS), (x, margin + j*(side+gap)))
    for j,what in enumerate(('given', 'result', 'truth')):
        label = Image.new('RGB', (side, margin), 'white')
        ImageDraw.Draw(label).text((side/2, margin/2), what, 'black', font, anchor='mm')
        out.paste(label.rotate(90, expand=True), (0, margin + j*(side+gap)))
    return out

def shows_the_same(jpeg, path):
    "Does the picture in a file look like the one in `jpeg`? Libraries of another version may set the lowest bits otherwise."
    if not path.exists(): return False
    new,there = [np.asarray(Image.open(o).convert('RGB'), int) for o in (io.BytesIO(jpeg), path)]
    return new.shape==there.shape and np.quantile(abs(new-there), .999)<=8

def strip_jpeg():
    "The strip as the bytes of its file"
    strip().save(out := io.BytesIO(), 'JPEG', quality=90, subsampling=0, optimize=True)
    return out.getvalue()

def write_strip(path=ROOT/STRIP):
    "Write the strip, unless the stored one shows the same."
    from clearsight_nb.core.files import atomic_write
    if shows_the_same(jpeg := strip_jpeg(), path): return
    with atomic_write(path) as f: f.write(jpeg)

# Results ----------------------------------------------------------------------------------------------------------------------------
def read_table(html):
    "The first table in a text: {row: {column: text}}; where rows or columns are in groups, the group's name stands in front"
    rows = [r.find_all(['th', 'td']) for r in BeautifulSoup(html, 'html.parser').find('table').find_all('tr')]
    body = [r for r in rows if any(o.name=='td' for o in r)]
    n = sum(o.name=='td' for o in body[0])
    heads = [[o.text.strip() for o in r for _ in range(int(o.get('colspan', 1)))][-n:] for r in rows if r not in body]
    names,group,table = [' '.join(column) for column in zip(*filter(any, heads))],'',{}
    for r in body:
        labels = [o.text.strip() for o in r if o.name=='th']
        if len(labels)>1: group = labels[0]
        table[f'{group} {labels[-1]}'.strip()] = dict(zip(names, [o.text.strip() for o in r if o.name=='td']))
    return table

def scores(task, call):
    "The table of scores on the kernel page of a task"
    return read_table(stored(f'{task}/90_kernel.ipynb', call, 'text/html', -1))

def minutes(task):
    "Minutes of training that the kernel page of a task shows, up to the last full epoch"
    rows = BeautifulSoup(stored(f'{task}/90_kernel.ipynb', 'learn = ', 'text/html', -1), 'html.parser').find_all('tr')
    times = [r.find_all('td')[-1].text.strip().split(':') for r in rows if r.find('td')]
    return f'{sum(int(m) + int(s)/60 for m,s in times):.0f} min'

def results_file(name): return json.loads((ROOT/name).read_text(encoding='utf-8'))

def rounded(x, digits): return str(Decimal(str(x)).quantize(Decimal(10)**-digits, ROUND_HALF_UP))

def picked(table, row, columns, digits): return ' / '.join(rounded(table[row][c], digits) for c in columns)

def line(task, on, score, table, columns, ours, others, command='', took='', digits=3):
    "A row of the results: what was measured, our score, and the scores of others on the same data"
    beside = ', '.join(f'{name} {picked(table, row, columns, digits)}' for row,name in others.items())
    return f'| {task} | {on} | {score} | **{picked(table, ours, columns, digits)}** | {beside} | {took} | {command and f"`{command}`"} |'

def shadow_table():
    "IoU of the stored shadow weights on the three tracks: {method: {track: value}}"
    table = {}
    for r in results_file('clearsight_nb/weights/shadow_small.json')['rows']: table.setdefault(r['method'], {})[r['track']] = r['iou']['mean']
    return table

def shadow_facts():
    "What the stored shadow weights say of themselves"
    from safetensors import safe_open
    with safe_open(ROOT/'clearsight_nb/weights/shadow_small.safetensors', 'np') as f: return json.loads(f.metadata()['facts'])

def result_lines():
    "The rows of the results table, each from what a page or a program has stored"
    glacier,light = scores('glacier', 'evaluate_glacier('),scores('lowlight', 'evaluate_lowlight(')
    demo = lambda task: dict(command=f'make demo TASK={task}', took=minutes(task))
    yield line('glacier', 'a made-up scene, one tile in five held out', 'R_K', glacier, ['R_K'], 'network',
        {'random forest': 'random forest', 'NDSI threshold': 'snow index', 'majority class': 'most frequent class'}, **demo('glacier'))
    yield line('', 'the same, debris / lake', 'IoU', glacier, ['IoU debris', 'IoU lake'], 'network', {'random forest': 'random forest'})
    real = results_file('benchmarks/results.json')['glacier_real']
    yield line('', 'half of a real Landsat-5 tile: cloud, its shadow, land, water (data not included)', 'R_K', dict(ours=real, peer=dict(ours=real['peer'])), ['ours'], 'ours', dict(peer='random forest'),
        'python benchmarks/run.py glacier_real')
    yield line('weather', 'held-out photographs, drawn rain and snow', 'PSNR, dB', scores('weather', 'evaluate_weather('), ['psnr_rgb'], 'restored', dict(input='untouched'), digits=1, **demo('weather'))
    yield line('lowlight', 'held-out tiles, white at 20 / 100 electrons', 'PSNR, dB', {m: {e: light[f'{e} {m}']['psnr'] for e in ('20 electrons', '100 electrons')} for m in ('mmse', 'nlm', 'scale')},
        ['20 electrons', '100 electrons'], 'mmse', dict(nlm='non-local means', scale='brightened only'), digits=1, **demo('lowlight'))
    yield line('derain', 'held-out photographs, drawn rain', 'PSNR, dB', scores('derain', 'evaluate_derain('), ['psnr_rgb'], 'derained',
        {'rainy input': 'untouched', 'guided filter': 'guided filter', 'magphase + spectrum': 'network over magnitudes and phases'}, digits=1, **demo('derain'))
    rain = results_file('benchmarks/derain_real.json')['rows']
    yield line('', 'Rain100H, pairs of scenes held out (data not included)', 'PSNR of Y, dB', rain, ['psnr_y'], 'derained', {'rainy input': 'untouched', 'guided filter': 'guided filter',
        'clean magnitude, rainy phase': 'true magnitudes, rainy phases'}, 'python benchmarks/run.py derain_real', digits=1)
    tracks,others = ['1 softness iou', '2 horizontal iou', '3 vertical iou'],{'φ + 20°': 'true shadow, light 20° off', 'mean shadow': 'mean shadow'}
    yield line('shadow', 'rendered objects, light varies in size / azimuth / height', 'IoU', scores('shadow', 'table = evaluate_shadow('), tracks, '1 step', others, **demo('shadow'))
    own = shadow_table()
    yield line('', 'the weights in the package, other objects', 'IoU', own, list(own['1 step']), '1 step', others | {'regression': 'network without flow'}, 'python tools/shadow_weights.py --regression', f'{shadow_facts()["minutes"]:.0f} min')

def benchmark_line():
    "How many of the stored benchmarks reach what was asked of them, and which do not"
    import sys
    sys.path.insert(0, str(ROOT/'benchmarks'))
    from run import met
    stored = results_file('benchmarks/results.json')
    short = [f"`{k}` ({r['ratio']:.3g} where {r['target']:g} was asked)" for k,r in sorted(stored.items()) if not met(r)]
    return f'{len(stored)-len(short)} of {len(stored)} benchmarks, each against a named peer or limit, reach their target' + (f'; not {", ".join(short)}.' if short else '.')

def results():
    "The table of results as Markdown"
    return '\n'.join(['| task | measured on | score | network | beside it | training | command |', '|---|---|---|---|---|---|---|', *result_lines(), '', benchmark_line()])
