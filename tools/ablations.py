"Train every ablation of the glacier page and store the scores: `make ablations`; interrupted, it goes on where it stopped."
from pathlib import Path
from clearsight_nb.glacier.ablations import ablation_table, run_ablations

ROOT = Path(__file__).resolve().parent.parent

if __name__ == '__main__':
    print(ablation_table(run_ablations(ROOT/'benchmarks/glacier_ablations.json', ROOT/'runs/ablations')))
