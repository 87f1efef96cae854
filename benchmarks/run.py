"""Run benchmarks and note their results: `make bench` for all, `python benchmarks/run.py metrics store_crop` for some.

Each line of README.md is the last result of a benchmark; `results.json` keeps them.
"""
import datetime, importlib, json, os, platform, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

def machine():
    import torch
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.machine())
    return f'{os.cpu_count()} cores ({cpu}), {torch.get_num_threads()} torch threads, torch {torch.__version__}, Python {platform.python_version()}'

def met(r): return r['ratio'] <= r['target'] if r.get('lower_is_better') else r['ratio'] >= r['target']

def table(results):
    lines = [f"| `{k}` | {r['name']} | {r['ours']:.3g} {r['unit']} | {r['peer']:.3g} {r['unit']} | {r['ratio']:.3g} | "
        f"{'≤' if r.get('lower_is_better') else '≥'} {r['target']:g} | {'yes' if met(r) else 'no'} | {r['date']} |" for k,r in sorted(results.items())]
    return '\n'.join(['| file | what | ours | peer | ratio | target | met | date |', '|---|---|---|---|---|---|---|---|', *lines])

def main(names):
    "Run the benchmarks called `names`; True if all met their targets"
    sys.path.insert(0, str(HERE))
    store = HERE/'results.json'
    results = json.loads(store.read_text(encoding='utf-8')) if store.exists() else {}
    done = {}
    for name in names:
        module = importlib.import_module(name)
        if why := getattr(module, 'missing', str)(): print(f'{name} left out: {why}')
        else: done[name] = module.run() | dict(date=str(datetime.date.today()), machine=machine())
    print(table(done))
    results |= done
    store.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding='utf-8')
    machines = '\n'.join(f'- {m}' for m in sorted({r['machine'] for r in results.values()}))
    (HERE/'README.md').write_text('# Benchmarks\n\nEach line compares us with a named peer, both measured in the same run. `make bench` runs all of them, '
        f'`python benchmarks/run.py NAME` one; the head of each file says what is measured.\n\n{table(results)}\n\nMeasured on:\n\n{machines}\n', encoding='utf-8')
    return all(map(met, done.values()))

if __name__ == '__main__':
    every = sorted(p.stem for p in HERE.glob('*.py') if p.stem != 'run')
    sys.exit(not main(sys.argv[1:] or every))
