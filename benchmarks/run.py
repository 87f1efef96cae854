"Run every benchmark in this folder and write README.md: `make bench`, or `python benchmarks/run.py metrics` for one."
import datetime, importlib, os, platform, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

def machine():
    import torch
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.machine())
    return f'{os.cpu_count()} cores ({cpu}), {torch.get_num_threads()} torch threads, torch {torch.__version__}, Python {platform.python_version()}'

def main(names):
    sys.path.insert(0, str(HERE))
    rows = []
    for name in names:
        module = importlib.import_module(name)
        if why := getattr(module, 'missing', str)(): print(f'{name} left out: {why}')
        else: rows.append(module.run())
    met = lambda r: r['ratio'] <= r['target'] if r.get('lower_is_better') else r['ratio'] >= r['target']
    lines = [f"| {r['name']} | {r['ours']:.3g} {r['unit']} | {r['peer']:.3g} {r['unit']} | {r['ratio']:.3g} | "
        f"{'≤' if r.get('lower_is_better') else '≥'} {r['target']:g} | {'yes' if met(r) else 'no'} |" for r in rows]
    table = '\n'.join(['| benchmark | ours | peer | ratio | target | met |', '|---|---|---|---|---|---|', *lines])
    print(table)
    return table, all(map(met, rows))

if __name__ == '__main__':
    every = sorted(p.stem for p in HERE.glob('*.py') if p.stem != 'run')
    table,fine = main(sys.argv[1:] or every)
    if not sys.argv[1:]:
        (HERE/'README.md').write_text('# Benchmarks\n\nEach line compares us with a named peer, both measured in the same run. '
            f'Written by `make bench` on {datetime.date.today()}; {machine()}.\n\n{table}\n', encoding='utf-8')
    sys.exit(not fine)
