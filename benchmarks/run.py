"""Run benchmarks and note their results: `make bench` for all that fit in half an hour, `python benchmarks/run.py metrics store_crop` for some.

A benchmark is a module with `run()`, which gives a row (name, ours, peer, unit, ratio, target, lower_is_better) or a dict of rows; `MINUTES`, what it takes on two cores (1 if it does not say);
and, where it needs more than the package, `missing()`, which says what it lacks. Rows are kept in `results.json`; README.md and a page of the site are made of them.
"""
import datetime, importlib, json, os, platform, re, subprocess, sys, time, traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
LIMIT = 30 # minutes for `make bench`
PACKAGES = 'torch', 'torchvision', 'fastai', 'fastcore', 'diffusers', 'segmentation-models-pytorch', 'numpy', 'scipy', 'scikit-learn', 'scikit-image', 'tifffile', 'deepinv'

def machine():
    "Cores, threads and GPU"
    import torch
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.machine())
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    return f'{os.cpu_count()} cores ({cpu}), {torch.get_num_threads()} torch threads{gpu}'

def versions():
    "What may change a result: Python and packages"
    def installed(p):
        try: return version(p)
        except PackageNotFoundError: return None
    return dict(Python=platform.python_version()) | {p: v for p in PACKAGES if (v := installed(p))}

def minutes(name): return float((re.search(r'^MINUTES = ([\d.]+)', (HERE/f'{name}.py').read_text(encoding='utf-8'), re.M) or [0, 1])[1])

def lacks(name):
    "What a benchmark says that it lacks; one that cannot even be imported will say so when it runs"
    try: return getattr(importlib.import_module(name), 'missing', str)()
    except Exception: return ''

def chosen(names, limit=LIMIT):
    "Those of `names` that fit in `limit` minutes together, the quickest first; says what is left out"
    done,spent = [],0
    for name in sorted(names, key=lambda n: (minutes(n), n)):
        if why := lacks(name): print(f'{name} left out: {why}')
        elif spent+minutes(name)>limit: print(f'{name} left out: it takes {minutes(name):g} minutes: python benchmarks/run.py {name}')
        else:
            done.append(name)
            spent += minutes(name)
    return done

def met(r): return r['ratio'] <= r['target'] if r.get('lower_is_better') else r['ratio'] >= r['target']

def listed(results):
    "Texts of all versions in the results; a row that has none was measured before they were noted"
    return sorted({', '.join(f'{k} {v}' for k,v in r['versions'].items()) for r in results.values() if 'versions' in r})

def version_number(r, known): return known.index(', '.join(f'{k} {v}' for k,v in r['versions'].items()))+1 if 'versions' in r else '–'

def table(results):
    known = listed(results)
    lines = [f"| `{k}` | {r['name']} | {r['ours']:.3g} {r['unit']} | {r['peer']:.3g} {r['unit']} | {r['ratio']:.3g} | "
        f"{'≤' if r.get('lower_is_better') else '≥'} {r['target']:g} | {'yes' if met(r) else 'no'} | {r['date']} | {version_number(r, known)} |" for k,r in sorted(results.items())]
    return '\n'.join(['| file | what | ours | peer | ratio | target | met | date | versions |', '|---|---|---|---|---|---|---|---|---|', *lines])

def page(results):
    "Text of README.md"
    machines = '\n'.join(f'- {m}' for m in sorted({r['machine'] for r in results.values()}))
    known = '\n'.join(f'{i}. {v}' for i,v in enumerate(listed(results), 1))
    return ('# Benchmarks\n\nEach line compares us with a named peer, both measured in the same run. `make bench` runs those that fit in half an hour and says which ones do not, '
        f'`python benchmarks/run.py NAME` one; the head of each file says what is measured.\n\n{table(results)}\n\nMeasured on:\n\n{machines}\n' + (f'\nVersions:\n\n{known}\n' if known else ''))

def store(rows):
    "Put rows among the stored results, and write README.md anew"
    from clearsight_nb.core.files import atomic_write
    file = HERE/'results.json'
    results = (json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}) | rows
    with atomic_write(file, 'w') as f: json.dump(results, f, indent=1, ensure_ascii=False)
    with atomic_write(HERE/'README.md', 'w') as f: f.write(page(results))

def main(names):
    "Run the benchmarks called `names` and store each result as it comes; names of those that failed"
    failed = []
    for name in names:
        start = time.perf_counter()
        try:
            module = importlib.import_module(name)
            if why := lacks(name):
                print(f'{name} left out: {why}')
                continue
            out = module.run()
            rows = {name: out} if 'ratio' in out else {f'{name}.{k}': r for k,r in out.items()}
            facts = dict(date=str(datetime.date.today()), machine=machine(), versions=versions(), seconds=round(time.perf_counter()-start, 1))
            store({k: r | facts for k,r in rows.items()})
            print(table({k: r | facts for k,r in rows.items()}), flush=True)
        except Exception:
            failed.append(name)
            print(f'{name} failed:\n{traceback.format_exc()}', flush=True)
    return failed

def in_turn(names):
    "Each in a process of its own, so that threads and memory of one are not those of the next; names of those that failed"
    return [n for n in names if subprocess.run([sys.executable, __file__, n]).returncode]

if __name__ == '__main__':
    every = sorted(p.stem for p in HERE.glob('*.py') if p.stem != 'run')
    failed = main(sys.argv[1:]) if sys.argv[1:] else in_turn(chosen(every))
    if failed: sys.exit(f'failed: {", ".join(failed)}')
